"""Draws the paper's figures from recorded results and from trained nets.

    python -m experiments.figures [NAME …] [--out=runs/sweeps] [--workdir=RUN] [--data_dir=DIR]
        [--write]

Draws runs/figures/NAME.svg, .png or .jpg for light pages, and NAME-dark for dark ones;
with --write the published ones, experiments/figures, and what they show in captions.json there.
Without names: all whose records or runs are there. Kernels, predictions and neighbours are of the
run in --workdir, or else of seed 0 of sweeps/kernels.py.
"""

import functools
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from alexnet_jax import cli, models
from alexnet_jax.console import say
from alexnet_jax.errors import choose
from alexnet_jax.records import files
from experiments import drawing, findings
from experiments.definition import Sweep, studies
from experiments.drawing import Drawing, Missing
from experiments.heat_maps import dropout_pooling
from experiments.measures import TARGET, AtLeast, curve, value
from experiments.net_figures import Net, kernels, neighbours, open_net, predictions

PUBLISHED = Path(__file__).parent / "figures"
DRAWN = Path("runs/figures")
START = {
    "figure1": "from the initial deviations of 2012",
    "activations": "from He's initial scale",
}


def records(name: str) -> tuple[Sweep, list[dict]]:
    """Returns a sweep and its records.

    Raises:
        Missing: there are none.
        UserError: one is of another configuration than the sweep has now.
    """
    sweep = studies()[name]
    lines = findings.records(sweep)
    if not lines:
        raise drawing.no_records(name)
    return sweep, lines


def activations(name: str) -> Drawing:
    """Draws Figure 1: training error over epochs of each activation, a line a seed, and 25%.

    From the sweep, and of what it lacks from its search, each activation at its best rate there.
    """
    searched = findings.records(studies()[f"{name}_search"])
    runs = _by_activation(findings.records(studies()[name]), searched)
    if not runs:
        raise drawing.no_records(name)
    reached = {
        kind: [value(line, "epochs_to_25") for line in lines] for kind, lines in runs.items()
    }

    def make() -> Figure:
        figure, axes = drawing.axes(3.6)
        last = 40.0  # of the paper's figure
        for (kind, lines), style in zip(runs.items(), ("-", "--", ":", "-."), strict=False):
            colour = f"C{list(runs).index(kind)}"
            for number, line in enumerate(lines):
                epochs, errors = drawing.points(curve(line, training=True), "top1_error")
                last = max(last, epochs[-1])
                label = None if number else _reached(kind, lines, reached[kind])
                shares = [error / 100 for error in errors]
                axes.plot(epochs, shares, style, color=colour, lw=1.2, label=label)
        axes.axhline(TARGET / 100, color=rcParams["text.color"], lw=0.8, ls=(0, (1, 3)))
        axes.annotate("25%", (last, TARGET / 100), fontsize=8, ha="right", va="bottom")
        axes.set(xlabel="Epochs", ylabel="Training error rate", ylim=(0, 0.75), xlim=(0, last))
        axes.legend(loc="upper right")
        return figure

    sweep = studies()[name]
    every = list(itertools.chain(*runs.values()))
    rates = "its best rate of a search" if searched else "one rate"
    caption = (
        f"Figure 1, {START[name]}: training error over epochs{_factor(reached)}; in the paper ReLU "
        f"is at 25% (the line) six times sooner. {drawing.setting(sweep)}, each activation at "
        f"{rates}; {drawing.seeds(every)}, a line each."
    )
    return Drawing(make, caption)


def _by_activation(lines: Sequence[dict], searched: Sequence[dict]) -> dict[str, list[dict]]:
    """Returns {activation: its records} of a sweep, or else of the best rate of its search."""
    found, tried = {}, {}
    for line in lines:
        found.setdefault(line["variant"], []).append(line)
    for line in searched:
        tried.setdefault(line["variant"].partition(",")[0], []).append(line)

    def order(line: dict) -> tuple:
        epochs = value(line, "epochs_to_25")
        there = not isinstance(epochs, AtLeast)
        return not there, epochs if there else value(line, "train_top1_error")

    for kind, rates in tried.items():
        found.setdefault(kind, [min(rates, key=order)])
    kinds = ("relu", "tanh", "sigmoid")
    return {kind: found[kind] for kind in kinds if kind in found}


def _reached(kind: str, lines: Sequence[dict], epochs: Sequence[float]) -> str:
    rate = lines[0].get("overrides", {}).get("optim.learning_rate")
    shown = kind if rate is None else f"{kind}, rate {rate:g}"
    if any(isinstance(each, AtLeast) for each in epochs):
        return f"{shown}: not in {min(epochs):.0f} epochs"
    return f"{shown}: 25% after {statistics.fmean(epochs):.1f}"


def _factor(reached: dict[str, Sequence[float]]) -> str:
    """Returns ', ReLU at 25% 1.1 times sooner than tanh', as far as the runs say it."""
    if not {"relu", "tanh"} <= reached.keys():
        return ""
    if any(isinstance(each, AtLeast) for each in reached["relu"]):
        return ""
    over = statistics.fmean(reached["tanh"]) / statistics.fmean(reached["relu"])
    bound = "at least " if any(isinstance(each, AtLeast) for each in reached["tanh"]) else ""
    return f", ReLU at 25% {bound}{over:.1f} times sooner than tanh"


def dropout(name: str) -> Drawing:
    """Draws training and validation error, and validation loss, with and without dropout."""
    sweep, lines = records(name)

    def make() -> Figure:
        figure, (errors, losses) = drawing.axes(5.4, nrows=2, sharex=True)
        for place, variant in enumerate(sweep.variants):
            shown = "dropout 0.5" if variant == sweep.baseline else variant.partition(",")[0]
            for number, line in enumerate(each for each in lines if each["variant"] == variant):
                style = {"color": f"C{place}", "lw": 1.1}
                labels = (None, None) if number else (f"{shown}, training", f"{shown}, validation")
                train, valid = (curve(line, training=training) for training in (True, False))
                errors.plot(*drawing.points(train, "top1_error"), ls=":", label=labels[0], **style)
                errors.plot(*drawing.points(valid, "top1_error"), label=labels[1], **style)
                losses.plot(*drawing.points(valid, "loss"), label=labels[1], **style)
        errors.set(ylabel="top-1 error, %", ylim=(0, 80))
        losses.set(xlabel="epochs", ylabel="validation loss")
        losses.set_xlim(left=0)
        for each in (errors, losses):
            each.legend()
        return figure

    caption = (
        "Dropout: errors and loss over epochs; training errors are as the steps see them, with "
        "their dropout. The paper: without it the net overfits, and with it it takes "
        f"about twice the iterations. {drawing.setting(sweep)}; "
        f"{drawing.seeds(lines)}, a line each."
    )
    return Drawing(make, caption)


def architecture(name: str) -> Drawing:
    """Draws Figure 2: the paper's net, from the module itself; an arrow wherever a layer reads."""
    del name
    caption = (
        "Figure 2: the paper's net in two towers, drawn from the module: sizes of the maps above "
        "the boxes, and below them kernels and what follows. Red: what crosses between the towers."
    )
    return Drawing(_architecture, caption, wide=True)


def _architecture() -> Figure:
    model = models.create("alexnet")
    table = models.operations(model, 224)
    figure, axes = drawing.axes(4.6, 11)
    axes.axis("off")
    centres, middle = [3.2, 0.0], 1.6
    x = 0.0
    _box(axes, x, middle, 0.5, 2.6, "image\n224×224×3", "C3")
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
            _box(axes, x, y, 0.42, height, f"{layer}\n{size}", "C2" if first.dense else "C0")
            reads = [tower] if first.reads == "own" else range(len(before))
            for source in reads:
                crossing = len(before) > 1 and source != tower and not last
                _arrow(axes, before[source], (x - 0.21, y), crossing)
            here.append((x + 0.21, y))
        text = "\n".join(filter(None, map(_described, (first, *after))))
        axes.text(x, -1.55, text, ha="center", va="top", fontsize=7.5, linespacing=1.35)
        before = here
    axes.set(xlim=(-0.5, x + 0.6), ylim=(-3.3, 5.2))
    return figure


def _described(op: models.Operation) -> str:
    """Returns an operation in a line or two, with window and stride; activations are left out."""
    window = f"{op.window}×{op.window}"
    if op.kind == "conv":
        reads, count = op.kernel[2:]
        stride = f"\nstride {op.stride}" if op.stride > 1 else ""
        return f"{count} kernels\n{window}×{reads}{stride}"
    if op.kind == "dense":
        return f"{op.kernel[0]:,} to\n{op.kernel[1]:,} units"
    if op.kind == "max_pool":
        return f"max pool {window}\nstride {op.stride}"
    return {"lrn": "LRN", "drop": "dropout 0.5"}.get(op.kind, "")


def _box(axes, x, y, width, height, text, colour) -> None:
    corner = (x - width / 2, y - height / 2)
    ink = rcParams["text.color"]
    axes.add_patch(Rectangle(corner, width, height, fc=colour, ec=ink, lw=0.8, alpha=0.45))
    axes.text(x, y + height / 2 + 0.06, text, ha="center", va="bottom", fontsize=7.5)


def _arrow(axes, start, end, crossing) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 7, "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
    colour = "C1" if crossing else rcParams["axes.edgecolor"]
    axes.add_patch(FancyArrowPatch(start, end, color=colour, **style))


FROM_RECORDS: dict[str, Callable[[str], Drawing]] = {
    "architecture": architecture,
    "figure1": activations,
    "activations": activations,
    "dropout_few": dropout,
    "dropout": dropout,
    "dropout_pooling": dropout_pooling,
}
FROM_NETS: dict[str, Callable[[str, Net], Drawing]] = {
    "kernels": kernels,
    "predictions": predictions,
    "neighbours": neighbours,
}


def publish(name: str, drawn: Drawing, folder: Path) -> None:
    """Writes the drawing, and in captions.json beside it what it shows."""
    light, dark = drawing.write(drawn, folder / name)
    path = folder / "captions.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    known[name] = {"light": light, "dark": dark, "caption": drawn.caption, "wide": drawn.wide}
    files.write_json(
        path, {name: known[name] for name in (*FROM_RECORDS, *FROM_NETS) if name in known}
    )
    say(f"{name}: {folder / light}")


def main(chosen: Sequence[str]) -> None:
    """Draws."""
    for name in chosen:
        choose(name, (*FROM_RECORDS, *FROM_NETS), "figure")
    given = flags.FLAGS
    folder = PUBLISHED if given.write else DRAWN
    net = functools.cache(lambda: open_net(given.workdir, Path(given.out), given.data_dir))
    for name in chosen or (*FROM_RECORDS, *FROM_NETS):
        try:
            drawn = (
                FROM_RECORDS[name](name) if name in FROM_RECORDS else FROM_NETS[name](name, net())
            )
        except Missing as error:
            if chosen:
                raise
            say(f"{name}: {error}")
        else:
            publish(name, drawn, folder)


if __name__ == "__main__":
    cli.define_path("out", "runs/sweeps", "Where the runs of the sweeps are.")
    cli.define_path("workdir", None, "The run whose kernels and predictions are drawn.")
    flags.DEFINE_string("data_dir", "", "Where TFDS's data sets lie.")
    flags.DEFINE_boolean("write", False, "Draw the published figures anew.")
    cli.run(main, takes_files=True)
