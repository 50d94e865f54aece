"""Computes a layer's activations of pictures, and finds the pictures that are nearest in them.

python -m alexnet_jax.features [--workdir=RUN | --weights=NAME|FILE]  [--layer=fc7]
    IMAGE|FOLDER …, or --data=NAME --split=SPLIT [--data_dir=DIR]
    [--out=features.npz] [--neighbors=K [--plot=out.png]]

--out writes the arrays `features`, float32 [N, …], of the central view of each picture; `files`;
`labels`, the names of the classes or of the files' folders; and `layer`. --neighbors prints the K
nearest pictures of each, by Euclidean distance (paper, section 6.1). The exit status is 1 if a
picture could not be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags

from alexnet_jax import cli, console
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError, choose, local_path, writing
from alexnet_jax.models import activations
from alexnet_jax.records import files
from alexnet_jax.trained import names, pictures, plots
from alexnet_jax.trained.pretrained import Pretrained, open_pretrained

PLOTTED = 20  # rows of a plot
QUERIES = 256  # how many pictures' distances to all others are computed at once


@dataclass(frozen=True)
class Features:
    """Holds the activations of a layer, float32 [N, …], for N pictures, with their labels."""

    layer: str
    features: np.ndarray
    pictures: list[pictures.Picture]
    labels: list[str]


def features(net: Pretrained, chosen: Sequence[pictures.Picture], *, layer: str) -> Features:
    """Computes the activations of a layer for the central view of each readable picture.

    Raises:
        UserError: the net has no such layer; the line names the nearest one.
    """
    choose(layer, layer_names(net), "layer")
    values, read, labels = np.zeros((0,), np.float32), [], []
    for picture, label, (row,) in pictures.run(net, chosen, lambda _, all_: all_[layer]):
        if not read:  # The array of a large set is made once, as it may fill most of the memory.
            values = np.empty((len(chosen), *row.shape), np.float32)
        values[len(read)] = row
        read.append(picture)
        labels.append(label)
    return Features(layer, values[: len(read)], read, labels)


def layer_names(net: Pretrained) -> list[str]:
    """Returns the names of the net's activations, in its order."""
    return [name for name, *_ in activations(net.model, net.recipe.image_size)]


def nearest(
    values: np.ndarray, count: int, base: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the rows of `base` that are nearest to each row of `values`.

    Args:
        values: the rows, float [N, …].
        count: the number of rows to find for each row.
        base: the rows among which to search, float [M, …]. None searches among `values`, where no
            row finds itself.

    Returns:
        The indices, int [N, count], and the Euclidean distances, float64 [N, count], nearest first.
        Of equal distances, the earlier row comes first.
    """
    rows = values if base is None else base
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean  # Distances do not change, and large common values cost no precision.
    squares = (rows**2).sum(axis=1)
    indices, distances = [], []
    for start in range(0, len(values), QUERIES):
        queries = values[start : start + QUERIES]
        queries = queries.reshape(len(queries), -1) - mean
        squared = (queries**2).sum(axis=1)[:, None] + squares - 2 * queries @ rows.T
        if base is None:
            own = np.arange(len(queries))
            squared[own, start + own] = np.inf
        order = np.argsort(squared, axis=1, kind="stable")[:, :count]
        indices.append(order)
        distances.append(np.sqrt(np.maximum(np.take_along_axis(squared, order, axis=1), 0)))
    return np.concatenate(indices), np.concatenate(distances)


def save(path: str | Path, found: Features) -> None:
    """Writes the arrays `features`, `files`, `labels` and `layer` to an npz file.

    Raises:
        UserError: it cannot be written; the file is then not changed.
    """
    with writing(path), files.replacing(local_path(path)) as file:
        np.savez(
            file,
            features=found.features,
            files=np.array([picture.name for picture in found.pictures], dtype=np.str_),
            labels=np.array(found.labels, dtype=np.str_),
            layer=np.array(found.layer),
        )


def show(
    path: str,
    files: Sequence[str],
    *,
    layer: str = "fc7",
    data: str | None = None,
    split: str | None = None,
    data_dir: str = "",
    out: str | None = None,
    neighbors: int = 0,
    plot: str | None = None,
) -> int:
    """Computes, saves and prints features with the net at `path`; returns the exit status.

    The pictures are `files`, or those of a split of the data set `data`.

    Raises:
        UserError: a called function raises it, the options contradict each other, or there is
            nothing to do.
    """
    if not out and not neighbors:
        raise UserError("nothing to do: give --out=features.npz, --neighbors=K, or both")
    if plot and not neighbors:
        raise UserError("--plot draws neighbours: say how many, e.g. --neighbors=6")
    if bool(data) == bool(files) or bool(data) != bool(split):
        raise UserError(
            "no pictures: name images or folders, or both --data=NAME and --split=SPLIT"
        )
    out, plot = (path and local_path(path) for path in (out, plot))
    chosen = (
        pictures.in_source(open_source(data, data_dir, split)) if data else pictures.find(files)
    )
    if not 0 <= neighbors < len(chosen):
        raise UserError(f"--neighbors={neighbors}: there are only {len(chosen)} pictures")
    found = features(open_pretrained(path), chosen, layer=layer)
    if out:
        save(out, found)
        shape = " x ".join(map(str, found.features.shape))
        console.say(f"features: {out}  {layer}  {shape}")
    if plot and len(found.pictures) < 2:
        console.say("no plot: no two pictures could be read, so none has a neighbour")
        plot = None
    if neighbors and found.pictures:
        _show_neighbours(found, neighbors, plot)
    return 1 if len(found.pictures) < len(chosen) else 0


def _show_neighbours(found: Features, count: int, plot: str | None) -> None:
    indices, distances = nearest(found.features, min(count, len(found.pictures) - 1))
    for picture, own, far in zip(found.pictures, indices, distances, strict=True):
        console.say(picture.name)
        for i, distance in zip(own, far, strict=True):
            console.say(f"  {distance:10.4g}  {found.pictures[i].name}")
    if plot:
        labels = names.english(found.labels)

        def shown(i: int, distance: float | None = None) -> plots.Near:
            return plots.Near(pictures.thumbnail(found.pictures[i]), labels[i], distance)

        rows = [
            plots.Neighbours(
                shown(query), list(map(shown, indices[query], distances[query].tolist()))
            )
            for query in range(min(PLOTTED, len(found.pictures)))
        ]
        plots.neighbours(plot, rows, found.layer)
        console.say(f"plot: {plot}")


def main(files):
    """Computes and shows features; returns the exit status."""
    options = ("layer", "data", "split", "data_dir", "out", "neighbors", "plot")
    return show(pictures.net_path(), files, **{name: flags.FLAGS[name].value for name in options})


if __name__ == "__main__":
    pictures.define_flags()
    flags.DEFINE_string("layer", "fc7", "The activation, such as conv1, pool5 or fc6.")
    flags.DEFINE_string("data", None, "A data set to read instead of files, as in data.name.")
    flags.DEFINE_string("split", None, "The split of --data.")
    flags.DEFINE_string("data_dir", "", "The folder of TFDS's data sets.")
    cli.define_path("out", None, "The npz file to write.", result=True)
    flags.DEFINE_integer("neighbors", 0, "How many of the nearest pictures to print for each.")
    drawn = dict(result=True, suffixes=plots.SUFFIXES)
    cli.define_path("plot", None, "An image file to draw the neighbours into.", **drawn)
    cli.run(main, takes_files=True)
