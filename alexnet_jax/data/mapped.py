"""Crops batches straight out of a mapped copy, in a few threads, into memory that is used again.

Nothing is decoded, and nothing is mirrored here: the rows of a batch whose crop says so are
mirrored on the device (see `flipped`).
"""

import collections
import math
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import threads
from alexnet_jax.data.copies import Copy
from alexnet_jax.data.plan import PADDING, Batches

Batch = dict[str, np.ndarray]

_PART = 16  # A thread's task has so many images: handing it out costs next to nothing.
_AHEAD = 2  # So many batches are filled before they are asked for.
MOST_THREADS = 8  # More threads don't copy faster out of memory.
_ALIGNMENT = 64  # XLA aligns its buffers to so many bytes.


def stream(
    copy: Copy,
    batches: Batches,
    *,
    image_size: int,
    rows: tuple[int, int],
    num_threads: int | None = None,
) -> Iterator[Batch]:
    """Yields the rows [lo, hi) of each batch, as `tfdata.stream` but for the mirroring.

    The arrays of images are given out again as soon as nothing refers to them any more, neither
    the caller nor a device that still reads them.
    """
    lo, hi = rows
    shape = (hi - lo, *batches.views, image_size, image_size, 3)
    memory = _Memory(shape)

    def fill(batch: Batch, step: int, first: int) -> None:
        part = {key: array[first : first + _PART] for key, array in batch.items()}
        end = first + len(part["ids"])
        part["ids"][:], part["crops"][:] = batches.rows(step, lo + first, lo + end)
        real = part["ids"] != PADDING
        part["labels"][:] = np.where(real, copy.labels[part["ids"]], 0)
        part["mask"][:] = np.where(real, copy.mask[part["ids"]], 0)
        places = copy.places[part["ids"]].tolist()
        crops = part["crops"].reshape(len(places), -1, 3).tolist()
        images = part["images"].reshape(len(places), -1, *shape[-3:])
        for is_real, (shard, row), views, image in zip(real, places, crops, images, strict=True):
            if not is_real:
                image[:] = 0
                continue
            square = copy.shards[shard][row]
            for view, (y, x, _) in enumerate(views):
                image[view] = square[y : y + image_size, x : x + image_size]

    def begin(step: int) -> tuple[Batch, list]:
        batch = {
            "images": memory.take(),
            "labels": np.empty(hi - lo, np.int32),
            "crops": np.empty((hi - lo, *batches.views, 3), np.int32),
            "mask": np.empty(hi - lo, np.float32),
            "ids": np.empty(hi - lo, np.int32),
        }
        return batch, [pool.submit(fill, batch, step, row) for row in range(0, hi - lo, _PART)]

    pool = ThreadPoolExecutor(num_threads or min(threads.cores(), MOST_THREADS))
    ahead = collections.deque()
    try:
        for step in batches.steps:
            ahead.append(begin(step))
            if len(ahead) > _AHEAD:
                yield _filled(*ahead.popleft())
        while ahead:
            yield _filled(*ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _filled(batch: Batch, parts: list) -> Batch:
    for part in parts:
        part.result()
    return batch


class _Memory:
    """Arrays of one shape, aligned so that JAX's CPU backend takes them as they lie.

    One that nothing refers to any more is given out again: new memory would have to be cleared by
    the kernel first, which takes longer than filling it.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape
        self._free: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """Returns an array uint8 whose values are arbitrary."""
        size = math.prod(self._shape)
        try:
            memory = self._free.pop()
        except IndexError:
            whole = np.empty(size + _ALIGNMENT, np.uint8)
            start = -whole.ctypes.data % _ALIGNMENT
            memory = whole[start : start + size]
        # All views of this array, a device's too, refer to it, as what it is a view of is no array:
        # of an array's view NumPy would have them refer to that array instead.
        array = np.frombuffer(memoryview(memory), np.uint8)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(self._shape)


@jax.jit
def flipped(images: jax.Array, crops: jax.Array) -> jax.Array:
    """Mirrors the images uint8 [..., S, S, 3] whose crops int32 [..., 3] say so."""
    return jnp.where(crops[..., 2, None, None, None] == 1, images[..., ::-1, :], images)
