"""From a configuration to objects: the data, the net, the mesh and the compiled steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jaxlib
import optax
from flax import linen as nn

from alexnet_jax import data, models, optim
from alexnet_jax.config import NEVER, Config, ModelSpec, flatten, read_config
from alexnet_jax.errors import UserError, choose
from alexnet_jax.models import conv, forms, operations
from alexnet_jax.models.onednn_trial import has_onednn
from alexnet_jax.parallel import Layout, make_layout
from alexnet_jax.preprocess import Preprocess, make_preprocess
from alexnet_jax.runtime.compilation import Program
from alexnet_jax.step import TrainState, init_state, make_predict, make_train_step, zero_sums

LIBRARIES = {"cuda": "cuDNN", "rocm": "MIOpen"}  # that XLA calls for convolutions
LARGEST = 2**31 - 1  # whole number of the compiled steps, which count in int32


def _split_names(expression: str) -> list[str]:
    """The splits in an expression such as 'train[:90%]+test', each once, in order."""
    return list(dict.fromkeys(part.partition("[")[0].strip() for part in expression.split("+")))


@dataclass(frozen=True)
class Run:
    """What a configuration describes, ready to train or to evaluate.

    Attributes:
        data: the opened data set.
        model: the net, whole, as one device would run it.
        layout: the mesh and what lies where on it.
        tx: the update rule.
        schedule: step -> learning rate, before the plateau's divisions.
        preprocess: what makes the net's input of crops, on the device.
        train_step: compiled (state, batch) -> (state, sums); the old state's memory is reused.
        predict: compiled (params, batch) -> log-probabilities [B, classes].
        steps_per_epoch: full batches in the training set.
        total_steps: where the run ends.
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
        """'validation' or 'test': the evaluation split without slices such as '[:90%]'.

        'eval' where that would be the name of training: a slice of the training split, say.
        """
        own, training = map(_split_names, (self.config.data.eval_split, self.data.spec.train_split))
        return "eval" if {"train", *training} & {*own} else "+".join(own)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state."""
        shapes = jax.eval_shape(self._init)
        shardings = self.layout.state_shardings(shapes)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )

    def fresh_state(self) -> TrainState:
        """The state at step 0, made in place on the devices."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        return jax.jit(self._init, out_shardings=shardings)()

    def zero_sums(self) -> dict:
        """Sums with nothing added yet, on every device."""
        return jax.jit(zero_sums, out_shardings=self.layout.replicated())()

    def _init(self) -> TrainState:
        return init_state(self.model, self.tx, self.config.seed, self.config.data.image_size)


def assemble(
    config: Config,
    dataset: data.Data | None = None,
    *,
    preprocess: Preprocess | None = None,
    progress: data.Progress = lambda *_: None,
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """Opens the data, unless it is given, and builds the net, the mesh and the compiled steps.

    Args:
        config: every field of configs/base.py.
        dataset: the opened data set; None opens the one that `config.data` names.
        preprocess: what makes the net's input; by default as the configuration says, with the
            statistics of the training split, which are computed where they aren't kept.
        progress: called with (what, done, total) by what may take long; total 0: not known.
        devices: those that the mesh is made of; None: all that are here.

    Raises:
        UserError: a field's value is impossible, or fits neither the data nor the devices.
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
    steps_per_epoch = dataset.num_train // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"batch_size={config.batch_size} is more than the {dataset.num_train} training "
            f"examples of '{config.data.name}'; lower it"
        )
    # The schedule is that of the whole run, also where num_train_steps ends it early.
    whole = dict(steps_per_epoch=steps_per_epoch, total_steps=config.num_epochs * steps_per_epoch)
    total_steps = config.num_train_steps or whole["total_steps"]
    if max(total_steps, whole["total_steps"]) > LARGEST:
        raise UserError(f"num_epochs={config.num_epochs}: a run has at most {LARGEST} steps")
    layers = jax.eval_shape(
        lambda: init_state(model, optax.identity(), 0, config.data.image_size).params
    )
    optim.check(config.optim, layer_names=list(layers))
    tx = optim.make_optimizer(config.optim, **whole)

    until = config.preprocess.colour_noise_until_epoch
    if preprocess is None:
        statistics = data.statistics(dataset, progress=progress)
        dataset = dataset.with_contents(dataset.spec.train_split, statistics.contents)
        preprocess = make_preprocess(
            statistics,
            config.preprocess,
            noise_until_step=total_steps
            if until is None
            else round(min(until * steps_per_epoch, total_steps)),
        )
    train_step = make_train_step(model, tx, layout, preprocess)
    predict = make_predict(model, layout, preprocess)
    options = compiler_options(config, layout)
    return Run(
        config=config,
        data=dataset,
        model=model,
        layout=layout,
        tx=tx,
        schedule=optim.make_schedule(config.optim, **whole),
        preprocess=preprocess,
        train_step=Program(train_step, donate_argnums=0, compiler_options=options),
        predict=Program(predict, compiler_options=options),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def suited(config: Config, num_images: int) -> Config:
    """Returns the configuration with the numbers that it leaves to the number of training images.

    A batch has about an eighth of the images, a power of two from 4 to 64. About 20,000 images are
    seen in 15 to 60 epochs, each of which is logged once.
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


def notes(config: Config, run: Run, workdir: Path, step: int) -> list[str]:
    """Says, a line each, what of the run of `config` isn't plain from it; `step` were made."""
    return [
        *chosen_numbers(config, run),
        *beyond_the_end(run),
        *other_length(run, workdir, step),
    ]


def chosen_numbers(config: Config, run: Run) -> list[str]:
    """Says, in a line or none, which numbers suit the images because `config` has none."""
    said = {
        "batch_size": f"batches of {run.config.batch_size}",
        "num_epochs": f"{run.config.num_epochs} epochs of {run.steps_per_epoch} steps",
        "log_every_steps": f"a line each {run.config.log_every_steps} steps",
    }
    left = [text for name, text in said.items() if getattr(config, name) is None]
    if not left:
        return []
    return [f"for {run.data.num_train:,} training images: {', '.join(left)}"]


def opening_lines(run: Run) -> list[str]:
    """Says, a line each, what the run works with: backend, left out images, convolutions."""
    left_out = [
        f"left out of {split}: {line}"
        for split, lines in run.data.left_out.items()
        for line in lines
    ]
    return [*filter(None, [run.data.choice]), *left_out, _convolutions(run)]


def _convolutions(run: Run) -> str:
    """Says which library computes the convolutions of the training step."""
    platform = forms.platform()
    if platform != "cpu":
        return f"convolutions: {LIBRARIES.get(platform, 'XLA')}"
    shares = run.layout.mesh.size
    split = run.layout.name == "towers"  # of the maps of every layer, each device has its tower's
    images = run.config.batch_size // (run.layout.mesh.shape["data"] if split else shares)
    table = operations(run.model, run.config.data.image_size)
    convs = [op for op in table if op.kind in ("conv", "local")]
    large = 0
    for op in convs:
        *sides, inputs, outputs = op.kernel
        parts = op.towers if split or op.reads == "own" else 1
        shapes = (images, *op.input[:2], inputs), (*sides, inputs, outputs // parts)
        arrays = (jax.ShapeDtypeStruct(shape, op.dtype) for shape in shapes)
        large += op.kind == "conv" and conv.suits_onednn(*arrays, op.stride, op.padding)
    if large and not has_onednn():
        return (
            f"convolutions: XLA; oneDNN would be faster for {large} of {len(convs)}, but cannot be"
            f" called in jaxlib {jaxlib.__version__} on this machine"
        )
    counts = {"oneDNN": large, "XLA": len(convs) - large}
    return "convolutions: " + ", ".join(f"{n} by {name}" for name, n in counts.items() if n)


def compiler_options(config: Config, layout: Layout) -> dict[str, Any]:
    """Returns what XLA is told of the steps, which only its compiler for GPUs reads."""
    options = {}
    if config.deterministic:
        # Without it, XLA may time several kernels and take another one in each run, and add in the
        # order in which threads arrive. On a CPU it always computes the same.
        options["xla_gpu_deterministic_ops"] = True
    if layout.mesh.size > 1:
        # Else the dense layers' gradients wait for those of the convolutions to be sent.
        options["xla_gpu_experimental_parallel_collective_overlap_limit"] = 4
    return options


def beyond_the_end(run: Run) -> list[str]:
    """Says, a line each, what the configuration plans for epochs that the run doesn't reach."""
    num_epochs = run.total_steps / run.steps_per_epoch
    length = f"{num_epochs:.4g} epoch{'s' * (num_epochs != 1)}"
    late = optim.unreached(run.config.optim, num_epochs)
    until = run.config.preprocess.colour_noise_until_epoch
    if run.config.preprocess.colour_noise != "none" and until is not None and until >= num_epochs:
        late.append(f"data.colour_noise_until_epoch at {until:g}")
    lines = []
    if late:
        lines.append(
            f"the run ends after {length}: what is set for later falls away ({'; '.join(late)})"
        )
    if run.config.optim.warmup_epochs > num_epochs:
        lines.append(
            f"optim.warmup_epochs={run.config.optim.warmup_epochs:g} outlasts the run of "
            f"{length}: the learning rate ends before it has risen to its full value"
        )
    return lines


def other_length(run: Run, workdir: Path, step: int) -> list[str]:
    """Says, a line each, what changes because the run in `workdir` was begun for another length.

    Args:
        run: the run as it is now.
        workdir: its directory, whose config.json says how it was started before.
        step: steps that it has made.
    """
    if step == 0:
        return []
    epochs = read_config(workdir).num_epochs, run.config.num_epochs
    change = optim.rate_change(
        run.config.optim,
        steps_per_epoch=run.steps_per_epoch,
        total_steps=tuple(run.steps_per_epoch * each for each in epochs),
        start=step,
    )
    if change is None:
        return []
    start, before, now = change
    return [
        f"as num_epochs is now {epochs[1]} and was {epochs[0]}, the learning rate of "
        f"optim.schedule='{run.config.optim.schedule}' changes: from step {start + 1} on it is "
        f"{now:.4g} instead of {before:.4g}"
    ]


def make_model(config: Config, num_classes: int) -> nn.Module:
    """The net that `config.model` describes; fields left at None are the preset's own."""
    fields = {name: value for name, value in vars(config.model).items() if value is not None}
    if fields.setdefault("num_classes", num_classes) < num_classes:
        raise UserError(
            f"model.num_classes={fields['num_classes']}, but '{config.data.name}' has "
            f"{num_classes} classes"
        )
    return models.create(**fields)


def resolve(config: Config, model: nn.Module) -> Config:
    """The configuration with the preset's values where `config.model` leaves them to it.

    What a run records, so that a later change of a preset doesn't change an old run.
    """
    fields = {name: getattr(model, name) for name in vars(config.model) if name != "name"}
    return replace(config, model=ModelSpec(name=config.model.name, **fields))


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
            raise UserError(
                f"{name}={every}: must be a number of steps, {NEVER} for never, or none"
            )
    choose(config.on_nonfinite, ("stop", "skip"), "on_nonfinite")
    choose(config.on_save_error, ("stop", "continue"), "on_save_error")
    config.preprocess.check()
