"""Finds pictures in files, folders or a data set, and runs a trained net on them.

`classify` and `features` share it.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags

from alexnet_jax import cli
from alexnet_jax.data import decode, files
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError, local_path, missing
from alexnet_jax.runtime.compilation import Program
from alexnet_jax.trained import shipped
from alexnet_jax.trained.pretrained import Pretrained

CROPS = 64  # crops in a batch, which is divided by the views of each picture


@dataclass(frozen=True)
class Picture:
    """Represents one encoded image.

    Attributes:
        name: its file, or its place in its data set.
        read: a function that returns the encoded bytes and the name of the class or folder, which
            is empty for an image without a label; it may raise OSError and ValueError.
    """

    name: str
    read: Callable[[], tuple[bytes, str]]


def define_flags() -> None:
    """Defines --workdir and --weights, one of which names the net."""
    cli.define_path("workdir", None, "The run whose best checkpoint is used.")
    cli.define_path(
        "weights",
        None,
        "A net that comes with the package, or the folder of import_weights or export, or a file "
        f"in it. Default, without --workdir: {shipped.DEFAULT}.",
    )


def net_path() -> str:
    """Returns what the flags of `define_flags` name, or else a net that comes with the package.

    Raises:
        UserError: both flags are given.
    """
    workdir, weights = flags.FLAGS.workdir, flags.FLAGS.weights
    if workdir and weights:
        raise UserError("which net? Give either --workdir=RUN or --weights=FILE")
    return workdir or weights or shipped.DEFAULT


def find(names: Sequence[str]) -> list[Picture]:
    """Finds the image files that are named, and those in or below the folders that are named.

    In folders, images are recognised by their suffix, and other files are left out with a line on
    stderr. Linked folders are followed.

    Raises:
        UserError: nothing is named, a file does not exist, or a folder holds no image.
    """
    if not names:
        raise UserError("no pictures: name image files or folders after the options")
    return [_file(path) for name in names for path in _images(local_path(name))]


def in_source(source: Source) -> list[Picture]:
    """Lists the examples of a data set's split, in order."""

    def read(i: int) -> tuple[bytes, str]:
        encoded, label = source.read(i)
        return encoded, source.class_names[label] if source.has_label(label) else ""

    count = range(source.num_examples)
    return [Picture(source.describe(i), functools.partial(read, i)) for i in count]


def run(
    net: Pretrained, pictures: Sequence[Picture], output: Callable, *, views: int = 1
) -> Iterator[tuple[Picture, str, np.ndarray]]:
    """Runs the net on the pictures in order.

    A picture that cannot be decoded is left out, with a line on stderr that gives the reason.

    Args:
        net: the net with its preprocessing.
        pictures: the pictures, as `find` or `in_source` returns them.
        output: a function from the logits [N, classes] and the activations by name to an array
            [N, ...], which is compiled with the net. It is compiled once, because the last batch is
            padded to the shape of the others.
        views: the number of crops of each picture: 1, 9 or 10.

    Yields:
        Each picture, its label, and its array [views, ...].
    """
    size = max(1, min(CROPS // views, len(pictures)))
    net_output = Program(lambda params, x: output(*net.model.apply({"params": params}, x)))

    def read(picture: Picture):
        try:
            encoded, label = picture.read()
            return label, net.preprocess(encoded, views)
        except (OSError, ValueError, decode.BadImage) as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(pictures), size):
            batch, good = pictures[start : start + size], []
            for picture, found in zip(batch, pool.map(read, batch), strict=True):
                if isinstance(found, Exception):
                    reason = getattr(found, "strerror", None) or " ".join(str(found).split())
                    print(f"error: {picture.name}: {reason}", file=sys.stderr)
                else:
                    good.append((picture, *found))
            if not good:
                continue
            crops = np.stack([crops for *_, crops in good])  # [pictures, views, S, S, 3]
            padded = np.zeros((size, *crops.shape[1:]), crops.dtype)
            padded[: len(good)] = crops
            rows = net_output(net.params, jnp.asarray(padded.reshape(-1, *crops.shape[2:])))
            rows = np.asarray(rows).reshape(size, views, *rows.shape[1:])
            for (picture, label, _), row in zip(good, rows, strict=False):
                yield picture, label, row


def thumbnail(picture: Picture, size: int = 160) -> np.ndarray:
    """Returns the picture's central square, uint8 [size, size, 3], for a plot."""
    return decode.square(picture.read()[0], size)


def _file(path: Path) -> Picture:
    def read() -> tuple[bytes, str]:
        return path.read_bytes(), path.absolute().parent.name

    # A pipe, such as /dev/stdin, can be read only once, and a plot needs the picture again.
    return Picture(str(path), read if path.is_file() else functools.cache(read))


def _images(path: Path) -> list[Path]:
    if not path.exists():
        raise missing(path, "file or folder")
    if not path.is_dir():
        return [path]
    found = list(files.walk(path))
    images = [each for each in found if files.is_image(each)]
    if not images:
        raise UserError(
            f"folder '{path}' holds no images: no file in it or below ends in "
            f"{', '.join(decode.SUFFIXES[:6])} or the like"
        )
    for line in files.unknown([each for each in found if not files.is_image(each)]):
        print(f"left out of '{path}': {line}", file=sys.stderr)
    return images
