"""The tf.data pipeline: examples read, decoded and cropped by many threads, in a fixed order.

What position t of a stream holds is a function of t alone, so the number of threads changes nothing
and a resumed stream starts at its step without reading anything before it.
"""

import atexit
import contextlib
import functools
import math
import os
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from alexnet_jax.data import decode
from alexnet_jax.data.plan import View, epoch_plan
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError

Batch = dict[str, np.ndarray]

# Images in one task of a thread: enough that handing it out costs nothing (tf.data takes about
# 0.1 ms for each), few enough to share a batch of 128 among 8 cores.
_PART = 16
_AHEAD = 2  # Batches kept ready.
_ALIGNMENT = 64  # Bytes, XLA's.
_NO_END = 2**40  # Steps; times the parts of a batch, an int64.
PADDING = -1  # The id of a row that is no example.


def train_batches(
    source: Source,
    *,
    image_size: int,
    resize_size: int,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    rows: tuple[int, int] | None = None,
    crop: bool = True,
    flip: bool = True,
    bad: dict[int, str] | None = None,
    num_threads: int | None = None,
) -> Iterator[Batch]:
    """Yields the training batches from `start_step` on, without end.

    A batch holds, for the rows [lo, hi) of the global batch (by default all, B = hi - lo):
    `images` uint8 [B, S, S, 3], `labels` int32 [B], `crops` int32 [B, 3], `mask` float32 [B] and
    `ids` int32 [B]. The order and the crops are those of plan.epoch_plan; the tail of an epoch that
    fills no batch is dropped. `num_threads` defaults to one more than there are cores.

    An image that cannot be decoded raises UserError; with a dict `bad` it is noted there instead,
    as {id: file and reason}, and its row is black with mask 0. A label that is none of the classes
    raises UserError in any case.
    """
    lo, hi = rows or (0, batch_size)
    steps_per_epoch = source.num_examples // batch_size
    margin = resize_size - image_size

    @functools.lru_cache(maxsize=2)  # Threads are in two epochs at most.
    def plan(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return epoch_plan(seed, epoch, source.num_examples, margin, crop=crop, flip=flip)

    def fill(part: Batch, step: int, row: int) -> None:
        epoch, step_of_epoch = divmod(step, steps_per_epoch)
        order, crops = plan(epoch)
        start = step_of_epoch * batch_size + lo + row
        part["ids"][:] = order[start : start + len(part["ids"])]
        part["crops"][:] = crops[part["ids"]]
        _load(source, part, resize_size, bad)

    shape = (hi - lo, image_size, image_size, 3)
    return _stream(fill, shape, range(start_step, _NO_END), num_threads)


def eval_batches(
    source: Source,
    *,
    image_size: int,
    resize_size: int,
    batch_size: int,
    views: Sequence[View],
    rows: tuple[int, int] | None = None,
    bad: dict[int, str] | None = None,
    num_threads: int | None = None,
) -> Iterator[Batch]:
    """Yields every example once, in order, each decoded once and cut into V views.

    As `train_batches`, but `images` is uint8 [B, V, S, S, 3] and `crops` int32 [B, V, 3]. The last
    batch is filled up with black rows of mask 0, label 0 and id -1.
    """
    lo, hi = rows or (0, batch_size)

    def fill(part: Batch, step: int, row: int) -> None:
        ids = part["ids"]
        ids[:] = step * batch_size + lo + row + np.arange(len(ids))
        ids[ids >= source.num_examples] = PADDING
        part["crops"][:] = views
        _load(source, part, resize_size, bad)

    shape = (hi - lo, len(views), image_size, image_size, 3)
    steps = range(math.ceil(source.num_examples / batch_size))
    return _stream(fill, shape, steps, num_threads)


def squares(
    source: Source,
    *,
    resize_size: int,
    bad: dict[int, str] | None = None,
    num_threads: int | None = None,
    chunk: int = 64,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the whole split in order, in chunks: uint8 [n, R, R, 3], labels int32, mask float32.

    Undecodable images are treated as in `train_batches`.
    """
    whole = eval_batches(
        source,
        image_size=resize_size,
        resize_size=resize_size,
        batch_size=chunk,
        views=((0, 0, 0),),
        bad=bad,
        num_threads=num_threads,
    )
    for batch in whole:
        real = batch["ids"] != PADDING
        yield batch["images"][real, 0], batch["labels"][real], batch["mask"][real]


def bad_image(reason: str) -> str:
    """Returns the message about an undecodable image."""
    return f"{reason}; repair or remove it, or set data.bad_images to 'skip'"


def _load(source: Source, part: Batch, resize_size: int, bad: dict[int, str] | None) -> None:
    """Fills images, labels and mask of some rows of a batch, whose ids and crops are there."""
    for row, example in enumerate(part["ids"].tolist()):
        images = part["images"][row]
        square = None
        if example != PADDING:
            square, part["labels"][row] = _read(source, example, resize_size, bad)
        part["mask"][row] = square is not None
        if square is None:
            images[:] = 0
            continue
        crops = part["crops"][row].reshape(-1, 3).tolist()
        size = images.shape[-2]
        for image, (y, x, flipped) in zip(images.reshape(-1, size, size, 3), crops, strict=True):
            cut = square[y : y + size, x : x + size]
            if flipped:
                for channel in range(3):  # Five times as fast as all three at once.
                    image[..., channel] = cut[:, ::-1, channel]
            else:
                image[:] = cut


def _read(
    source: Source, example: int, resize_size: int, bad: dict[int, str] | None
) -> tuple[np.ndarray | None, int]:
    """Returns the square of an example, or None if it is skipped, and its label."""
    label = 0
    try:
        data, label = source.read(example)
        source.check_label(example, label)
        return decode.square(data, resize_size), label
    except OSError as error:
        raise UserError(f"{source.describe(example)} cannot be read: {error}") from None
    except (decode.BadImage, ValueError) as error:
        reason = f"{source.describe(example)}: {error}"
        if bad is None:
            raise UserError(bad_image(reason)) from None
        bad[example] = reason
        return None, label


_open_streams: weakref.WeakSet[Iterator] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    # TensorFlow's threads call back into Python: they must end while there is an interpreter.
    for stream in list(_open_streams):
        with contextlib.suppress(ValueError):  # Running in another thread.
            stream.close()


def _stream(*args: Any) -> Iterator[Batch]:
    """As `_filled_batches`, closed when the program ends."""
    stream = _filled_batches(*args)
    _open_streams.add(stream)
    return stream


def _filled_batches(
    fill: Callable[[Batch, int, int], None],
    image_shape: tuple[int, ...],
    steps: range,
    num_threads: int | None,
) -> Iterator[Batch]:
    """Yields the batch of each step, after `fill(part, step, row)` for parts from `row` on.

    The threads fill parts of one set of arrays: tf.data hands out the positions and keeps their
    order, and no pixel passes through it (that would be three more copies).
    """
    tf = _tensorflow()
    num_rows, *views = image_shape[:-3]
    parts = math.ceil(num_rows / _PART)
    size = math.ceil(num_rows / parts)
    batches: dict[int, Batch] = {}
    lock = threading.Lock()
    failures: dict[int, Exception] = {}

    def empty() -> Batch:
        return {
            "images": _aligned(image_shape),
            "labels": np.zeros(num_rows, np.int32),
            "crops": np.empty((num_rows, *views, 3), np.int32),
            "mask": np.empty(num_rows, np.float32),
            "ids": np.empty(num_rows, np.int32),
        }

    def task(position: np.ndarray) -> np.ndarray:
        step, part = divmod(int(position), parts)
        with lock:
            if step not in batches:
                batches[step] = empty()
        rows = slice(part * size, (part + 1) * size)
        try:
            fill({key: array[rows] for key, array in batches[step].items()}, step, rows.start)
        except Exception as error:  # Raised below, in the stream's order.
            failures[int(position)] = error
        return position

    if num_threads is None:
        num_threads = os.cpu_count() + 1  # tf.data's own choice was slower, and at times by half
    options = tf.data.Options()
    # Nothing is left to tune. Its thread sleeps 10 ms, 20 ms, … 5 s, …, and the stream's end waits.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = num_threads
    stream = (
        tf.data.Dataset.range(steps.start * parts, steps.stop * parts, output_type=tf.int64)
        .map(
            lambda position: tf.numpy_function(task, [position], tf.int64, stateful=False),
            num_parallel_calls=num_threads,
            deterministic=True,
        )
        .batch(parts)
        .prefetch(_AHEAD)
        .with_options(options)
    )
    iterator = stream.as_numpy_iterator()
    try:
        for positions in iterator:
            for position in positions.tolist():
                if position in failures:
                    raise failures[position]
            yield batches.pop(int(positions[0]) // parts)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # An interrupted call refers to `iterator`.
        raise
    finally:
        # With the last reference to it goes the stream, once its threads are done. Not later: while
        # the interpreter ends they cannot run, and the program would wait for them for ever.
        del iterator


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised uint8 array that JAX's CPU backend takes as it lies, without a copy."""
    size = math.prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)


def _tensorflow() -> Any:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(f"reading images needs tensorflow-cpu: {error}") from None
    tf.config.set_visible_devices([], "GPU")  # A GPU build would take JAX's memory.
    return tf
