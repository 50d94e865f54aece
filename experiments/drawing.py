"""What the figures and the report's charts share: their form, their files and what they are of."""

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from alexnet_jax.errors import UserError
from alexnet_jax.trained import plots
from experiments.definition import Sweep, configuration
from experiments.measures import MEASURES, AtLeast, by_seed, curve

WIDTH = 4.8  # inches: as wide as a telephone shows without making the letters smaller
DATA = {
    "imagenette/160px-v2": "Imagenette",
    "cifar10_jpeg": "CIFAR-10 re-encoded as JPEG",
    "cifar10": "CIFAR-10",
    "imagenet2012": "ImageNet",
    "photos": "the photos set",
}


class Missing(UserError):
    """Reports that there is nothing to draw from yet."""


def no_records(name: str) -> Missing:
    """Returns the error where a sweep has no records, or too few, for its figure."""
    return Missing(f"no records of '{name}': run experiments/sweeps/{name}.py")


@dataclass(frozen=True)
class Drawing:
    """Holds a figure before it has colours.

    Attributes:
        make: draws it in matplotlib's present settings.
        caption: what it shows: data, net, seeds.
        wide: whether it has to be scrolled on a telephone.
        suffix: of its files: "svg", "png" of few colours, "jpg" of photographs.
    """

    make: Callable[[], Figure]
    caption: str
    wide: bool = False
    suffix: str = "svg"


def write(drawing: Drawing, stem: Path) -> tuple[str, str]:
    """Writes the drawing for light and for dark pages; returns the names of both files."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    names = f"{stem.name}.{drawing.suffix}", f"{stem.name}-dark.{drawing.suffix}"
    for name, dark in zip(names, (False, True), strict=True):
        with plots.theme(dark):
            plots.save(drawing.make(), stem.parent / name)
    return names


def setting(sweep: Sweep) -> str:
    """Returns a sweep's data, size of image and net, in words."""
    config = configuration(sweep, sweep.baseline, 0)
    data = DATA.get(config.data.name, config.data.name)
    if "[" in config.data.train_split:
        data += f" ({config.data.train_split})"
    return (
        f"{data}, {config.data.image_size} pixels, {Path(sweep.base).relative_to('configs').stem}"
    )


def seeds(lines: Sequence[dict]) -> str:
    """Returns how many seeds each variant in the records has."""
    counts = Counter(line.get("variant") for line in lines).values()
    low, high = min(counts), max(counts)
    if low < high:
        return f"{low} to {high} seeds"
    return "one seed" if low == 1 else f"{low} seeds"


def axes(height: float = 3.2, width: float = WIDTH, **options):
    """Makes a figure of one plot or of several; returns (figure, axes)."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(**options)


def points(lines: Sequence[dict], name: str) -> tuple[list, list]:
    """Returns the epochs at which the curve has a number, and the numbers."""
    known = [line for line in lines if line.get(name) is not None]
    return [line["epoch"] for line in known], [line[name] for line in known]


def dots(sweep: Sweep, lines: Sequence[dict]) -> Figure:
    """Draws the first measure of every variant: a dot a seed, and a line at their mean."""
    measure = sweep.measures[0]
    values = {name: list(by_seed(lines, name, measure).values()) for name in sweep.variants}
    values = {name: own for name, own in values.items() if own and name not in sweep.sources}
    figure, plot = axes(0.9 + 0.27 * len(values))
    for place, (name, own) in enumerate(values.items()):
        colour = "C1" if name == sweep.baseline else "C0"
        known = [value for value in own if value is not None and not isinstance(value, AtLeast)]
        plot.plot(known, [place] * len(known), "o", ms=4, color=colour, alpha=0.7)
        for value in own:
            if isinstance(value, AtLeast):
                plot.plot(value, place, ">", ms=5, color=colour)
        if known:
            plot.plot(statistics.fmean(known), place, "|", ms=14, mew=2, color=colour)
    plot.set_yticks(range(len(values)), [name[:34] for name in values])
    plot.set(xlabel=MEASURES[measure].title, ylim=(len(values) - 0.5, -0.5))
    plot.grid(axis="x", alpha=0.3, lw=0.6)
    return figure


def curves(groups: dict[str, Sequence[dict]]) -> Figure:
    """Draws top-1 error over epochs of a few groups of runs: evaluation, and dotted training."""
    figure, plot = axes(3.0)
    colours = (f"C{number}" for number in itertools.count())
    for (name, lines), colour in zip(groups.items(), colours, strict=False):
        for number, line in enumerate(lines):
            label = None if number else name[:34]
            training, evaluated = (points(curve(line, training=t), "top1_error") for t in (1, 0))
            plot.plot(*training, color=colour, lw=0.9, ls=":")
            plot.plot(*evaluated, color=colour, lw=1.3, label=label, marker="." * (number == 0))
    plot.set(xlabel="epoch", ylabel="top-1 error, %")
    plot.set_xlim(left=0)
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.2)
    return figure


def history(groups: dict[str, Sequence[float]], unit: str) -> Figure:
    """Draws numbers in the order of their records, a line for each thing measured."""
    figure, plot = axes(2.4 + 0.16 * len(groups))
    for name, values in groups.items():
        plot.plot(np.arange(1, len(values) + 1), values, marker="o", ms=4, lw=1.2, label=name)
    plot.set(xlabel="record", ylabel=unit)
    plot.set_ylim(bottom=0)
    plot.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper left", handlelength=1.2)
    return figure
