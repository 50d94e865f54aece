"""Draws the paper's figures from recorded results and from checkpoints.

    python -m experiments.figures [NAME …] [--out=runs/sweeps] [--workdir=RUN] [--data_dir=DIR]
        [--write]

Draws runs/figures/NAME.png and .svg; with --write the published ones, experiments/figures.
Without names: all whose records or runs are there.
Kernels, predictions and neighbours are of the run in --workdir, or else of seed 0: kernels of
sweeps/kernels.py, the others of the bench's baseline.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from alexnet_jax import cli, models
from alexnet_jax.console import say
from alexnet_jax.errors import UserError, choose
from alexnet_jax.evaluate import load_run
from alexnet_jax.features import nearest
from alexnet_jax.trained import names, plots
from experiments import analyse
from experiments.compare import TARGET, AtLeast, by_seed, curve
from experiments.definition import Sweep, studies
from experiments.record import read_records

PUBLISHED = Path(__file__).parent / "figures"
DRAWN = Path("runs/figures")
COLOURS = ("#1f5fa8", "#d1495b", "#4f9d69", "#8a6bbe")
INK = "#222222"
SHOWN = 8  # validation images in Figure 4
UNDER = {"lrn": "LRN", "max_pool": "pool", "drop": "dropout"}  # a layer in Figure 2


class Missing(UserError):
    """Reports that there is nothing to draw from yet."""


def records(name: str) -> tuple[Sweep, list[dict]]:
    """Holds a sweep with its records.

    Raises:
        Missing: there are none.
    """
    lines = read_records(name)
    if not lines:
        raise Missing(f"no records of '{name}': run experiments/sweeps/{name}.py")
    return studies()[name], lines


def _axes(width: float, height: float, **options):
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(**options)
    for each in np.ravel(axes):
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
        each.xaxis.label.set_size(9)
        each.yaxis.label.set_size(9)
    return figure, axes


def _save(figure: Figure, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        # Without a date, and with names that don't change, the same records give the same file.
        extra = {"metadata": {"Date": None}} if suffix == "svg" else {}
        with rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / f"{name}.{suffix}", **extra)


def activations(name: str, folder: Path) -> None:
    """Draws Figure 1: the training error over epochs of each activation and seed, and 25%."""
    sweep, lines = records(name)
    figure, axes = _axes(5.6, 3.8)
    reached = {}
    for variant, colour in zip(sweep.variants, COLOURS, strict=False):
        epochs = by_seed(lines, variant, "epochs_to_25").values()
        rate = sweep.variants[variant]["optim.learning_rate"]
        shown = f"{variant}, rate {rate:g}: "
        if not epochs:
            continue
        if not any(isinstance(each, AtLeast) for each in epochs):
            reached[variant] = statistics.fmean(epochs)
            shown += f"{reached[variant]:.1f} epochs"
        else:
            shown += f"not in {sweep.variants[variant]['num_epochs']} epochs"
        for number, line in enumerate(each for each in lines if each["variant"] == variant):
            label = None if number else shown
            points = _points(curve(line, training=True), "top1_error")
            axes.plot(*points, color=colour, lw=1.2, alpha=0.8, label=label)
    axes.axhline(TARGET, color=INK, lw=0.8, ls="--")
    axes.annotate("25%", (axes.get_xlim()[1], TARGET), fontsize=8, ha="right", va="bottom")
    axes.set(xlabel="epochs", ylabel="training error, %", ylim=(0, 92), xlim=(0, None))
    axes.set_title(_title(reached), fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False)
    _save(figure, folder, name)


def _points(lines: Sequence[dict], name: str) -> tuple[list, list]:
    return [line["epoch"] for line in lines], [line[name] for line in lines]


def _title(reached: dict[str, float]) -> str:
    paper = "the paper's Figure 1: ReLU 6× sooner than tanh"
    if {"relu", "tanh"} <= reached.keys():
        return f"ReLU {reached['tanh'] / reached['relu']:.1f}× sooner than tanh; {paper}"
    return paper


def dropout(name: str, folder: Path) -> None:
    """Draws training error, validation error and validation loss, with and without dropout."""
    sweep, lines = records(name)
    figure, (errors, losses) = _axes(8.0, 3.6, ncols=2)
    for variant, colour in zip(sweep.variants, COLOURS, strict=False):
        shown = "dropout 0.5" if variant == sweep.baseline else variant.partition(",")[0]
        for number, line in enumerate(each for each in lines if each["variant"] == variant):
            train, valid = (curve(line, training=training) for training in (True, False))
            style = {"color": colour, "lw": 1.2, "alpha": 0.8}
            labels = [
                None if number else f"{shown}, {split}" for split in ("training", "validation")
            ]
            errors.plot(*_points(train, "top1_error"), ls=":", label=labels[0], **style)
            errors.plot(*_points(valid, "top1_error"), label=labels[1], **style)
            losses.plot(*_points(valid, "loss"), label=None if number else shown, **style)
    errors.set(xlabel="epochs", ylabel="top-1 error, %", ylim=(0, 90))
    losses.set(xlabel="epochs", ylabel="validation loss")
    for each in (errors, losses):
        each.legend(fontsize=8, frameon=False)
    errors.set_title(
        "training error: as the steps see it, with their dropout", fontsize=9, loc="left"
    )
    losses.set_title("the paper: about twice the iterations with dropout", fontsize=9, loc="left")
    _save(figure, folder, name)


def dropout_pooling(name: str, folder: Path) -> None:
    """Draws a heat map of the mean validation error of each cell, with its deviation over seeds."""
    _, lines = records(name)
    cells = {line["variant"]: None for line in lines}
    rates = list(dict.fromkeys(cell.partition(", ")[0] for cell in cells))
    poolings = list(dict.fromkeys(cell.partition(", ")[2] for cell in cells))
    means = np.full((len(rates), len(poolings)), np.nan)
    figure, axes = _axes(5.2, 3.8)
    for (row, rate), (column, pooling) in itertools.product(enumerate(rates), enumerate(poolings)):
        values = list(by_seed(lines, f"{rate}, {pooling}", "top1_error").values())
        if not values:
            continue
        means[row, column] = statistics.fmean(values)
        spread = f"\n± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        text = f"{means[row, column]:.1f}{spread}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=INK)
    low, high = np.nanmin(means), np.nanmax(means)
    # Pale colours only, so that the text reads on all of them.
    image = axes.imshow(means, cmap="YlOrRd", aspect="auto", vmin=low, vmax=high + (high - low))
    bar = figure.colorbar(image, ax=axes, label="validation top-1 error, %", boundaries=None)
    bar.ax.set_ylim(low, high)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.label.set_size(9)
    axes.set_xticks(range(len(poolings)), poolings)
    axes.set_yticks(range(len(rates)), rates)
    paper = ("dropout 0.5", "max 3x3")
    if paper[0] in rates and paper[1] in poolings:
        corner = (poolings.index(paper[1]) - 0.5, rates.index(paper[0]) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=INK, lw=2))
    axes.set_title(
        "mean and deviation over seeds; framed: the paper's choice", fontsize=9, loc="left"
    )
    axes.spines[:].set_visible(False)
    _save(figure, folder, name)


def architecture(name: str, folder: Path) -> None:
    """Draws Figure 2 from the module itself, with an arrow to each layer from what it reads."""
    model = models.create("alexnet")
    table = models.operations(model, 224)
    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    centres, middle = [3.2, 0.0], 1.6
    x = 0.0
    _box(axes, x, middle, 0.5, 2.6, "image\n224×224×3", "#dddddd")
    before = [(x + 0.25, middle)]
    for layer, ops in itertools.groupby(table, key=lambda op: op.layer):
        first, *after = ops
        x += 1.3
        shape = first.output
        height = 1.5 if first.dense else 0.7 + 1.7 * shape[0] / 55
        last = first.name == table[-1].layer
        places = [middle] if last else centres
        here = []
        for tower, y in enumerate(places):
            own = shape[-1] // len(places)
            size = f"{own}" if first.dense else f"{shape[0]}×{shape[1]}×{own}"
            _box(axes, x, y, 0.42, height, f"{layer}\n{size}", COLOURS[2 if first.dense else 0])
            reads = [tower] if first.reads == "own" else range(len(before))
            for source in reads:
                crossing = len(before) > 1 and source != tower and not last
                _arrow(axes, before[source], (x - 0.21, y), crossing)
            here.append((x + 0.21, y))
        under = [UNDER[op.kind] for op in after if op.kind in UNDER]
        if not first.dense:
            stride = f"/{first.stride}" if first.stride > 1 else ""
            under = [f"{first.window}×{first.window}{stride}", *under]
        elif under:
            under += [f"{model.dropout:g}"]
        axes.text(x, -1.75, "\n".join(under), ha="center", va="top", fontsize=8, color=INK)
        before = here
    axes.set(xlim=(-0.5, x + 0.6), ylim=(-3.1, 5.2))
    axes.text(-0.4, -3, "two towers; red: what crosses between them", fontsize=9, color=INK)
    _save(figure, folder, name)


def _box(axes, x, y, width, height, text, colour) -> None:
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(Rectangle(corner, width, height, fc=colour, ec=INK, lw=0.8, alpha=0.45))
    axes.text(x, y + height / 2 + 0.06, text, ha="center", va="bottom", fontsize=7.5, color=INK)


def _arrow(axes, start, end, crossing) -> None:
    colour = COLOURS[1] if crossing else "#888888"
    arrow = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=7, color=colour, lw=0.9, shrinkA=0, shrinkB=0
    )
    axes.add_patch(arrow)


@dataclass(frozen=True)
class Runs:
    """Says where checkpoints are found."""

    out: Path
    data_dir: str
    workdir: str | None = None

    def of(self, kind: str):
        """Returns (run, parameters) of `workdir`, or of a kind's first finished run in `out`."""
        if self.workdir:
            return load_run(Path(self.workdir), data_dir=self.data_dir)[:2]
        found = analyse.finished(self.out)
        if kind not in found:
            raise Missing(f"no finished {kind} run in '{self.out}'")
        return analyse.loader(self.out, self.data_dir)(found[kind][0])


def kernels(name: str, folder: Path, runs: Runs) -> None:
    """Draws Figure 3: the kernels of conv1 by colour energy, one tower above the other."""
    run, params = runs.of("kernels")
    kernel = np.asarray(params["conv1"]["kernel"])
    share = analyse.colour_energy(kernel)
    size, columns = kernel.shape[0], 12
    lines = -(-kernel.shape[-1] // 2 // columns)
    figure = Figure(figsize=(7.4, 1.0 + 1.24 * lines), dpi=150, layout="constrained")
    blocks = figure.subplots(2, 1)
    towers = zip(blocks, np.split(kernel, 2, axis=-1), np.split(share, 2), strict=True)
    for number, (axes, own, colour) in enumerate(towers, start=1):
        sheet = np.ones((lines * (size + 1) - 1, columns * (size + 1) - 1, 3))
        for place, index in enumerate(np.argsort(colour)):
            top, left = (place // columns) * (size + 1), (place % columns) * (size + 1)
            one = own[..., index]
            sheet[top : top + size, left : left + size] = 0.5 + 0.5 * one / np.abs(one).max()
        axes.imshow(sheet, interpolation="nearest")
        axes.axis("off")
        text = f"tower {number}: {100 * colour.mean():.0f}% of the energy in colour"
        axes.set_title(text, fontsize=9, loc="left", color=INK)
    what = f"conv1's {kernel.shape[-1]} kernels of {size}×{size}×3, each on its own scale"
    net = f"{run.config.data.name}, {run.config.data.image_size} pixels, seed {run.config.seed}"
    figure.suptitle(f"{what}: {net}", fontsize=9, x=0.01, ha="left", color=INK)
    _save(figure, folder, name)


def predictions(name: str, folder: Path, runs: Runs) -> None:
    """Draws Figure 4: validation images with their most probable classes and nearest neighbours."""
    run, params = runs.of("baseline")
    spec = run.data.spec
    queries = analyse.features(run, params, spec.eval_split)
    base = analyse.features(run, params, spec.train_split)
    # Evenly spread over the split, whose examples may be sorted by class.
    chosen = np.linspace(0, len(queries["labels"]) - 1, SHOWN).round().astype(int)
    classes = names.english(run.data.class_names)
    logits = queries["logits"][chosen]
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    near, distances = nearest(queries["fc7"][chosen], 6, base["fc7"])
    shown, neighbours = [], []
    for index, share, places, far in zip(chosen, shares, near, distances, strict=True):
        image = queries["images"][index]
        bars = [(classes[k], float(share[k])) for k in np.argsort(-share)[:5]]
        right = classes[queries["labels"][index]]
        shown.append(plots.Prediction(title=right, image=image, bars=bars, right=right))
        rows = [(base["images"][p], float(d)) for p, d in zip(places, far, strict=True)]
        neighbours.append(plots.Neighbours(image, rows))
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        plots.predictions(str(folder / f"{name}.{suffix}"), shown)
        plots.neighbours(str(folder / f"neighbours.{suffix}"), neighbours)


FROM_RECORDS: dict[str, Callable] = {
    "architecture": architecture,
    "activations": activations,
    "dropout": dropout,
    "dropout_few": dropout,
    "dropout_pooling": dropout_pooling,
}
FROM_RUNS: dict[str, Callable] = {"kernels": kernels, "predictions": predictions}


def main(chosen: Sequence[str]) -> None:
    """Draws."""
    for name in chosen:
        choose(name, (*FROM_RECORDS, *FROM_RUNS), "figure")
    folder = PUBLISHED if flags.FLAGS.write else DRAWN
    runs = Runs(Path(flags.FLAGS.out), flags.FLAGS.data_dir, flags.FLAGS.workdir)
    for name in chosen or (*FROM_RECORDS, *FROM_RUNS):
        try:
            if name in FROM_RECORDS:
                FROM_RECORDS[name](name, folder)
            else:
                FROM_RUNS[name](name, folder, runs)
        except Missing as error:
            if chosen:
                raise
            say(f"{name}: {error}")
        else:
            say(f"{name}: {folder / name}.png, .svg")


if __name__ == "__main__":
    cli.define_path("out", "runs/sweeps", "Where the runs of the sweeps are.")
    cli.define_path("workdir", None, "The run whose kernels and predictions are drawn.")
    flags.DEFINE_string("data_dir", "", "Where TFDS's data sets lie.")
    flags.DEFINE_boolean("write", False, "Draw the published figures anew.")
    cli.run(main, takes_files=True)
