"""Draws the results of commands with matplotlib, without a screen.

matplotlib is imported where it draws: most commands never do. Everything is drawn in the colours of
`theme`, of which there is a light and a dark one; what is right is green, and what is wrong red.
"""

import math
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexnet_jax.errors import UserError

# The ground, the ink, fainter ink, and the colours of lines.
LIGHT = ("#ffffff", "#23241f", "#6b6d64", "#1f6fb4", "#d1495b", "#2a8a57", "#a2641a", "#7a4fb0")
DARK = ("#1e2024", "#e6e4dc", "#a1a29b", "#6ab0ee", "#f0808e", "#6fcf98", "#e0a860", "#bb98ea")
OTHER, WRONG, RIGHT = "C0", "C1", "C2"
SIGNS = {RIGHT: "✓ ", WRONG: "✗ ", OTHER: ""}


@dataclass(frozen=True)
class Prediction:
    """Holds a picture with its most probable classes.

    Attributes:
        title: the picture's name.
        image: uint8 [H, W, 3].
        bars: (class name, probability) of each, the likeliest first.
        right: the name of the right class; None where it isn't known.
    """

    title: str
    image: np.ndarray
    bars: Sequence[tuple[str, float]]
    right: str | None = None


@dataclass(frozen=True)
class Near:
    """Holds a picture, uint8 [H, W, 3], with its name and, of a neighbour, its distance."""

    image: np.ndarray
    name: str
    distance: float | None = None


@dataclass(frozen=True)
class Neighbours:
    """Holds a picture and those nearest to it, whose names are its own where they are alike."""

    query: Near
    near: Sequence[Near]


@dataclass(frozen=True)
class Mistake:
    """Holds a picture uint8 [H, W, 3], its class, and what it was taken for, how surely."""

    image: np.ndarray
    right: str
    taken: str
    share: float


def theme(dark: bool = False) -> AbstractContextManager:
    """Gives the settings under which matplotlib draws and saves for a light or a dark page."""
    import matplotlib

    ground, ink, soft, *colours = DARK if dark else LIGHT
    return matplotlib.rc_context(
        {
            "axes.edgecolor": soft,
            "axes.facecolor": ground,
            "axes.labelcolor": ink,
            "axes.labelsize": 9,
            "axes.prop_cycle": matplotlib.cycler(color=colours),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlecolor": ink,
            "axes.titlelocation": "left",
            "axes.titlesize": 9,
            "figure.constrained_layout.use": True,
            "figure.dpi": 150,
            "figure.facecolor": ground,
            "font.size": 9,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "savefig.dpi": "figure",
            "savefig.facecolor": ground,
            # Ids that don't change: the same numbers give the same file.
            "svg.hashsalt": "alexnet_jax",
            "text.color": ink,
            "xtick.color": soft,
            "xtick.labelcolor": ink,
            "xtick.labelsize": 8,
            "ytick.color": soft,
            "ytick.labelcolor": ink,
            "ytick.labelsize": 8,
        }
    )


def predictions(path: str, shown: Sequence[Prediction]) -> None:
    """Writes `draw_predictions` to a file.

    Raises:
        UserError: `path` cannot be written, or its suffix is not a format of matplotlib.
    """
    with theme():
        save(draw_predictions(shown), path)


def draw_predictions(shown: Sequence[Prediction]):
    """Draws each picture beside its bars, as the paper's Figure 4 (left).

    The right class is marked, and the likeliest one where it is wrong.
    """
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    titles = [_wrapped(one.title) for one in shown]
    lines = max(len(title.splitlines()) for title in titles)
    height = max(1.3, 0.2 + 0.25 * max(len(one.bars) for one in shown)) + 0.15 * lines
    figure = _figure(columns * 4.6, rows * height)
    panels = figure.subfigures(rows, columns, squeeze=False).flat
    for panel, one, title in zip(panels, shown, titles, strict=False):
        picture, bars = panel.subplots(1, 2, width_ratios=(1, 2))
        picture.set_title(title, fontsize=7, pad=3, parse_math=False)
        _show(picture, one.image)
        _bars(bars, one)
    return figure


def _bars(axes, one: Prediction) -> None:
    """Draws each class' name before its bar, its share after it."""
    kinds = [
        RIGHT if name == one.right else WRONG if one.right and not place else OTHER
        for place, (name, _) in enumerate(one.bars)
    ]
    shares = [share for _, share in one.bars]
    places = range(len(shares))
    axes.barh(places, shares, color=kinds, height=0.7)
    for place, share, kind in zip(places, shares, kinds, strict=True):
        text = f"{SIGNS[kind]}{share:.0%}"
        axes.text(share + 0.02, place, text, va="center", fontsize=8, color=kind)
    labels = [_printable(name)[:22] for name, _ in one.bars]
    axes.set_yticks(places, labels, parse_math=False)
    axes.tick_params(length=0)
    axes.set(xlim=(0, 1.25), ylim=(len(shares) - 0.4, -0.6), xticks=())
    axes.spines["bottom"].set_visible(False)


def neighbours(path: str, shown: Sequence[Neighbours], layer: str) -> None:
    """Writes `draw_neighbours` to a file.

    Raises:
        UserError: `path` cannot be written, or its suffix is not a format of matplotlib.
    """
    with theme():
        save(draw_neighbours(shown, layer), path)


def draw_neighbours(shown: Sequence[Neighbours], layer: str):
    """Draws each picture, and in its row those nearest to it, as the paper's Figure 4 (right).

    Neighbours of the query's name are marked as right, others as wrong.
    """
    columns = 1 + max(len(one.near) for one in shown)
    figure = _figure(1.15 * columns + 0.3, 1.35 * len(shown) + 0.4)
    ratios = (1.15, *[1] * (columns - 1))
    grid = figure.subplots(len(shown), columns, squeeze=False, width_ratios=ratios)
    for axes, one in zip(grid, shown, strict=True):
        for each in axes:
            each.axis("off")
        _named(axes[0], one.query, OTHER)
        for place, near in zip(axes[1:], one.near, strict=False):
            _named(place, near, RIGHT if near.name == one.query.name else WRONG)
    header = {"fontsize": 9, "fontweight": "bold", "loc": "left", "pad": 8}
    grid[0][0].set_title("query", **header)
    grid[0][1].set_title(f"nearest in {layer}", **header)
    return figure


def _named(axes, one: Near, kind: str) -> None:
    _show(axes, one.image)
    distance = "" if one.distance is None else f"\n{one.distance:.3g}"
    text = f"{SIGNS[kind]}{_printable(one.name)[:18]}{distance}"
    colour = {} if kind == OTHER else {"color": kind}
    below = {"transform": axes.transAxes, "ha": "center", "va": "top", "fontsize": 6.5}
    axes.text(0.5, -0.03, text, parse_math=False, **below, **colour)


def mistakes(path: str, shown: Sequence[Mistake]) -> None:
    """Draws pictures that were taken for another class, with both classes.

    Raises:
        UserError: as `predictions`.
    """
    columns = min(len(shown), 4)
    rows = math.ceil(len(shown) / columns)
    with theme():
        figure = _figure(2.0 * columns, 2.35 * rows)
        figure.subplots(rows, columns, squeeze=False)
        for axes in figure.axes:
            axes.axis("off")
        for axes, one in zip(figure.axes, shown, strict=False):
            _show(axes, one.image)
            right, taken = (_printable(name)[:24] for name in (one.right, one.taken))
            text = f"{right}\n{SIGNS[WRONG]}{taken}, {one.share:.0%}"
            axes.set_title(text, fontsize=7, pad=3, parse_math=False)
        save(figure, path)


def confusion(path: str, matrix: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draws a confusion matrix, int [classes, classes], as shares of each class's examples.

    With up to 25 classes, their names and the shares are written as well.

    Raises:
        UserError: `path` cannot be written, or its suffix is not a format of matplotlib.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(names) <= 25
    side = 2.5 + 0.42 * len(names) if few else 9
    with theme():
        figure = _figure(side + 1, side)
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        figure.colorbar(image, ax=axes, shrink=0.7).ax.tick_params(labelsize=7)
        axes.set(xlabel="taken for", ylabel="class")
        axes.set_title(_printable(title), parse_math=False)
        if few:
            shown = [_printable(name)[:20] for name in names]
            axes.set_xticks(range(len(names)), shown, rotation=90, parse_math=False)
            axes.set_yticks(range(len(names)), shown, parse_math=False)
            for (row, column), value in np.ndenumerate(share):
                if value:
                    colour = "white" if value > 0.6 else LIGHT[1]
                    text = f"{100 * value:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        save(figure, path)


# What matplotlib draws; to a name without one it would add its own.
SUFFIXES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps", ".ps")


def save(figure, path: str | Path) -> None:
    """Writes the figure to a file whose suffix says how.

    Raises:
        UserError: `path` cannot be written, or ends in no format of matplotlib's.
    """
    # An SVG has a date of its own, which would make each one another file.
    of_kind = {".svg": {"metadata": {"Date": None}}, ".jpg": {"pil_kwargs": {"quality": 88}}}
    extra = of_kind.get(Path(path).suffix, {})
    try:
        figure.savefig(path, **extra)
    except OSError as error:
        raise UserError(f"plot '{path}' cannot be written: {error.strerror or error}") from None
    except ValueError as error:  # Such as a suffix that it doesn't know.
        raise UserError(f"plot '{path}': {' '.join(str(error).split())}") from None


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _printable(name: str) -> str:
    """Returns a name with escapes for bytes that are not UTF-8, which no font can draw."""
    return name.encode(errors="backslashreplace").decode()


def _wrapped(title: str) -> str:
    """Returns a title in up to three lines, of a long one the end."""
    lines = textwrap.wrap(_printable(title), 26, break_on_hyphens=False)
    return "\n".join(lines if len(lines) <= 3 else [f"…{lines[-3][1:]}", *lines[-2:]])


def _show(axes, image) -> None:
    axes.imshow(image)
    axes.axis("off")
