"""Makes the objects that a configuration describes: data, net, mesh and compiled steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import optax
from flax import linen as nn

from alexnet_jax import data, models, optim
from alexnet_jax.config import NEVER, Config, flatten
from alexnet_jax.errors import UserError, choose
from alexnet_jax.parallel import Layout, make_layout
from alexnet_jax.preprocess import Preprocess, PreprocessSpec, make_preprocess
from alexnet_jax.runtime.compilation import Program
from alexnet_jax.step import TrainState, init_state, make_predict, make_train_step, zero_sums

LARGEST = 2**31 - 1  # the largest integer of the compiled steps, which count in int32

# Of a program that runs once: on a CPU, the initial weights of the bench's net take 14 s to compile
# with all of LLVM's optimisations and 3 s with these, and are the same to the last bit.
QUICKLY = {"xla_backend_optimization_level": 1}


def _split_names(expression: str) -> list[str]:
    """Returns the splits in an expression such as 'train[:90%]+test', each once and in order."""
    return list(dict.fromkeys(part.partition("[")[0].strip() for part in expression.split("+")))


@dataclass(frozen=True)
class Due:
    """Says which actions follow a step."""

    log: bool
    evaluate: bool
    end_epoch: bool
    save: bool


@dataclass(frozen=True)
class Run:
    """Holds what a configuration describes, ready to train or to evaluate.

    Attributes:
        config: the configuration.
        data: the opened data set.
        model: the whole net, as a single device would run it.
        layout: the mesh, and how the batch and the net lie on it.
        tx: the update rule.
        schedule: a function from the step to the learning rate, before the plateau's divisions.
        preprocess: the function from crops to the net's input, which runs on the device.
        train_step: the compiled function from (state, batch) to (state, sums), which reuses the
            memory of the old state.
        predict: the compiled function from (params, batch) to log-probabilities [B, classes].
        steps_per_epoch: the number of full batches in the training set.
        total_steps: the number of steps at which the run ends.
    """

    config: Config
    data: data.Data
    model: nn.Module
    layout: Layout
    tx: optax.GradientTransformationExtraArgs
    schedule: Callable
    preprocess: Preprocess
    train_step: Program
    predict: Program
    steps_per_epoch: int
    total_steps: int

    @property
    def eval_split_name(self) -> str:
        """Returns the name of the evaluation split without slices, such as 'validation' or 'test'.

        It is 'eval' where the evaluation split is a part of the training split.
        """
        own, training = map(_split_names, (self.config.data.eval_split, self.data.spec.train_split))
        return "eval" if {"train", *training} & {*own} else "+".join(own)

    @property
    def log_every_steps(self) -> int:
        """Returns the steps from one logged step to the next, at most an epoch."""
        return min(self.config.log_every_steps, self.steps_per_epoch)

    def due(self, step: int) -> Due:
        """Decides which actions are due after `step` steps; after the last step all are."""
        config, end = self.config, step == self.total_steps
        epoch_ends = step % self.steps_per_epoch == 0

        def every(steps: int | None) -> bool:
            if end or steps == NEVER:
                return end
            return epoch_ends if steps is None else step % steps == 0

        return Due(
            log=every(self.log_every_steps),
            # The plateau schedule counts evaluations at epochs' ends, so it needs all of them.
            evaluate=every(config.eval_every_steps)
            or (epoch_ends and config.optim.schedule == "plateau"),
            end_epoch=end or epoch_ends,
            save=every(config.checkpoint_every_steps),
        )

    def abstract_state(self) -> TrainState:
        """Returns the training state as shapes, dtypes and shardings, without values."""
        shapes = jax.eval_shape(self._init, self.config.seed)
        shardings = self.layout.state_shardings(shapes)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )

    def fresh_state(self) -> TrainState:
        """Makes the state at step 0, directly on the devices."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        init = jax.jit(self._init, out_shardings=shardings, compiler_options=QUICKLY)
        return init(self.config.seed)  # an argument: all seeds share the compiled program

    def zero_sums(self) -> dict:
        """Makes sums of zero, on every device."""
        return jax.jit(zero_sums, out_shardings=self.layout.replicated())()

    def _init(self, seed: int | jax.Array) -> TrainState:
        return init_state(self.model, self.tx, seed, self.config.data.image_size)


def assemble(
    config: Config,
    dataset: data.Data | None = None,
    *,
    preprocess: Preprocess | None = None,
    progress: data.Progress = lambda *_: None,
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """Makes the net, the mesh and the compiled steps, and opens the data unless it is given.

    Args:
        config: the configuration.
        dataset: the opened data set; None opens the one that `config.data` names.
        preprocess: the function that makes the net's input; None makes the one that the
            configuration describes, from the statistics of the training split.
        progress: a function called with (what, done, total); a total of 0 means unknown.
        devices: the devices of the mesh; None takes all that are available.

    Raises:
        UserError: the value of a field is impossible, or does not fit the data or the devices.
    """
    _check(config)
    if dataset is None:
        progress(f"opening {config.data.name}", 0, 0)
        dataset = data.open_data(config.data, progress=progress)
    config = suited(config, dataset.num_train)
    model = make_model(config, dataset.num_classes)
    layout = make_layout(
        config.mesh, towers=model.towers, batch_size=config.batch_size, devices=devices
    )
    # The schedule is planned for all epochs, even where num_train_steps ends the run earlier.
    steps_per_epoch, planned_steps = _count_steps(config, dataset.num_train)
    planned = dict(steps_per_epoch=steps_per_epoch, total_steps=planned_steps)
    total_steps = config.num_train_steps or planned_steps
    size = config.data.image_size
    layers = jax.eval_shape(lambda: init_state(model, optax.identity(), 0, size)).params
    optim.check(config.optim, layer_names=list(layers))
    tx = optim.make_optimizer(config.optim, **planned)
    if preprocess is None:
        statistics = data.statistics(dataset, progress=progress)
        dataset = dataset.with_contents(dataset.spec.train_split, statistics.contents)
        until = _noise_until_step(config.preprocess, steps_per_epoch)
        preprocess = make_preprocess(statistics, config.preprocess, noise_until_step=until)
    train_step = make_train_step(model, tx, layout, preprocess)
    options = compiler_options(config, layout)
    return Run(
        config=config,
        data=dataset,
        model=model,
        layout=layout,
        tx=tx,
        schedule=optim.make_schedule(config.optim, **planned),
        preprocess=preprocess,
        train_step=Program(train_step, donate_argnums=0, compiler_options=options),
        predict=Program(make_predict(model, layout, preprocess), compiler_options=options),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def compiler_options(config: Config, layout: Layout) -> dict[str, Any]:
    """Returns XLA's options for the steps, which only its compiler for GPUs reads."""
    options = {}
    if config.deterministic:
        # Without it, XLA may choose other kernels in each run, by their measured times, and may add
        # in the order in which threads arrive. On a CPU the results are the same without it.
        options["xla_gpu_deterministic_ops"] = True
    if layout.mesh.size > 1:
        # Without it, the dense layers' gradients wait until those of the convolutions are sent.
        options["xla_gpu_experimental_parallel_collective_overlap_limit"] = 4
    return options


def suited(config: Config, num_images: int) -> Config:
    """Returns the configuration with numbers that suit the training images where it has None.

    A batch has about an eighth of the images, as a power of two from 4 to 64. About 20,000 images
    are read in 15 to 60 epochs, and each epoch is logged once.
    """
    count = max(num_images, 1)
    batch_size, num_epochs, log = config.batch_size, config.num_epochs, config.log_every_steps
    if batch_size is None:
        batch_size = min(64, max(4, 2 ** round(math.log2(count / 8))))
    if num_epochs is None:
        num_epochs = min(60, max(15, round(20_000 / count)))
    if log is None:
        log = max(1, count // batch_size)
    return replace(config, batch_size=batch_size, num_epochs=num_epochs, log_every_steps=log)


def _count_steps(config: Config, num_train: int) -> tuple[int, int]:
    """Returns the number of steps in an epoch, and in all `num_epochs`.

    Raises:
        UserError: an epoch has no step, or the run has more than the compiled steps can count.
    """
    steps_per_epoch = num_train // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"batch_size={config.batch_size} is more than the {num_train} training examples of "
            f"'{config.data.name}'; lower it"
        )
    planned = config.num_epochs * steps_per_epoch
    if max(config.num_train_steps or 0, planned) > LARGEST:
        raise UserError(f"num_epochs={config.num_epochs}: a run has at most {LARGEST} steps")
    return steps_per_epoch, planned


def _noise_until_step(spec: PreprocessSpec, steps_per_epoch: int) -> int:
    """Returns the first step without colour noise.

    It is the same for every length of the run, so that a longer run finds its program compiled.
    """
    until = spec.colour_noise_until_epoch
    return LARGEST if until is None else round(min(until * steps_per_epoch, LARGEST))


def make_model(config: Config, num_classes: int) -> nn.Module:
    """Makes the net that `config.model` describes; a field of None takes the preset's value.

    Raises:
        UserError: the net cannot have a field's value, or has fewer outputs than `num_classes`.
    """
    fields = {name: value for name, value in vars(config.model).items() if value is not None}
    if fields.setdefault("num_classes", num_classes) < num_classes:
        raise UserError(
            f"model.num_classes={fields['num_classes']}, but '{config.data.name}' has "
            f"{num_classes} classes"
        )
    return models.create(**fields)


def resolve(config: Config, model: nn.Module) -> Config:
    """Returns the configuration with the preset's values for the fields of the model that are None.

    A run records them, so that a later change of the preset does not change the run.
    """
    own = ("name", "module")
    fields = {name: getattr(model, name) for name in vars(config.model) if name not in own}
    return replace(config, model=replace(config.model, **fields))


def _check(config: Config) -> None:
    for name, value in flatten(config).items():
        sizes = isinstance(value, int) or (name == "model.width" and value is not None)
        if sizes and abs(value) > LARGEST:
            raise UserError(f"{name}={value}: must be at most {LARGEST}")
    for name in ("batch_size", "num_epochs", "log_every_steps", "keep_checkpoints"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
    for name in ("num_train_steps", "seed"):
        if (getattr(config, name) or 0) < 0:
            raise UserError(f"{name}={getattr(config, name)}: must not be negative")
    for name in ("eval_every_steps", "checkpoint_every_steps"):
        every = getattr(config, name)
        if every is not None and every < 1 and every != NEVER:
            raise UserError(f"{name}={every}: must be a number of steps, or {NEVER} for never")
    choose(config.on_nonfinite, ("stop", "skip"), "on_nonfinite")
    choose(config.on_save_error, ("stop", "continue"), "on_save_error")
    config.preprocess.check()
