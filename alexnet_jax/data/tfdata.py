"""Runs the tf.data pipeline: positions, encoded bytes, squares, crops, mirrors, batches.

What position t of a stream holds is a function of t alone, so the number of threads changes nothing
and a resumed stream starts at its step without reading anything before it.
"""

import atexit
import contextlib
import importlib.util
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from alexnet_jax.data import squares, threads
from alexnet_jax.data.plan import PADDING, Batches
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError

Batch = dict[str, np.ndarray]

_AHEAD = 2  # So many batches are kept ready.


def stream(
    source: Source,
    batches: Batches,
    *,
    image_size: int,
    resize_size: int,
    rows: tuple[int, int],
    bad: dict[int, str] | None = None,
    num_threads: int | None = None,
) -> Iterator[Batch]:
    """Yields the rows [lo, hi) of each batch, B of them.

    A batch holds `images` uint8 [B, S, S, 3], `labels` int32 [B], `crops` int32 [B, 3], `mask`
    float32 [B] and `ids` int32 [B]; in an evaluation of V views, `images` uint8 [B, V, S, S, 3] and
    `crops` int32 [B, V, 3]. Rows without an example are black, of mask 0, label 0 and id -1.
    Undecodable images and wrong labels are treated as in `squares.read`. `num_threads` defaults to
    one more than there are cores.
    """
    tf = tensorflow()
    first, end = (step * (rows[1] - rows[0]) for step in (batches.steps.start, batches.steps.stop))
    failures: dict[int, Exception] = {}
    read = _reader(source, batches, resize_size, rows, bad, failures)

    def example(position: Any) -> dict[str, Any]:
        kinds = (tf.uint8, tf.int32, tf.int32, tf.float32, tf.int32, tf.int64)
        values = tf.numpy_function(read, [position], kinds, stateful=False)
        square, label, crops, mask, number, position = values
        crops = tf.ensure_shape(crops, (*batches.views, 3))
        images = _images(square, crops, image_size)
        batch = dict(images=images, labels=label, crops=crops, mask=mask, ids=number)
        return batch | {"positions": position}

    num_threads = num_threads or threads.cores() + 1  # The choice of tf.data was slower.
    options = tf.data.Options()
    # Nothing is left to tune. Its thread sleeps 10 ms, 20 ms, … 5 s, …, and the stream's end waits.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = num_threads
    dataset = (
        tf.data.Dataset.range(first, end)
        .map(example, num_parallel_calls=num_threads, deterministic=True)
        .batch(rows[1] - rows[0])
        .prefetch(_AHEAD)
        .with_options(options)
    )
    guarded = _guarded(dataset, failures)
    _open_streams.add(guarded)
    return guarded


def _reader(
    source: Source,
    batches: Batches,
    resize_size: int,
    rows: tuple[int, int],
    bad: dict[int, str] | None,
    failures: dict[int, Exception],
) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Returns a function that reads and decodes the example of a position: of a step and a row.

    It notes exceptions in `failures` by position, for `_guarded` to raise them in the stream's
    order.
    """
    lo, hi = rows
    black = np.zeros((resize_size, resize_size, 3), np.uint8)

    def read(position: np.ndarray) -> tuple[np.ndarray, ...]:
        step, row = divmod(int(position), hi - lo)
        (example,), (crops,) = batches.rows(step, lo + row, lo + row + 1)
        square, label = None, 0
        try:
            if example != PADDING:
                square, label = squares.read(source, int(example), resize_size, bad)
        except Exception as error:
            failures[int(position)] = error
        mask = np.float32(square is not None)
        return black if square is None else square, np.int32(label), crops, mask, example, position

    return read


def _images(square: Any, crops: Any, size: int) -> Any:
    """Cuts a square by crops [*views, 3] into images [*views, S, S, 3] and mirrors them."""
    tf = tensorflow()

    def cut(crop: Any) -> Any:
        window = tf.slice(square, (crop[0], crop[1], 0), (size, size, 3))
        return tf.cond(crop[2] == 1, lambda: tf.reverse(window, [1]), lambda: window)

    images = [cut(crop) for crop in tf.unstack(tf.reshape(crops, (-1, 3)))]
    return tf.reshape(tf.stack(images), (*crops.shape[:-1], size, size, 3))


_open_streams: weakref.WeakSet = weakref.WeakSet()


def _guarded(dataset: Any, failures: dict[int, Exception]) -> Iterator[Batch]:
    """Yields what a tf.data pipeline yields that runs Python code in TensorFlow's threads.

    Python code cannot run while the interpreter ends, and the program would wait for it for ever:
    so the pipeline has to be gone before that, whatever ends the stream. And an exception of that
    code would lose its type on the way: it is raised here, when its batch is asked for.
    """
    iterator = dataset.as_numpy_iterator()
    try:
        for batch in iterator:
            positions = batch.pop("positions")
            if failures and (failed := sorted(failures.keys() & set(positions.tolist()))):
                raise failures[failed[0]]
            yield batch
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # An interrupted call refers to `iterator`.
        raise
    finally:
        del iterator  # With the last reference to it goes the pipeline, once its threads are done.


@atexit.register
def _close_streams() -> None:
    for stream in list(_open_streams):
        with contextlib.suppress(ValueError):  # It may be running in another thread.
            stream.close()


def is_installed() -> bool:
    """Returns whether TensorFlow is here, which is not imported for that."""
    return importlib.util.find_spec("tensorflow") is not None


def check_installed() -> None:
    """Raises UserError where TensorFlow isn't here."""
    if not is_installed():
        raise UserError(
            "the backend 'tfdata' needs TensorFlow, which isn't installed: pip install"
            " tensorflow-cpu, or set data.backend to 'mapped' or 'device'"
        )


def tensorflow() -> Any:
    """Imports TensorFlow, and keeps it from taking a GPU's memory, which JAX needs."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf
