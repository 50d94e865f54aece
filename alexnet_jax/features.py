"""What a layer says of pictures: its activations, and which pictures are alike in them.

python -m alexnet_jax.features [--workdir=RUN | --weights=NAME|FILE]  [--layer=fc7]
    IMAGE|FOLDER …, or --data=NAME --split=SPLIT [--data_dir=DIR]
    [--out=features.npz] [--neighbors=K [--plot=out.png]]

--out keeps `features` float32 [N, …] of each picture's central view, `files`, `labels` (the name
of the class, or of the file's folder) and `layer`. --neighbors names each picture's K nearest
others, by Euclidean distance (paper, section 6.1). Exits with 1 where a picture could not be read.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags

from alexnet_jax import cli, console
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError, choose, local_path, writing
from alexnet_jax.records import files
from alexnet_jax.trained import pictures, plots
from alexnet_jax.trained.pretrained import Pretrained, open_pretrained

PLOTTED = 20  # rows of a plot
QUERIES = 256  # pictures whose distances to all others are computed at once


@dataclass(frozen=True)
class Features:
    """Activations float32 [N, …] of `layer`, of the N `pictures`, with their N `labels`."""

    layer: str
    features: np.ndarray
    pictures: list[pictures.Picture]
    labels: list[str]


def features(net: Pretrained, chosen: Sequence[pictures.Picture], *, layer: str) -> Features:
    """Computes the activations of `layer` for each picture that can be read, from its central view.

    Raises:
        UserError: the net has no such layer; the line names the nearest.
    """
    choose(layer, layer_names(net), "layer")
    rows = list(pictures.run(net, chosen, lambda _, activations: activations[layer]))
    values = [row[0].astype(np.float32) for *_, row in rows]
    return Features(
        layer=layer,
        features=np.stack(values) if values else np.zeros((0,), np.float32),
        pictures=[picture for picture, *_ in rows],
        labels=[label for _, label, _ in rows],
    )


def layer_names(net: Pretrained) -> list[str]:
    """Returns the names of the net's activations, in its order."""
    size = net.recipe.image_size
    return [name for name, *_ in console.layer_rows(net.model, (size, size, 3))]


def nearest(
    values: np.ndarray, count: int, base: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the rows of `base` that are nearest to each row of `values`.

    Args:
        values: float [N, …].
        count: how many to find for each row.
        base: float [M, …]; without it `values` themselves, of which each row leaves itself out.

    Returns:
        Their indices int [N, count] and Euclidean distances float64 [N, count], nearest first;
        of equal distances the earlier row comes first.
    """
    rows = values if base is None else base
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean  # distances stay, and large common parts don't cost precision
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
    """Writes the arrays `features`, `files`, `labels` and `layer` to an npz file, whole or not.

    Raises:
        UserError: it cannot be written.
    """
    file = io.BytesIO()
    np.savez(
        file,
        features=found.features,
        files=np.array([picture.name for picture in found.pictures], dtype=np.str_),
        labels=np.array(found.labels, dtype=np.str_),
        layer=np.array(found.layer),
    )
    with writing(path):
        files.replace(local_path(path), file.getvalue())


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
    """Computes features with the net at `path`, saves and prints them; returns the exit status.

    They are those of `files`, or of a split of the data set `data`.

    Raises:
        UserError: see `pictures.find`, `open_source`, `open_pretrained`, `features` and `save`;
            the options ask for nothing, or for too much.
    """
    if not out and not neighbors:
        raise UserError("nothing to do: give --out=features.npz, --neighbors=K, or both")
    if plot and not neighbors:
        raise UserError("--plot draws neighbours: say how many, e.g. --neighbors=6")
    if bool(data) == bool(files) or bool(data) != bool(split):
        raise UserError("of what? Name images or folders, or give --data=NAME and --split=SPLIT")
    out, plot = (path and local_path(path) for path in (out, plot))
    chosen = (
        pictures.in_source(open_source(data, data_dir, split)) if data else pictures.find(files)
    )
    if not 0 <= neighbors < len(chosen):
        raise UserError(f"--neighbors={neighbors}: {len(chosen)} pictures have fewer others")
    found = features(open_pretrained(path), chosen, layer=layer)
    if out:
        save(out, found)
        shape = " x ".join(map(str, found.features.shape))
        console.say(f"features: {out}  {layer}  {shape}")
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

        def thumbnail(i: int) -> np.ndarray:
            return pictures.thumbnail(found.pictures[i])

        rows = [
            plots.Neighbours(
                thumbnail(query),
                [
                    (thumbnail(i), far)
                    for i, far in zip(indices[query], distances[query], strict=True)
                ],
            )
            for query in range(min(PLOTTED, len(found.pictures)))
        ]
        plots.neighbours(plot, rows)
        console.say(f"plot: {plot}")


def main(files):
    """Takes and shows features; returns the exit status."""
    names = ("layer", "data", "split", "data_dir", "out", "neighbors", "plot")
    return show(pictures.net_path(), files, **{name: flags.FLAGS[name].value for name in names})


if __name__ == "__main__":
    pictures.define_flags()
    flags.DEFINE_string("layer", "fc7", "The activation, such as conv1, pool5, fc6.")
    flags.DEFINE_string("data", None, "A data set to read instead of files, as in data.name.")
    flags.DEFINE_string("split", None, "Its split.")
    flags.DEFINE_string("data_dir", "", "Where TFDS's data sets lie.")
    cli.define_path("out", None, "The npz file to write.")
    flags.DEFINE_integer("neighbors", 0, "How many nearest pictures to name for each.")
    cli.define_path("plot", None, "An image file to draw the neighbours into.")
    cli.run(main, takes_files=True)
