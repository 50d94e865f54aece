"""Decodes examples to squares: one, or a whole split in order, without TensorFlow."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL

from alexnet_jax.data import decode, threads
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError

_CHUNK = 16  # A thread's task has so many images: handing it out costs next to nothing.


@dataclass(frozen=True)
class Example:
    """An example on its way into a copy.

    made: its square as the copy keeps it; None where it could not be decoded, and is skipped.
    digest: that of identity.example_digest; problem: why it could not be decoded, or empty.
    """

    id: int
    made: Any
    label: int
    digest: bytes
    problem: str


def bad_image(reason: str) -> str:
    """Returns the message about an undecodable image."""
    return f"{reason}; repair or remove it, or set data.bad_images to 'skip'"


def decoder() -> str:
    """Returns which decoder it is, to be kept as `decoder` beside the images that it finds bad."""
    return f"Pillow {PIL.__version__}"


def outdated(meta: Mapping[str, Any]) -> bool:
    """Returns whether images were bad to another decoder, and may be good to this one."""
    return bool(meta["bad"]) and meta.get("decoder") != decoder()


def read(
    source: Source, example: int, resize_size: int, bad: dict[int, str] | None
) -> tuple[np.ndarray | None, int]:
    """Returns the square of an example, uint8 [R, R, 3], or None if it is skipped; and its label.

    An image that cannot be decoded raises UserError; with a dict `bad` it is noted there instead,
    as {id: file and reason}. A file that cannot be read and a label that is none of the classes
    raise UserError in any case.
    """
    label = 0
    try:
        encoded, label = source.read(example)
        source.check_label(example, label)
        return decode.square(encoded, resize_size), label
    except OSError as error:
        raise UserError(f"{source.describe(example)} cannot be read: {error}") from None
    except (decode.BadImage, ValueError) as error:
        reason = f"{source.describe(example)}: {error}"
        if bad is None:
            raise UserError(bad_image(reason)) from None
        bad[example] = reason
        return None, label


def read_all(
    source: Source,
    resize_size: int,
    *,
    bad: dict[int, str] | None = None,
    num_threads: int | None = None,
    chunk: int = _CHUNK,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the whole split in order, in chunks: squares uint8 [n, R, R, 3], labels int32, mask.

    Undecodable images are treated as in `read`; skipped ones are black, with mask 0.0.
    """

    def read_chunk(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids = range(start, min(start + chunk, source.num_examples))
        squares = np.zeros((len(ids), resize_size, resize_size, 3), np.uint8)
        labels, mask = np.zeros(len(ids), np.int32), np.zeros(len(ids), np.float32)
        for row, example in enumerate(ids):
            square, labels[row] = read(source, example, resize_size, bad)
            if square is not None:
                squares[row], mask[row] = square, 1
        return squares, labels, mask

    starts = range(0, source.num_examples, chunk)
    return threads.in_order(read_chunk, starts, num_threads=num_threads)
