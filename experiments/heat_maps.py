"""Draws the grids of dropout's rate and the pooling as heat maps, one for each budget."""

import itertools
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from alexnet_jax.trained import plots
from experiments import drawing, findings
from experiments.definition import Sweep, configuration, studies
from experiments.drawing import Drawing
from experiments.measures import by_seed

INK = plots.LIGHT[1]  # on colours that are pale in both themes
BEST = 10.0  # points above the best cell at which a heat map's colours end
BUDGETS = ("", "_few", "_long")  # of the sweeps of the grid


def dropout_pooling(name: str) -> Drawing:
    """Draws a heat map of each budget's grid, one beside the other, of those that are complete.

    A cell is a mean validation error with its deviation over seeds; colours are by the distance
    to the map's best cell.
    """
    grids = []
    for budget in BUDGETS:
        sweep = studies()[f"{name}{budget}"]
        lines = findings.records(sweep)
        if sweep.variants.keys() <= {line["variant"] for line in lines}:
            grids.append((sweep, lines))
    if not grids:
        raise drawing.no_records(name)

    def make() -> Figure:
        width = 1.6 + 2.8 * len(grids)
        figure, blocks = drawing.axes(3.6, width, ncols=len(grids), sharey=True, squeeze=False)
        for axes, (sweep, lines) in zip(blocks[0], grids, strict=True):
            image = _heat_map(axes, lines)
            axes.set_title(_budget(sweep), fontsize=9)
        bar = figure.colorbar(image, ax=blocks, label="points above the best cell")
        bar.ax.set_ylim(0, BEST)
        bar.set_ticks([0, BEST / 2, BEST], labels=["0", f"{BEST / 2:.0f}", f"≥ {BEST:.0f}"])
        return figure

    budgets = "; ".join(f"{_budget(sweep)}, {drawing.seeds(lines)}" for sweep, lines in grids)
    caption = (
        "Validation error, %, by dropout rate and pooling: mean and deviation over seeds, the best "
        f"cell bold, the paper's choice framed. {drawing.setting(grids[0][0])}: {budgets}."
    )
    return Drawing(make, caption, wide=len(grids) > 1)


def _heat_map(axes, lines: Sequence[dict]):
    """Draws one grid of errors; returns its image, coloured by points above the best cell."""
    cells = [line["variant"] for line in lines]
    rates = list(dict.fromkeys(cell.partition(", ")[0] for cell in cells))
    poolings = list(dict.fromkeys(cell.partition(", ")[2] for cell in cells))
    errors = {cell: list(by_seed(lines, cell, "top1_error").values()) for cell in set(cells)}
    low = min(map(statistics.fmean, errors.values()))
    above = np.full((len(rates), len(poolings)), np.nan)
    for (row, rate), (column, pooling) in itertools.product(enumerate(rates), enumerate(poolings)):
        if own := errors.get(f"{rate}, {pooling}"):
            mean = statistics.fmean(own)
            above[row, column] = mean - low
            spread = f"\n± {statistics.stdev(own):.1f}" if len(own) > 1 else ""
            weight = "bold" if mean == low else "normal"
            place = {"ha": "center", "va": "center"}
            axes.text(column, row, f"{mean:.1f}{spread}", color=INK, fontweight=weight, **place)
    # Pale colours only, so that the text reads on all of them.
    colours = {"cmap": "YlOrRd", "vmin": 0, "vmax": 2 * BEST}
    image = axes.imshow(np.minimum(above, BEST), aspect="auto", **colours)
    axes.set_xticks(range(len(poolings)), poolings)
    axes.set_yticks(range(len(rates)), rates)
    paper = ("dropout 0.5", "max 3x3")
    if paper[0] in rates and paper[1] in poolings:
        corner = (poolings.index(paper[1]) - 0.5, rates.index(paper[0]) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=INK, lw=2))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def _budget(sweep: Sweep) -> str:
    """Returns 'all images, 15 epochs', or of the split train[:20%] '20% of the images, …'."""
    config = configuration(sweep, sweep.baseline, 0)
    share = config.data.train_split.partition("[:")[2].rstrip("]")
    return f"{f'{share} of the' if share else 'all'} images, {config.num_epochs} epochs"
