"""The tf.data pipeline: examples read, decoded and cropped by many threads, in a fixed order.

What position t of a stream holds is a function of t alone, so the number of threads changes nothing
and a resumed stream starts at its step without reading anything before it.
"""

import atexit
import contextlib
import functools
import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from alexnet_jax.data import decode
from alexnet_jax.data.plan import View, epoch_plan
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError

Batch = dict[str, np.ndarray]

# Images in one task of a thread: large enough that handing it out costs nothing (tf.data takes
# about 0.1 ms for each element), small enough to share a batch of 128 among 8 cores.
_PIECE = 16
_KEYS = ("images", "labels", "crops", "mask", "ids")
_PADDING = -1


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
    fills no batch is dropped. `num_threads` defaults to tf.data's own choice.

    An image that cannot be decoded raises UserError; with a dict `bad` it is noted there instead,
    as {id: file and reason}, and its row is black with mask 0.
    """
    lo, hi = rows or (0, batch_size)
    piece = _piece_size(hi - lo)
    pieces = (hi - lo) // piece
    steps_per_epoch = source.num_examples // batch_size
    margin = resize_size - image_size

    @functools.lru_cache(maxsize=2)  # Threads are in two epochs at most.
    def plan(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return epoch_plan(seed, epoch, source.num_examples, margin, crop=crop, flip=flip)

    def load(position: int) -> tuple[np.ndarray, ...]:
        step, part = divmod(position, pieces)
        epoch, step_of_epoch = divmod(step, steps_per_epoch)
        order, crops = plan(epoch)
        start = step_of_epoch * batch_size + lo + part * piece
        ids = order[start : start + piece]
        images, labels, mask = _load(source, ids, resize_size, image_size, crops[ids, None], bad)
        return images[:, 0], labels, crops[ids], mask, ids

    positions = (start_step * pieces, np.iinfo(np.int64).max)
    for parts in _stream(load, positions, pieces, num_threads):
        yield dict(zip(_KEYS, parts, strict=True))


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
    piece = _piece_size(hi - lo)
    pieces = (hi - lo) // piece
    num_batches = math.ceil(source.num_examples / batch_size)
    view_crops = np.array(views, np.int32)

    def load(position: int) -> tuple[np.ndarray, ...]:
        step, part = divmod(position, pieces)
        start = step * batch_size + lo + part * piece
        ids = np.arange(start, start + piece, dtype=np.int32)
        ids[ids >= source.num_examples] = _PADDING
        crops = np.broadcast_to(view_crops, (piece, *view_crops.shape))
        images, labels, mask = _load(source, ids, resize_size, image_size, crops, bad)
        return images, labels, np.ascontiguousarray(crops), mask, ids

    for parts in _stream(load, (0, num_batches * pieces), pieces, num_threads):
        yield dict(zip(_KEYS, parts, strict=True))


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
        real = batch["ids"] != _PADDING
        yield batch["images"][real, 0], batch["labels"][real], batch["mask"][real]


def bad_image(reason: str) -> str:
    """Returns the message about an undecodable image."""
    return f"{reason}; repair or remove it, or set data.bad_images to 'skip'"


def _load(
    source: Source,
    ids: np.ndarray,
    resize_size: int,
    image_size: int,
    crops: np.ndarray,
    bad: dict[int, str] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns images uint8 [n, V, S, S, 3], labels int32 [n] and mask float32 [n]."""
    images = np.zeros((*crops.shape[:2], image_size, image_size, 3), np.uint8)
    labels = np.zeros(len(ids), np.int32)
    mask = np.zeros(len(ids), np.float32)
    for row, example in enumerate(ids.tolist()):
        if example == _PADDING:
            continue
        try:
            data, labels[row] = source.read(example)
            square = decode.square(data, resize_size)
        except OSError as error:
            raise UserError(f"{source.describe(example)} cannot be read: {error}") from None
        except (decode.BadImage, ValueError) as error:
            reason = f"{source.describe(example)}: {error}"
            if bad is None:
                raise UserError(bad_image(reason)) from None
            bad[example] = reason
            continue
        for view, (y, x, flipped) in enumerate(crops[row].tolist()):
            cut = square[y : y + image_size, x : x + image_size]
            images[row, view] = cut[:, ::-1] if flipped else cut
        mask[row] = 1
    return images, labels, mask


def _piece_size(rows: int) -> int:
    return max(n for n in range(1, min(_PIECE, rows) + 1) if rows % n == 0)


_open_streams: weakref.WeakSet[Iterator] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    # TensorFlow's threads call back into Python: they must end while there is an interpreter.
    for stream in list(_open_streams):
        with contextlib.suppress(ValueError):  # Running in another thread.
            stream.close()


def _stream(*args: Any) -> Iterator[list[np.ndarray]]:
    """As `_read_stream`, closed when the program ends."""
    stream = _read_stream(*args)
    _open_streams.add(stream)
    return stream


def _read_stream(
    load: Callable[[int], tuple[np.ndarray, ...]],
    positions: tuple[int, int],
    pieces: int,
    num_threads: int | None,
) -> Iterator[list[np.ndarray]]:
    """Yields load(t) for t in range(*positions), each `pieces` of them joined along the rows."""
    tf = _tensorflow()
    failures: dict[int, Exception] = {}

    def guarded(position: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return load(int(position))
        except Exception as error:
            failures[int(position)] = error
            raise

    def task(position: Any) -> Any:
        types = (tf.uint8, tf.int32, tf.int32, tf.float32, tf.int32)
        return tf.numpy_function(guarded, [position], types, stateful=False)

    parallel = num_threads or tf.data.AUTOTUNE
    options = tf.data.Options()
    if num_threads:
        options.threading.private_threadpool_size = num_threads
    stream = (
        tf.data.Dataset.range(*positions, output_type=tf.int64)
        .map(task, num_parallel_calls=parallel, deterministic=True)
        .batch(pieces)
        .prefetch(2)
        .with_options(options)
    )
    try:
        for parts in stream.as_numpy_iterator():
            yield [part.reshape(-1, *part.shape[2:]) for part in parts]
    except tf.errors.OpError:
        if not failures:
            raise
        # The first in the stream's order, whichever thread was first in time.
        raise failures[min(failures)] from None


def _tensorflow() -> Any:
    # Both are read when TensorFlow is loaded: no start-up chatter on stderr.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(f"reading images needs tensorflow-cpu: {error}") from None
    tf.config.set_visible_devices([], "GPU")  # A GPU build would take JAX's memory.
    return tf
