"""Defines the training state, one training step, and the prediction of an evaluation."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec as P

from alexnet_jax.models.operations import layer_dtypes
from alexnet_jax.optim import PlateauState, init_plateau
from alexnet_jax.parallel import Layout
from alexnet_jax.preprocess import Preprocess

SUMS = ("loss", "top1", "top5", "count")


@struct.dataclass
class TrainState:
    """Holds everything that decides the rest of a run.

    Attributes:
        step: the number of training steps done, an int32 scalar; the position in the data follows
            from it.
        params: {layer: {'kernel', 'bias'}}, with the towers side by side on the last axis.
        opt_state: the state of the optax transforms, which includes the velocities.
        plateau: the state of the plateau schedule, which changes only after an evaluation.
        key: the run's random key; step n draws from fold_in(key, n).
        since_log: the sums of the training metrics since the last logged step.
        since_epoch: the sums of the training metrics since the beginning of the epoch.
        nonfinite: the number of dropped steps, whose results were not finite, an int32 scalar.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    plateau: PlateauState
    key: jax.Array
    since_log: dict
    since_epoch: dict
    nonfinite: jax.Array


def zero_sums() -> dict:
    """Returns the sums of training metrics with nothing added yet."""
    return {name: jnp.zeros((), jnp.float32) for name in SUMS}


def init_state(
    model: nn.Module, tx: optax.GradientTransformation, seed: int | jax.Array, image_size: int
) -> TrainState:
    """Makes a fresh state, which is the same for a seed on any mesh."""
    init_key, key = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((1, image_size, image_size, 3))
    params = model.init(init_key, images)["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        plateau=init_plateau(),
        key=key,
        since_log=zero_sums(),
        since_epoch=zero_sums(),
        nonfinite=jnp.zeros((), jnp.int32),
    )


def classification_sums(logits, labels, mask) -> dict:
    """Sums the loss and the correct predictions over a batch, without its padding.

    Args:
        logits: float [B, classes].
        labels: int32 [B].
        mask: float [B], 1 for an example and 0 for padding.

    Returns:
        The sums of 'loss', the cross-entropy in nats; 'top1' and 'top5', the examples whose label
        has the highest logit or one of the five highest (of equal logits, that of the lower class
        counts as higher); and 'count', the examples.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    classes = jnp.arange(logits.shape[1])
    # The negation makes a NaN logit rank above the label, so that a broken net is never right.
    above = ~(logits <= own) | ((logits == own) & (classes < labels[:, None]))
    rank = above.sum(axis=1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "loss": jnp.sum(losses * mask),
        "top1": jnp.sum((rank < 1) * mask),
        "top5": jnp.sum((rank < 5) * mask),
        "count": jnp.sum(mask),
    }


def make_train_sums(model: nn.Module, layout: Layout) -> Callable:
    """Returns `train_sums(params, images, labels, mask, key)`, the sums of a global batch.

    They are those of `classification_sums`. Each device runs the part of the net that the layout
    gives it on its part of the batch; `models.placement` defines what the devices exchange. Every
    device ends with the same sums.
    """
    local_model = model.clone(placement=layout.placement)
    labels_spec = layout.labels_spec

    def train_sums(params, images, labels, mask, key):
        specs, dtypes = layout.param_specs(params), layer_dtypes(model, images.shape[1:])
        index = jnp.arange(labels.shape[0], dtype=jnp.int32)

        def local_sums(params, images, labels, mask, index, key):
            logits, _ = local_model.apply(
                {"params": layout.as_computed(params, specs, dtypes)},
                images,
                train=True,
                example_index=index,
                rngs={"dropout": key},
            )
            missing = layout.missing_axes(labels_spec)
            mask = lax.pcast(mask, missing, to="varying") if missing else mask
            sums = classification_sums(logits, labels, mask)
            sums = lax.psum(sums, layout.sum_axes)
            return lax.pmean(sums, layout.same_axes) if layout.same_axes else sums

        in_specs = (specs, layout.images_spec, *[labels_spec] * 3, P())
        summed = jax.shard_map(local_sums, mesh=layout.mesh, in_specs=in_specs, out_specs=P())
        return summed(params, images, labels, mask, index, key)

    return train_sums


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformationExtraArgs, layout: Layout, prep: Preprocess
) -> Callable:
    """Returns `train_step(state, batch) -> (state, sums)`, one update, which is to be compiled.

    A step whose loss, gradients or updates are not finite is dropped: it counts in `step` and in
    `nonfinite`, but changes neither the parameters nor the velocities nor the sums of the state.
    The returned sums are those of this step alone, and `finite` (bool) says if it was finite.
    """
    train_sums = make_train_sums(model, layout)
    spec = layout.images_spec
    # Each device prepares its own images, so that the compiler cannot move any of them.
    prepare = jax.shard_map(prep, mesh=layout.mesh, in_specs=(*[spec] * 3, P()), out_specs=spec)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        noise_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        draws = jax.random.normal(noise_key, (batch["labels"].shape[0], 3))
        images = prepare(batch["images"], batch["crops"], draws, state.step)

        def mean_loss(params):
            sums = train_sums(params, images, batch["labels"], batch["mask"], dropout_key)
            return sums["loss"] / jnp.maximum(sums["count"], 1), sums

        grads, sums = jax.grad(mean_loss, has_aux=True)(state.params)
        sums = jax.tree.map(lambda x: x.astype(jnp.float32), sums)
        return _updated(state, tx, grads, sums)

    return train_step


@jax.named_scope("update")
def _updated(
    state: TrainState, tx: optax.GradientTransformationExtraArgs, grads: dict, sums: dict
) -> tuple[TrainState, dict]:
    """Returns the state after the step, and the step's sums with `finite`."""
    updates, opt_state = tx.update(
        grads, state.opt_state, state.params, lr_scale=state.plateau.scale
    )
    # A part of each update is enough, because an infinite learning rate shows in all of it. In this
    # way the parameters and the velocities are read only once in a step.
    parts = jax.tree.map(lambda update: update if update.ndim == 1 else update[:1], updates)
    norms = (optax.tree.norm(tree, squared=True) for tree in (grads, parts))
    finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, (sums["loss"], *norms)))

    def unless_dropped(new, old):
        # Integers count steps, which the schedules follow: a dropped step counts too.
        counts = jnp.issubdtype(new.dtype, jnp.integer)
        return new if counts else jnp.where(finite, new, old)

    new = (
        optax.apply_updates(state.params, updates),
        opt_state,
        jax.tree.map(jnp.add, state.since_log, sums),
        jax.tree.map(jnp.add, state.since_epoch, sums),
    )
    old = (state.params, state.opt_state, state.since_log, state.since_epoch)
    params, opt_state, since_log, since_epoch = jax.tree.map(unless_dropped, new, old)
    state = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        since_log=since_log,
        since_epoch=since_epoch,
        nonfinite=state.nonfinite + ~finite,
    )
    return state, sums | {"finite": finite}


def make_predict(model: nn.Module, layout: Layout, prep: Preprocess) -> Callable:
    """Returns `predict(params, batch)`, the log-probabilities [B, classes], to be compiled.

    The softmax probabilities are averaged over the V views of each image (paper, section 4.1). The
    batch holds `images`, uint8 [B, V, S, S, 3], and `crops`, int32 [B, V, 3]. There is no dropout
    and no colour noise.
    """
    local_model = model.clone(placement=layout.placement)

    def predict(params: dict, batch: dict):
        specs = layout.param_specs(params)
        dtypes = layer_dtypes(model, batch["images"].shape[2:])

        def local_log_probs(params, images, crops):
            views = images.shape[1]
            images, crops = (x.reshape(-1, *x.shape[2:]) for x in (images, crops))
            images = prep(images, crops, None, jnp.zeros((), jnp.int32))
            logits, _ = local_model.apply(
                {"params": layout.as_computed(params, specs, dtypes)}, images
            )
            log_probs = jax.nn.log_softmax(logits).reshape(-1, views, logits.shape[-1])
            averaged = jax.nn.logsumexp(log_probs, axis=1) - jnp.log(views)
            return lax.pmean(averaged, layout.same_axes) if layout.same_axes else averaged

        return jax.shard_map(
            local_log_probs,
            mesh=layout.mesh,
            in_specs=(specs, layout.images_spec, layout.images_spec),
            out_specs=layout.labels_spec,
        )(params, batch["images"], batch["crops"])

    return predict
