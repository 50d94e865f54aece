"""The training state, and what one step does to it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec as P

from alexnet_jax.models import operations
from alexnet_jax.optim import PlateauState, init_plateau
from alexnet_jax.parallel import Layout
from alexnet_jax.preprocess import Preprocess

SUMS = ("loss", "top1", "top5", "count")


@struct.dataclass
class TrainState:
    """All that decides the rest of a run.

    Attributes:
        step: int32 scalar, training steps done; the data's position follows from it.
        params: {layer: {'kernel', 'bias'}}, the towers side by side on the last axis.
        opt_state: optax's, with the velocities.
        plateau: the schedule's state, which changes only after an evaluation.
        key: the run's random key; step n draws from fold_in(key, n).
        since_log: sums of training metrics since the last logged step.
        since_epoch: the same since the epoch began.
        nonfinite: int32 scalar, steps dropped because what they computed was not finite.
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
    model: nn.Module, tx: optax.GradientTransformation, seed: int, image_size: int
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
    """Adds up loss and right answers over a batch; padding (mask 0) counts nothing.

    Args:
        logits: float [B, classes].
        labels: int32 [B].
        mask: float [B], 1 for an example and 0 for padding.

    Returns:
        'loss': cross-entropy in nats; 'top1', 'top5': examples whose label is among the one or
        five highest logits (equal logits in the order of their class); 'count': examples.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    classes = jnp.arange(logits.shape[1])
    # Written so that a NaN logit ranks above the label: a broken net is never right.
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
    """`train_sums(params, images, labels, mask, key)`: `classification_sums` of a global batch.

    Each device runs the part of the net that the layout gives it on its part of the batch; what
    they exchange stands in `models.placement`. Every device ends with the same sums.
    """
    local_model = model.clone(placement=layout.placement)
    labels_spec = layout.labels_spec

    def train_sums(params, images, labels, mask, key):
        specs, dtypes = layout.param_specs(params), _layer_dtypes(model, images.shape[1:])
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


def _layer_dtypes(model: nn.Module, image_shape) -> dict[str, str]:
    """In which dtype each layer of the net computes."""
    return {op.layer: op.dtype for op in operations(model, image_shape) if op.kernel}


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformationExtraArgs, layout: Layout, prep: Preprocess
) -> Callable:
    """`train_step(state, batch) -> (state, sums)`, to be compiled: one update.

    A step whose loss, gradients or updates are not finite is dropped: it counts as done and in
    `nonfinite`, and changes neither parameters, velocities nor the state's sums. The sums that
    are returned are the step's own, with `finite` (bool) beside them.
    """
    train_sums = make_train_sums(model, layout)
    prepare = _sharded_preprocess(prep, layout)

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
    """Returns the state after the step, and its sums with `finite`."""
    updates, opt_state = tx.update(
        grads, state.opt_state, state.params, lr_scale=state.plateau.scale
    )
    # Of the updates a part is enough: what the rate makes infinite shows everywhere in them. So the
    # parameters and the velocities are read once in a step.
    parts = jax.tree.map(lambda update: update if update.ndim == 1 else update[:1], updates)
    norms = (optax.tree.norm(tree, squared=True) for tree in (grads, parts))
    finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, (sums["loss"], *norms)))

    def unless_dropped(new, old):
        counts = jnp.issubdtype(new.dtype, jnp.integer)  # schedules go by steps done
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
    """`predict(params, batch) -> float [B, classes]`, to be compiled: log-probabilities.

    Softmax probabilities are averaged over the V views of each image (paper, section 4.1): the
    batch's `images` are uint8 [B, V, S, S, 3] and its `crops` int32 [B, V, 3]. No dropout, no
    colour noise.
    """
    local_model = model.clone(placement=layout.placement)

    def predict(params: dict, batch: dict):
        specs = layout.param_specs(params)
        dtypes = _layer_dtypes(model, batch["images"].shape[2:])

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


def _sharded_preprocess(prep: Preprocess, layout: Layout) -> Callable:
    """`prep` on each device's own images, so that the compiler cannot move any of them."""
    spec = layout.images_spec
    return jax.shard_map(prep, mesh=layout.mesh, in_specs=(spec, spec, spec, P()), out_specs=spec)
