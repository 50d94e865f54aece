"""Times the limits of the input: plain decoding, plain copying, plain reading, and Python.

Each contender handles the images that training reads, in the same order, and does nothing else.
"""

import contextlib
import io
import itertools
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_jax.config import Config
from alexnet_jax.data import Data, mapped, plan, squares, threads
from alexnet_jax.data.copies import Copy
from alexnet_jax.data.plan import Batches
from alexnet_jax.data.sources import Source

Contender = Callable[[int], None]

_TASK = 16  # images in one task of a thread, as in data/mapped.py
_TINY = 8  # side of an image with next to no pixels
_SAMPLE = 512  # images over which Python's part is measured


def training(config: Config, dataset: Data, num_steps: int | None = None) -> Batches:
    """Returns the first `num_steps` batches of training; None: without end."""
    spec = dataset.spec
    return plan.training(
        dataset.num_train,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=0,
        num_steps=num_steps,
        margin=dataset.resize_size - spec.image_size,
        crop=spec.crop,
        flip=spec.flip,
    )


def decoding(config: Config, source: Source) -> Contender:
    """Makes a contender that reads and decodes the images with Pillow, in a thread a core."""

    def decode(i: int) -> None:
        with Image.open(io.BytesIO(source.read(i)[0])) as image:
            image.load()

    order, _ = plan.epoch_plan(config.seed, 0, source.num_examples, 0, crop=False, flip=False)
    pool = ThreadPoolExecutor(threads.cores())

    def run(count: int) -> None:
        for _ in pool.map(decode, np.resize(order, count * config.batch_size).tolist()):
            pass

    return run


def host(config: Config, dataset: Data, copy: Copy) -> Contender:
    """Makes a contender of the host's side of the backend `mapped`: crops, without any device."""

    def run(count: int) -> None:
        batches, rows = training(config, dataset, count), (0, config.batch_size)
        for _ in mapped.stream(copy, batches, image_size=dataset.spec.image_size, rows=rows):
            pass

    return run


def copying(config: Config, dataset: Data, copy: Copy) -> Contender:
    """Makes a contender that copies the same crops to memory that is used again, and no more."""
    size, batches = dataset.spec.image_size, training(config, dataset)
    buffers = np.zeros((4, config.batch_size, size, size, 3), np.uint8)

    def copy_part(part: tuple[int, int]) -> None:
        step, first = part
        ids, crops = batches.rows(step, first, min(first + _TASK, config.batch_size))
        places, images = copy.places[ids].tolist(), buffers[step % len(buffers), first:]
        for (shard, row), (y, x, _), image in zip(places, crops.tolist(), images, strict=False):
            image[:] = copy.shards[shard][row, y : y + size, x : x + size]

    return _in_threads(copy_part, config.batch_size)


def reading(config: Config, dataset: Data, copy: Copy) -> Contender:
    """Makes a contender that reads the bytes of the same crops from their files, in their order."""
    size, side, batches = dataset.spec.image_size, dataset.resize_size, training(config, dataset)
    files = [os.open(shard.base.filename, os.O_RDONLY) for shard in copy.shards]
    length = ((size - 1) * side + size) * 3  # from a crop's first pixel to its last

    def read_part(part: tuple[int, int]) -> None:
        step, first = part
        ids, crops = batches.rows(step, first, min(first + _TASK, config.batch_size))
        for (shard, row), (y, x, _) in zip(copy.places[ids].tolist(), crops.tolist(), strict=True):
            start = copy.shards[shard].base.offset + (row * side**2 + y * side + x) * 3
            os.pread(files[shard], length, start)

    return _in_threads(read_part, config.batch_size)


def _in_threads(work: Callable[[tuple[int, int]], None], batch_size: int) -> Contender:
    pool = ThreadPoolExecutor(min(threads.cores(), mapped.MOST_THREADS))

    def run(count: int) -> None:
        parts = itertools.product(range(count), range(0, batch_size, _TASK))
        for _ in pool.map(work, parts):
            pass

    return run


def drop_pages(copy: Copy) -> None:
    """Has the kernel forget the copy's pages, so that they come from the disk again."""
    for shard in copy.shards:
        shard.base.base.madvise(mmap.MADV_DONTNEED)  # The kernel keeps pages that are mapped.
        file = os.open(shard.base.filename, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def disk(copy: Copy) -> str:
    """Returns the device on which the copy's files lie, such as /dev/vda; empty where unknown."""
    number = os.stat(copy.shards[0].base.filename).st_dev
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[2] == f"{os.major(number)}:{os.minor(number)}":
                return fields[fields.index("-") + 2]
    return ""


def python_seconds(config: Config, dataset: Data, opened: Source | Copy) -> float:
    """Returns the CPU seconds for which Python holds its lock, for an image.

    Decoding, resizing and copying release the lock. So the backend's own code handles images with
    almost no pixels, in one thread. This takes a little longer than the lock is held for, because
    the calls for a few pixels count in full.
    """
    count = -(-_SAMPLE // config.batch_size)
    batches = training(config, dataset, count)
    if isinstance(opened, Copy):
        rows = (0, config.batch_size)
        start = time.process_time()
        for _ in mapped.stream(opened, batches, image_size=1, rows=rows, num_threads=1):
            pass
        return (time.process_time() - start) / (count * config.batch_size)
    tiny = _without_pixels(opened, dataset.resize_size)
    ids = np.concatenate([batches.rows(step, 0, config.batch_size)[0] for step in range(count)])
    for _ in ("warm", "measured"):
        start = time.thread_time()
        for i in ids.tolist():
            squares.read(tiny, i, _TINY, None)
        taken = time.thread_time() - start
    return taken / len(ids)


def _without_pixels(source: Source, resize_size: int) -> Source:
    """Returns the source with a few pixels of its first image in the place of every image."""
    encoded, _ = source.read(0)
    with Image.open(io.BytesIO(encoded)) as image:
        # An image that has to be resized stays one.
        side = _TINY if min(image.size) == resize_size else 2 * _TINY
        few, kind = io.BytesIO(), image.format
        image.crop((0, 0, side, side)).save(few, kind)
    return replace(source, read=lambda i: (few.getvalue(), source.read(i)[1]))
