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
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from alexnet_jax import cli, models
from alexnet_jax.config import Config, read_config
from alexnet_jax.console import say
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError, choose
from alexnet_jax.features import nearest
from alexnet_jax.records import files
from alexnet_jax.trained import names, pictures, plots
from alexnet_jax.trained.pretrained import Pretrained, open_pretrained
from experiments import analyse, drawing
from experiments.compare import TARGET, AtLeast, by_seed, curve, value
from experiments.definition import Sweep, studies
from experiments.drawing import Drawing
from experiments.record import read_records

PUBLISHED = Path(__file__).parent / "figures"
DRAWN = Path("runs/figures")
SHOWN = 8  # validation images in Figure 4
NEAR = 6  # neighbours of each
INK = plots.LIGHT[1]  # on colours that are pale in both themes
START = {
    "figure1": "from the initial deviations of 2012",
    "activations": "from He's initial scale",
}
BEST = 10.0  # points above the best cell at which a heat map's colours end


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


def activations(name: str) -> Drawing:
    """Draws Figure 1: training error over epochs of each activation, a line a seed, and 25%.

    From the sweep, and of what it lacks from its search, each activation at its best rate there.
    """
    runs = _by_activation(name)
    if not runs:
        raise Missing(f"no records of '{name}': run experiments/sweeps/{name}.py")
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
    caption = (
        f"Figure 1, {START[name]}: training error over epochs{_factor(reached)}; in the paper ReLU "
        f"is at 25% (the line) six times sooner. {drawing.setting(sweep)}, each activation at its "
        f"best rate of a search; {drawing.seeds(every)}, a line each."
    )
    return Drawing(make, caption)


def _by_activation(name: str) -> dict[str, list[dict]]:
    """Returns {activation: its records} of a sweep, or else of the best rate of its search."""
    found: dict[str, list[dict]] = {}
    for line in read_records(name):
        found.setdefault(line["variant"], []).append(line)
    searched: dict[str, list[dict]] = {}
    for line in read_records(f"{name}_search"):
        searched.setdefault(line["variant"].partition(",")[0], []).append(line)

    def order(line: dict) -> tuple:
        epochs = value(line, "epochs_to_25")
        there = not isinstance(epochs, AtLeast)
        return not there, epochs if there else value(line, "train_top1_error")

    for kind, lines in searched.items():
        found.setdefault(kind, [min(lines, key=order)])
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


def dropout_pooling(name: str) -> Drawing:
    """Draws a heat map of the mean validation error of each cell, with its deviation over seeds."""
    sweep, lines = records(name)
    cells = [line["variant"] for line in lines]
    rates = list(dict.fromkeys(cell.partition(", ")[0] for cell in cells))
    poolings = list(dict.fromkeys(cell.partition(", ")[2] for cell in cells))
    errors = {cell: list(by_seed(lines, cell, "top1_error").values()) for cell in set(cells)}
    low = min(map(statistics.fmean, errors.values()))

    def make() -> Figure:
        figure, axes = drawing.axes(3.6)
        means = np.full((len(rates), len(poolings)), np.nan)
        for (row, rate), (column, pooling) in itertools.product(
            enumerate(rates), enumerate(poolings)
        ):
            if own := errors.get(f"{rate}, {pooling}"):
                means[row, column] = statistics.fmean(own)
                spread = f"\n± {statistics.stdev(own):.1f}" if len(own) > 1 else ""
                text = f"{means[row, column]:.1f}{spread}"
                weight = "bold" if means[row, column] == low else "normal"
                place = {"ha": "center", "va": "center"}
                axes.text(column, row, text, color=INK, fontweight=weight, **place)
        # Pale colours only, so that the text reads on all of them.
        colours = {"cmap": "YlOrRd", "vmin": low, "vmax": low + 2 * BEST}
        image = axes.imshow(np.minimum(means, low + BEST), aspect="auto", **colours)
        bar = figure.colorbar(image, ax=axes, label="validation top-1 error, %")
        bar.ax.set_ylim(low, low + BEST)
        ticks = [tick for tick in bar.get_ticks() if low <= tick < low + BEST - 0.5]
        bar.set_ticks(
            [*ticks, low + BEST], labels=[*(f"{t:.0f}" for t in ticks), f"≥ {low + BEST:.0f}"]
        )
        axes.set_xticks(range(len(poolings)), poolings)
        axes.set_yticks(range(len(rates)), rates)
        paper = ("dropout 0.5", "max 3x3")
        if paper[0] in rates and paper[1] in poolings:
            corner = (poolings.index(paper[1]) - 0.5, rates.index(paper[0]) - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=INK, lw=2))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return figure

    caption = (
        "Validation error by dropout rate and pooling: mean and deviation over "
        f"{drawing.seeds(lines)}, the best cell bold, the paper's choice framed. "
        f"{drawing.setting(sweep)}."
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


@dataclass(frozen=True)
class Net:
    """Holds a trained net with its configuration, and where its data set lies."""

    net: Pretrained
    config: Config
    data_dir: str

    @property
    def about(self) -> str:
        """Returns data, net and seed, in words."""
        data = self.config.data
        net = f"{drawing.DATA.get(data.name, data.name)} at {data.image_size} pixels"
        return f"{net}, {self.config.num_epochs} epochs, seed {self.config.seed}"

    def split(self, name: str) -> list[pictures.Picture]:
        """Returns the photographs of a split, as they lie in the set."""
        return pictures.in_source(open_source(self.config.data.name, self.data_dir, name))


def kernels(name: str, net: Net) -> Drawing:
    """Draws Figure 3: conv1's kernels in the net's order, one tower's beside the other's."""
    del name
    kernel = np.asarray(net.net.params["conv1"]["kernel"])
    size, _, _, count = kernel.shape
    share = np.split(analyse.colour_energy(kernel), net.net.model.towers)
    each = count // len(share)
    columns = next(n for n in range(math.ceil(math.sqrt(each)), each + 1) if each % n == 0)

    def make() -> Figure:
        height = 0.4 + drawing.WIDTH / len(share) * each / columns**2
        figure, blocks = drawing.axes(height, ncols=len(share), squeeze=False)
        towers = zip(blocks[0], np.split(kernel, len(share), axis=-1), share, strict=True)
        for number, (axes, own, colour) in enumerate(towers, start=1):
            axes.imshow(_sheet(own, columns), interpolation="nearest")
            axes.axis("off")
            axes.set_title(f"tower {number}: {100 * colour.mean():.0f}% colour", fontsize=8)
        return figure

    caption = (
        f"Figure 3: conv1's {count} kernels of {size}×{size}×3, each on its own scale, all in the "
        "net's order; colour is the share of their energy that is not grey. "
        f"{net.about}, as it was drawn, without choosing."
    )
    return Drawing(make, caption, suffix="png")


def _sheet(kernel: np.ndarray, columns: int) -> np.ndarray:
    """Returns the kernels [h, w, 3, C] in rows of `columns`, transparent between them."""
    size, count = kernel.shape[0], kernel.shape[-1]
    rows = -(-count // columns)
    sheet = np.zeros((rows * (size + 1) - 1, columns * (size + 1) - 1, 4))
    for index in range(count):
        top, left = (index // columns) * (size + 1), (index % columns) * (size + 1)
        one = kernel[..., index]
        sheet[top : top + size, left : left + size, :3] = 0.5 + 0.5 * one / np.abs(one).max()
        sheet[top : top + size, left : left + size, 3] = 1
    return sheet


def predictions(name: str, net: Net) -> Drawing:
    """Draws Figure 4, left: validation photographs with their likeliest classes."""
    del name
    shown, _, about = _photographs(net)
    wrong = sum(each.right != each.bars[0][0] for each in shown)
    caption = (
        f"Figure 4, left: {len(shown)} photographs, evenly spread over the {about}, with their "
        f"likeliest classes; {wrong} of them are taken for another. {net.about}."
    )
    return Drawing(lambda: plots.draw_predictions(shown), caption, wide=True, suffix="jpg")


def neighbours(name: str, net: Net) -> Drawing:
    """Draws Figure 4, right: the same photographs and the nearest ones of training."""
    del name
    _, shown, about = _photographs(net)
    right = sum(near.name == each.query.name for each in shown for near in each.near)
    caption = (
        f"Figure 4, right: the same photographs of the {about}, and the training ones nearest to "
        f"each in fc7, with their Euclidean distances; {right} of {NEAR * len(shown)} are of the "
        f"query's class. {net.about}."
    )
    make = functools.partial(plots.draw_neighbours, shown, "fc7")
    return Drawing(make, caption, wide=True, suffix="jpg")


@functools.lru_cache(maxsize=1)
def _photographs(net: Net) -> tuple[list[plots.Prediction], list[plots.Neighbours], str]:
    """Returns what both halves of Figure 4 show, and of which split."""
    spec = net.config.data
    base, labels, _, features = _answers(net.net, net.split(spec.train_split))
    every = net.split(spec.eval_split)
    # Evenly spread over the split, whose examples may be sorted by class.
    chosen = np.linspace(0, len(every) - 1, SHOWN).round().astype(int)
    queries, own, shares, values = _answers(net.net, [every[place] for place in chosen])
    near, distances = nearest(values, NEAR, features)
    classes = names.english(net.net.class_names)
    shown, rows = [], []
    for query, label, share, places, far in zip(queries, own, shares, near, distances, strict=True):
        image = pictures.thumbnail(query)
        bars = [(classes[k], float(share[k])) for k in np.argsort(-share)[:5]]
        shown.append(plots.Prediction(label, image, bars, right=label))
        alike = [
            plots.Near(pictures.thumbnail(base[p]), labels[p], float(d))
            for p, d in zip(places, far, strict=True)
        ]
        rows.append(plots.Neighbours(plots.Near(image, label), alike))
    return shown, rows, f"{spec.eval_split} split"


def _answers(net: Pretrained, chosen: Sequence[pictures.Picture]) -> tuple:
    """Returns (the pictures that can be read, their classes, probabilities, activations of fc7)."""

    def output(logits, activations):
        return jnp.concatenate([jax.nn.softmax(logits), activations["fc7"]], axis=-1)

    found, labels, rows = zip(*pictures.run(net, chosen, output), strict=True)
    values = np.stack([row[0] for row in rows])
    shares, features = np.split(values, [net.model.num_classes], axis=1)
    return found, names.english(labels), shares, features


FROM_RECORDS: dict[str, Callable[[str], Drawing]] = {
    "architecture": architecture,
    "figure1": activations,
    "activations": activations,
    "dropout_few": dropout,
    "dropout": dropout,
    "dropout_pooling": dropout_pooling,
    "dropout_pooling_long": dropout_pooling,
    "dropout_pooling_few": dropout_pooling,
}
FROM_NETS: dict[str, Callable[[str, Net], Drawing]] = {
    "kernels": kernels,
    "predictions": predictions,
    "neighbours": neighbours,
}


def _net(workdir: str | None, out: Path, data_dir: str) -> Net:
    """Opens the net of the figures that are drawn from one."""
    if not workdir:
        found = analyse.finished(out).get("kernels")
        if not found:
            raise Missing(f"no finished run of experiments/sweeps/kernels.py in '{out}'")
        workdir = out / found[0].folder
    return Net(open_pretrained(workdir), read_config(Path(workdir)), data_dir)


def publish(name: str, drawn: Drawing, folder: Path) -> None:
    """Writes the drawing, and in captions.json beside it what it shows."""
    light, dark = drawing.write(drawn, folder / name)
    path = folder / "captions.json"
    known = json.loads(path.read_text()) if path.exists() else {}
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
    net = functools.cache(lambda: _net(given.workdir, Path(given.out), given.data_dir))
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
