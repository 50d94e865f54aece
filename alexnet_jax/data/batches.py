"""Serves batches as global arrays, from whichever backend holds the split."""

import collections
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from alexnet_jax.data import device, mapped, plan, tfdata
from alexnet_jax.data.copies import Copy
from alexnet_jax.data.dataset import Data
from alexnet_jax.data.device import Shardings
from alexnet_jax.data.plan import Batches, View
from alexnet_jax.errors import UserError

# So many batches are put on the devices before they are asked for: the copy overlaps a step.
_AHEAD = 2


def train_batches(
    data: Data,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    num_steps: int | None = None,
    shardings: Shardings,
) -> Iterator[dict[str, jax.Array]]:
    """Returns `num_steps` training batches from `start_step` on, as global arrays.

    The stream has no end where `num_steps` is None.

    A batch of B = batch_size examples holds `images` uint8 [B, S, S, 3], cropped and flipped;
    `labels` int32 [B]; `crops` int32 [B, 3], the (y, x, flipped) of each; `mask` float32 [B], 0 for
    a skipped image; `ids` int32 [B], the example's index in its split. `shardings` has one for each
    of the five, over the same devices; each process reads the rows that its devices hold.

    The order and crops are those of plan.training. The batches of a step depend on nothing else:
    not on the backend, the number of threads, processes or devices, nor on where the stream
    started.

    Raises UserError if an epoch has no whole batch and, from the stream, for an undecodable image.
    """
    spec = data.spec
    num_examples = data.splits[spec.train_split].num_examples
    if batch_size > num_examples:
        raise UserError(
            f"batch_size is {batch_size}, more than the {num_examples} examples of"
            f" {data.spec.name!r}, split {data.spec.train_split!r}"
        )
    batches = plan.training(
        num_examples,
        seed=seed,
        batch_size=batch_size,
        start_step=start_step,
        num_steps=num_steps,
        margin=data.resize_size - spec.image_size,
        crop=spec.crop,
        flip=spec.flip,
    )
    return _stream(data, spec.train_split, batches, shardings)


def eval_batches(
    data: Data, split: str, *, batch_size: int, views: Sequence[View], shardings: Shardings
) -> Iterator[dict[str, jax.Array]]:
    """Returns batches that hold every example of `split` once, in order, as global arrays.

    A batch is as in `train_batches`, but `images` is uint8 [B, V, S, S, 3] and `crops` int32
    [B, V, 3], one for each of the V `views` (see plan.views): an image is decoded once for all of
    them. The last batch is filled up with black images of mask 0, label 0 and id -1.
    """
    num_examples = data.splits[split].num_examples
    batches = plan.evaluation(num_examples, batch_size=batch_size, views=views)
    return _stream(data, split, batches, shardings)


def _stream(
    data: Data, split: str, batches: Batches, shardings: Shardings
) -> Iterator[dict[str, jax.Array]]:
    size = data.spec.image_size
    opened = data.splits[split]
    if data.spec.backend == "device":
        return device.stream(device.placed(opened, shardings), batches, size, shardings)
    rows = _local_rows(shardings, batches, size)
    if isinstance(opened, Copy):
        local = mapped.stream(opened, batches, image_size=size, rows=rows)
        return _mirrored(_put_ahead(local, shardings, batches.batch_size, rows[0]))
    local = tfdata.stream(
        opened,
        batches,
        image_size=size,
        resize_size=data.resize_size,
        rows=rows,
        bad=data.bad.get(split),
    )
    return _put_ahead(local, shardings, batches.batch_size, rows[0])


def _mirrored(batches: Iterator[dict[str, jax.Array]]) -> Iterator[dict[str, jax.Array]]:
    """Yields the batches with their images mirrored where their crops say so, on the devices."""
    for batch in batches:
        yield batch | {"images": mapped.flipped(batch["images"], batch["crops"])}


def _local_rows(shardings: Shardings, batches: Batches, size: int) -> tuple[int, int]:
    """Returns the rows [lo, hi) of the global batch that this process' devices need."""
    views = batches.views
    tails = dict(images=(*views, size, size, 3), labels=(), crops=(*views, 3), mask=(), ids=())
    count = batches.batch_size
    rows = [
        index[0].indices(count)[:2]
        for key, tail in tails.items()
        for index in shardings[key].addressable_devices_indices_map((count, *tail)).values()
    ]
    return min(lo for lo, _ in rows), max(hi for _, hi in rows)


def _put_ahead(
    batches: Iterator[dict[str, np.ndarray]],
    shardings: Shardings,
    batch_size: int,
    first_row: int,
) -> Iterator[dict[str, jax.Array]]:
    """Yields global arrays of which this process holds the rows from `first_row` on."""

    def put(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        def part(rows: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
            lo, hi, _ = index[0].indices(batch_size)
            return rows[(slice(lo - first_row, hi - first_row), *index[1:])]

        with jax.transfer_guard_host_to_device(
            "allow"
        ):  # This transfer is meant, whatever the caller forbids.
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
