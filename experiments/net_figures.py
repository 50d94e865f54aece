"""Draws the figures of a trained net: its kernels, its answers, and what it finds alike."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from alexnet_jax.config import Config, read_config
from alexnet_jax.data.sources import open_source
from alexnet_jax.features import nearest
from alexnet_jax.trained import names, pictures, plots
from alexnet_jax.trained.pretrained import Pretrained, open_pretrained
from experiments import analyse, drawing
from experiments.drawing import Drawing, Missing

SHOWN = 8  # validation images in Figure 4
NEAR = 6  # neighbours of each


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
        trained = f"{self.config.num_epochs} epochs, seed {self.config.seed}"
        return f"{net}, {trained}, the best checkpoint"  # which `open_net` takes

    def split(self, name: str) -> list[pictures.Picture]:
        """Returns the photographs of a split, as they lie in the set."""
        return pictures.in_source(open_source(self.config.data.name, self.data_dir, name))


def open_net(workdir: str | None, out: Path, data_dir: str) -> Net:
    """Opens the net of the figures that are drawn from one."""
    if not workdir:
        found = [each for each in analyse.finished(out).get("kernels", ()) if each.seed == 0]
        if not found:
            raise Missing(f"seed 0 of experiments/sweeps/kernels.py has not ended in '{out}'")
        workdir = out / found[0].folder
    return Net(open_pretrained(workdir), read_config(Path(workdir)), data_dir)


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
