"""Draws the results of commands with matplotlib, without a screen.

matplotlib is imported only when something is drawn, because most commands draw nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alexnet_jax.errors import UserError

INK, OTHER, RIGHT = "#222222", "#5a7fb5", "#d1495b"  # text, bars, the bar of the right class


@dataclass(frozen=True)
class Prediction:
    """Holds a picture with its most probable classes.

    Attributes:
        title: the name of the picture.
        image: the picture, uint8 [H, W, 3].
        bars: the (class name, probability) of each class.
        right: the name of the correct class; None if it is not known.
    """

    title: str
    image: np.ndarray
    bars: Sequence[tuple[str, float]]
    right: str | None = None


@dataclass(frozen=True)
class Neighbours:
    """Holds a picture and those nearest to it, uint8 [H, W, 3] each, with their distances."""

    image: np.ndarray
    near: Sequence[tuple[np.ndarray, float]]


@dataclass(frozen=True)
class Mistake:
    """Holds a picture uint8 [H, W, 3], its class, and the class and probability of the answer."""

    image: np.ndarray
    right: str
    taken: str
    share: float


def predictions(path: str, shown: Sequence[Prediction]) -> None:
    """Draws each picture with its bars, as in the paper's Figure 4 (left); the correct one is red.

    Raises:
        UserError: `path` cannot be written, or its suffix is not a format of matplotlib.
    """
    columns = min(len(shown), 2 if len(shown) <= 6 else 3)
    rows = math.ceil(len(shown) / columns)
    height = 0.4 + 0.28 * max(len(one.bars) for one in shown)
    height = max(height, 1.7)
    figure = _figure(columns * 4.8, rows * height)
    panels = figure.subfigures(rows, columns, squeeze=False).flat
    for panel, one in zip(panels, shown, strict=False):
        picture, bars = panel.subplots(1, 2, width_ratios=(1, 2))
        _show(picture, one.image)
        title = _printable(one.title[-24:])
        picture.set_title(title, fontsize=6, pad=3, color=INK, parse_math=False)
        names, shares = zip(*one.bars, strict=True)
        places = range(len(names))
        colours = [RIGHT if name == one.right else OTHER for name in names]
        bars.barh(places, shares, color=colours, height=0.86, alpha=0.55)
        for place, name, share in zip(places, names, shares, strict=True):
            # The text is on the bar, because it would not fit behind a long bar.
            text = f"{_printable(name)}  {share:.0%}"
            bars.text(0.02, place, text, va="center", fontsize=8, color=INK, parse_math=False)
        bars.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6))
        bars.axis("off")
    _save(figure, path)


def neighbours(path: str, shown: Sequence[Neighbours]) -> None:
    """Draws each picture in a row with those nearest to it, as in the paper's Figure 4 (right).

    Raises:
        UserError: `path` cannot be written, or its suffix is not a format of matplotlib.
    """
    columns = 1 + max(len(one.near) for one in shown)
    figure = _figure(1.1 * columns + 0.3, 1.25 * len(shown))
    grid = figure.subplots(
        len(shown), columns, squeeze=False, width_ratios=(1.25, *[1] * (columns - 1))
    )
    for axes, one in zip(grid, shown, strict=True):
        for each in axes:
            each.axis("off")
        _show(axes[0], one.image)
        for place, (image, distance) in zip(axes[1:], one.near, strict=False):
            _show(place, image)
            place.set_title(f"{distance:.3g}", fontsize=7, pad=2, color=INK)
    _save(figure, path)


def mistakes(path: str, shown: Sequence[Mistake]) -> None:
    """Draws pictures that were taken for another class, with both classes.

    Raises:
        UserError: as `predictions`.
    """
    columns = min(len(shown), 4)
    rows = math.ceil(len(shown) / columns)
    figure = _figure(2.0 * columns, 2.35 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes in grid:
        axes.axis("off")
    for axes, one in zip(figure.axes, shown, strict=False):
        _show(axes, one.image)
        text = (
            f"{_printable(one.right)[:24]}\ntaken for {_printable(one.taken)[:24]}, {one.share:.0%}"
        )
        axes.set_title(text, fontsize=7, pad=3, color=INK, parse_math=False)
    _save(figure, path)


def confusion(path: str, matrix: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draws a confusion matrix, int [classes, classes], as shares of each class's examples.

    With up to 25 classes, their names and the shares are written as well.

    Raises:
        UserError: `path` cannot be written, or its suffix is not a format of matplotlib.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(names) <= 25
    side = 2.5 + 0.42 * len(names) if few else 9
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.7).ax.tick_params(labelsize=7)
    axes.set_xlabel("taken for", fontsize=9, color=INK)
    axes.set_ylabel("class", fontsize=9, color=INK)
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.tick_params(labelsize=8)
    if few:
        shown = [name[:20] for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=90)
        axes.set_yticks(range(len(names)), shown)
        for (row, column), value in np.ndenumerate(share):
            if value:
                colour = "white" if value > 0.6 else INK
                text = f"{100 * value:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    _save(figure, path)


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _printable(name: str) -> str:
    """Returns a name with escapes for bytes that are not UTF-8, which no font can draw."""
    return name.encode(errors="backslashreplace").decode()


def _show(axes, image) -> None:
    axes.imshow(image)
    axes.axis("off")


def _save(figure, path: str) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"plot '{path}' cannot be written: {error.strerror or error}") from None
    except ValueError as error:  # For example, matplotlib does not know the suffix.
        raise UserError(f"plot '{path}': {' '.join(str(error).split())}") from None
