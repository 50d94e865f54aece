"""The one interface to data: `open_data`, then batches of global arrays and the statistics."""

import collections
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np

from alexnet_jax.data import device, host, identity, stats
from alexnet_jax.data.dataset import (
    Data,
    Progress,
    open_data,
    open_for_evaluation,
    open_squares,
)
from alexnet_jax.data.device import Shardings
from alexnet_jax.data.plan import View, views
from alexnet_jax.data.spec import DataSpec
from alexnet_jax.data.stats import Statistics
from alexnet_jax.errors import UserError

__all__ = [
    "Data",
    "DataSpec",
    "Statistics",
    "View",
    "eval_batches",
    "num_examples",
    "open_data",
    "open_for_evaluation",
    "open_squares",
    "statistics",
    "train_batches",
    "views",
]

# Batches put on the devices before they are asked for, so that the copy overlaps the step before.
_AHEAD = 2


def num_examples(data: Data, split: str, *, progress: Progress | None = None) -> int:
    """Returns the number of examples of a split, which may be any that the data set has."""
    return data.split(split, progress).num_examples


def train_batches(
    data: Data, *, seed: int, batch_size: int, start_step: int = 0, shardings: Shardings
) -> Iterator[dict[str, jax.Array]]:
    """Returns the endless stream of training batches from `start_step` on, as global arrays.

    A batch of B = batch_size examples holds `images` uint8 [B, S, S, 3], cropped and flipped;
    `labels` int32 [B]; `crops` int32 [B, 3], the (y, x, flipped) of each; `mask` float32 [B], 0 for
    a skipped image; `ids` int32 [B], the example's index in its split. `shardings` has one for each
    of the five, over the same devices; each process reads the rows that its devices hold.

    Step k of an epoch takes examples [kB, (k+1)B) of plan.epoch_plan(seed, epoch); what is left of
    an epoch is dropped. The batches of a step depend on nothing else: not on the backend, the
    number of threads, processes or devices, nor on where the stream started.

    Raises UserError if an epoch has no whole batch and, from the stream, for an undecodable image.
    """
    spec = data.spec
    split = data.split(spec.train_split)
    if batch_size > split.num_examples:
        raise UserError(
            f"batch_size is {batch_size}, more than the {split.num_examples} examples of"
            f" {data.spec.name!r}, split {data.spec.train_split!r}"
        )
    choices = {
        "image_size": spec.image_size,
        "seed": seed,
        "batch_size": batch_size,
        "start_step": start_step,
        "crop": spec.crop,
        "flip": spec.flip,
    }
    if isinstance(split, device.Squares):
        placed = data.placed(spec.train_split, shardings)
        return device.train_batches(placed, **choices, shardings=shardings)
    rows = _local_rows(shardings, batch_size, (spec.image_size, spec.image_size, 3), (3,))
    local = host.train_batches(
        split,
        **choices,
        resize_size=data.resize_size,
        rows=rows,
        bad=data.bad.get(spec.train_split),
    )
    return _put_ahead(local, shardings, batch_size, rows[0])


def eval_batches(
    data: Data, split: str, *, batch_size: int, views: Sequence[View], shardings: Shardings
) -> Iterator[dict[str, jax.Array]]:
    """Returns batches that hold every example of `split` once, in order, as global arrays.

    As `train_batches`, but `images` is uint8 [B, V, S, S, 3] and `crops` int32 [B, V, 3], one for
    each of the V `views` (see plan.views): an image is decoded once for all of them. The last batch
    is filled up with black images of mask 0, label 0 and id -1.
    """
    opened = data.split(split)
    choices = {"image_size": data.spec.image_size, "batch_size": batch_size, "views": views}
    if isinstance(opened, device.Squares):
        placed = data.placed(split, shardings)
        return device.eval_batches(placed, **choices, shardings=shardings)
    size = data.spec.image_size
    rows = _local_rows(shardings, batch_size, (len(views), size, size, 3), (len(views), 3))
    local = host.eval_batches(
        opened, **choices, resize_size=data.resize_size, rows=rows, bad=data.bad.get(split)
    )
    return _put_ahead(local, shardings, batch_size, rows[0])


def statistics(data: Data, *, progress: Progress | None = None) -> Statistics:
    """Returns the statistics of the train split's R x R squares, kept in the cache folder.

    The same from both backends. `progress(what, done, total)` is called while computing.
    Afterwards `data.bad` lists all undecodable images of the train split, if they are skipped.
    Raises UserError if there are any and they are not.
    """
    spec, split = data.spec, data.split(data.spec.train_split)
    file = stats.path(spec.name, spec.train_split, data.resize_size, split.stamp)
    kept = stats.load(file, split.stamp)
    if kept is not None:
        result, bad = kept
        if bad and spec.bad_images == "error":
            raise UserError(host.bad_image(min(bad.items())[1]))
        if bad:
            data.bad[spec.train_split].update(bad)
        data.contents.setdefault(spec.train_split, result.contents)
        return result
    if isinstance(split, device.Squares):
        parts = range(0, split.num_examples, 64)
        chunks = ((split.squares[i : i + 64], split.mask[i : i + 64]) for i in parts)
        result = stats.compute(chunks, total=split.num_examples, progress=progress)
        contents = split.contents
    else:
        read, contents_read = identity.digesting(split.read, split.num_examples)
        bad = data.bad.get(spec.train_split)
        whole = host.squares(replace(split, read=read), resize_size=data.resize_size, bad=bad)
        chunks = ((squares, mask) for squares, _, mask in whole)
        result = stats.compute(chunks, total=split.num_examples, progress=progress)
        contents = contents_read()
    result = replace(result, contents=contents)
    data.contents[spec.train_split] = contents
    stats.save(file, result, split.stamp, data.bad.get(spec.train_split, {}))
    return result


def _local_rows(
    shardings: Shardings, batch_size: int, image_shape: tuple[int, ...], crop_shape: tuple[int, ...]
) -> tuple[int, int]:
    """Returns the rows [lo, hi) of the global batch that this process' devices need."""
    tails = {"images": image_shape, "labels": (), "crops": crop_shape, "mask": (), "ids": ()}
    rows = [
        index[0].indices(batch_size)[:2]
        for key, tail in tails.items()
        for index in shardings[key].addressable_devices_indices_map((batch_size, *tail)).values()
    ]
    return min(lo for lo, _ in rows), max(hi for _, hi in rows)


def _put_ahead(
    batches: Iterator[host.Batch], shardings: Shardings, batch_size: int, first_row: int
) -> Iterator[dict[str, jax.Array]]:
    """Yields global arrays of which this process holds the rows from `first_row` on."""

    def put(batch: host.Batch) -> dict[str, jax.Array]:
        def part(rows: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
            lo, hi, _ = index[0].indices(batch_size)
            return rows[(slice(lo - first_row, hi - first_row), *index[1:])]

        with jax.transfer_guard_host_to_device("allow"):  # Meant, whatever the caller forbids.
            return {
                key: jax.make_array_from_callback(
                    (batch_size, *rows.shape[1:]), shardings[key], functools.partial(part, rows)
                )
                for key, rows in batch.items()
            }

    ahead = collections.deque(map(put, itertools.islice(batches, _AHEAD)))
    while ahead:
        yield ahead.popleft()
        ahead.extend(map(put, itertools.islice(batches, 1)))
