"""The one interface to data: `open_data`, then batches of global arrays and the statistics."""

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np

from alexnet_jax.data import device, host, stats
from alexnet_jax.data.device import Shardings
from alexnet_jax.data.plan import View, views
from alexnet_jax.data.sources import Source, SourceMissing, open_source
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
    "statistics",
    "train_batches",
    "views",
]

Progress = Callable[[str, int, int], None]  # what, done, total

# Batches put on the devices before they are asked for, so that the copy overlaps the step before.
_AHEAD = 2


@dataclass(frozen=True)
class DataSpec:
    """What to read and how.

    name: a TFDS name, `folder:PATH` (images in PATH/SPLIT/CLASS) or `photos`.
    data_dir: TFDS's folder of prepared data sets; None or empty for TFDS's own.
    train_split, eval_split: split names, for TFDS also expressions such as `train[:90%]`.
    image_size: the side S of the net's input, in pixels.
    resize_size: the side R of the square it is cut from; 0 for the paper's ratio, 256/224 times S.
    backend: `tfdata` decodes as it goes; `device` holds the decoded squares in device memory.
    crop, flip: random offsets and mirrors in training; without them the centre, unmirrored.
    bad_images: `error` stops at an image that cannot be decoded, `skip` masks it out.
    """

    name: str
    data_dir: str | None = None
    train_split: str = "train"
    eval_split: str = "test"
    image_size: int = 224
    resize_size: int = 0
    backend: Literal["tfdata", "device"] = "tfdata"
    crop: bool = True
    flip: bool = True
    bad_images: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class Data:
    """An open data set. `fingerprint` is that of the train split.

    `bad` lists the undecodable images met so far, where they are skipped: {split: {id: reason}}.
    `left_out` says of each split opened so far which files in its folder are not read, and why.
    """

    spec: DataSpec
    num_train: int
    num_eval: int
    num_classes: int
    class_names: tuple[str, ...]
    resize_size: int
    fingerprint: str
    bad: dict[str, dict[int, str]]
    left_out: dict[str, tuple[str, ...]]
    _splits: dict[str, Source | device.Squares] = field(repr=False)
    _placed: dict[Any, device.DeviceSplit] = field(default_factory=dict, repr=False)


def open_data(spec: DataSpec, *, progress: Progress | None = None) -> Data:
    """Opens both splits and checks all that can be checked before training. Raises UserError.

    With the device backend this decodes the data set, unless an earlier run kept it in the cache
    folder, and `progress(what, done, total)` is called meanwhile.
    """
    _check_choice("backend", spec.backend, ("tfdata", "device"))
    _check_choice("bad_images", spec.bad_images, ("error", "skip"))
    if spec.image_size < 1:
        raise UserError(f"data.image_size is {spec.image_size}: it must be 1 pixel or more")
    resize_size = spec.resize_size or round(spec.image_size * 256 / 224)
    if resize_size < spec.image_size:
        raise UserError(
            f"data.resize_size is {resize_size}: it must not be below data.image_size,"
            f" {spec.image_size}"
        )
    train = _open_split(spec, spec.train_split, resize_size, None, progress)
    if len(train.class_names) < 2:
        raise UserError(
            f"data set {spec.name!r} has one class, {train.class_names[0]!r}: there is nothing to"
            " tell apart. Do the class folders lie a level deeper or higher?"
        )
    data = Data(
        spec=spec,
        num_train=train.num_examples,
        num_eval=0,
        num_classes=len(train.class_names),
        class_names=train.class_names,
        resize_size=resize_size,
        fingerprint=train.fingerprint,
        bad={},
        left_out={},
        _splits={},
    )
    _register(data, spec.train_split, train)
    return replace(data, num_eval=num_examples(data, spec.eval_split, progress=progress))


def num_examples(data: Data, split: str, *, progress: Progress | None = None) -> int:
    """Returns the number of examples of a split, which may be any that the data set has."""
    return _split(data, split, progress).num_examples


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
    if batch_size > data.num_train:
        raise UserError(
            f"batch_size is {batch_size}, more than the {data.num_train} examples of"
            f" {data.spec.name!r}, split {data.spec.train_split!r}"
        )
    spec = data.spec
    split = _split(data, spec.train_split)
    choices = {
        "image_size": spec.image_size,
        "seed": seed,
        "batch_size": batch_size,
        "start_step": start_step,
        "crop": spec.crop,
        "flip": spec.flip,
    }
    if isinstance(split, device.Squares):
        placed = _place(data, spec.train_split, shardings)
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
    opened = _split(data, split)
    choices = {"image_size": data.spec.image_size, "batch_size": batch_size, "views": views}
    if isinstance(opened, device.Squares):
        placed = _place(data, split, shardings)
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
    spec, split = data.spec, _split(data, data.spec.train_split)
    file = stats.path(spec.name, spec.train_split, data.resize_size, data.fingerprint)
    kept = stats.load(file, data.fingerprint)
    if kept is not None:
        result, bad = kept
        if bad and spec.bad_images == "error":
            raise UserError(host.bad_image(min(bad.items())[1]))
        if bad:
            data.bad[spec.train_split].update(bad)
        return result
    if isinstance(split, device.Squares):
        parts = range(0, split.num_examples, 64)
        chunks = ((split.squares[i : i + 64], split.mask[i : i + 64]) for i in parts)
    else:
        bad = data.bad.get(spec.train_split)
        whole = host.squares(split, resize_size=data.resize_size, bad=bad)
        chunks = ((squares, mask) for squares, _, mask in whole)
    result = stats.compute(
        chunks, fingerprint=data.fingerprint, total=data.num_train, progress=progress
    )
    stats.save(file, result, data.bad.get(spec.train_split, {}))
    return result


def _check_choice(field_name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"data.{field_name} is {value!r}: choose {' or '.join(map(repr, choices))}")


def _open_split(
    spec: DataSpec,
    split: str,
    resize_size: int,
    class_names: Sequence[str] | None,
    progress: Progress | None,
) -> Source | device.Squares:
    if spec.backend == "tfdata":
        source = open_source(spec.name, spec.data_dir, split, class_names=class_names)
        # Of a split without labels, now and not after the first epoch; unreadable, it is met later.
        with contextlib.suppress(OSError, ValueError):
            source.check_label(0, source.read(0)[1])
        return source
    skip_bad = spec.bad_images == "skip"
    try:
        source = open_source(
            spec.name, spec.data_dir, split, class_names=class_names, download=False
        )
    except SourceMissing:
        kept = device.load_kept(spec.name, split, resize_size, skip_bad=skip_bad)
        if kept is not None:
            return kept
        source = open_source(spec.name, spec.data_dir, split, class_names=class_names)
    return device.load(source, resize_size, skip_bad=skip_bad, progress=progress)


def _register(data: Data, split: str, opened: Source | device.Squares) -> None:
    data._splits[split] = opened
    data.left_out[split] = opened.left_out
    if data.spec.bad_images == "skip":
        data.bad[split] = dict(opened.bad) if isinstance(opened, device.Squares) else {}


def _split(data: Data, split: str, progress: Progress | None = None) -> Source | device.Squares:
    if split not in data._splits:
        opened = _open_split(data.spec, split, data.resize_size, data.class_names, progress)
        if opened.class_names != data.class_names:
            raise UserError(f"splits {data.spec.train_split!r} and {split!r} differ in classes")
        _register(data, split, opened)
    return data._splits[split]


def _place(data: Data, split: str, shardings: Shardings) -> device.DeviceSplit:
    key = split, device.replicated(shardings)
    if key not in data._placed:
        data._placed[key] = device.place(_split(data, split), shardings)
    return data._placed[key]


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
