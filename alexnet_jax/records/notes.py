"""Makes the lines that a run prints at its start: what it works with, and what may surprise."""

from pathlib import Path

import jax
import jaxlib
import numpy as np

from alexnet_jax import data, optim
from alexnet_jax.assemble import Run
from alexnet_jax.config import Config, read_config
from alexnet_jax.data import copies, decoded, overlap
from alexnet_jax.data.identity import some
from alexnet_jax.models import conv, forms, operations
from alexnet_jax.models.onednn_trial import has_onednn

LIBRARIES = {"cuda": "cuDNN", "rocm": "MIOpen"}  # those that XLA calls for convolutions


def notes(config: Config, run: Run, workdir: Path, step: int) -> list[str]:
    """Returns lines about what `config` alone does not tell of a run that has made `step` steps."""
    return [
        *chosen_numbers(config, run),
        *beyond_the_end(run),
        *other_length(run, workdir, step),
    ]


def chosen_numbers(config: Config, run: Run) -> list[str]:
    """Returns a line about the numbers that were chosen because they are None in `config`."""
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
    """Returns lines about what the run works with: backend, places, images, convolutions."""
    left_out = [
        f"left out of {split}: {line}"
        for split, lines in run.data.left_out.items()
        for line in lines
    ]
    lines = [*filter(None, [run.data.choice]), *run.data.places, *left_out]
    if run.data.shared:
        lines.append(overlap.line(run.data.shared, run.data.num_eval))
    return [*lines, *_missing_classes(run.data), _convolutions(run)]


def _missing_classes(opened: data.Data) -> list[str]:
    """Returns a line for each split whose labels are known and lack a class, as a slice may."""
    lines = []
    for split, held in opened.splits.items():
        if isinstance(held, copies.Copy | decoded.Squares):
            there = np.unique(held.labels[held.mask > 0])
            lacking = [name for i, name in enumerate(opened.class_names) if i not in there]
            if lacking:
                count = f"{len(lacking)} of {opened.num_classes} classes"
                lines.append(f"split {split!r} has no image of {count}: {some(lacking)}")
    return lines


def _convolutions(run: Run) -> str:
    """Returns a line about the library that computes the training step's convolutions."""
    platform = forms.platform()
    if platform != "cpu":
        return f"convolutions: {LIBRARIES.get(platform, 'XLA')}"
    shares = run.layout.mesh.size
    split = run.layout.name == "towers"  # Each device then has one tower's maps of every layer.
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


def beyond_the_end(run: Run) -> list[str]:
    """Returns lines about what the configuration sets for nothing, or for after the run's end."""
    num_epochs = run.total_steps / run.steps_per_epoch
    length = f"{num_epochs:.4g} epoch{'s' * (num_epochs != 1)}"
    spec = run.config.optim
    late = optim.unreached(spec, num_epochs)
    if spec.schedule == "dexp":  # whose parts are those of num_epochs
        planned = optim.dexp_drops(spec, run.steps_per_epoch * run.config.num_epochs)
        if drops := [f"{step:,}" for step in planned if step >= run.total_steps]:
            late.append(f"drops of optim.schedule='dexp' after steps {', '.join(drops)}")
    until = run.config.preprocess.colour_noise_until_epoch
    if run.config.preprocess.colour_noise != "none" and until is not None and until >= num_epochs:
        late.append(f"data.colour_noise_until_epoch at {until:g}")
    lines = [
        f"optim.{field} has no effect, because optim.{by} is '{getattr(spec, by)}'"
        for field, by in (("drop_epochs", "schedule"), ("bias_drop_epochs", "bias_schedule"))
        if getattr(spec, field) and getattr(spec, by) != "epochs"
    ]
    if late:
        lines.append(
            f"the run ends after {length}: what is set for later is left out ({'; '.join(late)})"
        )
    if spec.warmup_epochs > num_epochs:
        lines.append(
            f"optim.warmup_epochs={spec.warmup_epochs:g} is longer than the run of "
            f"{length}: the learning rate does not reach its full value"
        )
    return lines


def other_length(run: Run, workdir: Path, step: int) -> list[str]:
    """Returns lines about what changes because the run was started with another length before.

    Args:
        run: the run as it is now.
        workdir: its directory, whose config.json holds the previous configuration.
        step: the number of steps that it has made.
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
        f"num_epochs is now {epochs[1]} and was {epochs[0]}, so the learning rate of "
        f"optim.schedule='{run.config.optim.schedule}' changes: from step {start + 1} on it is "
        f"{now:.4g} instead of {before:.4g}"
    ]
