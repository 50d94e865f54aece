"""A data set that fits in memory: decoded once into a file, held and cropped on the device.

The batches equal those of `host` number for number.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import cache, host, identity
from alexnet_jax.data.identity import normal_name
from alexnet_jax.data.plan import View, epoch_plan
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError

Shardings = Mapping[str, jax.sharding.Sharding]

_FORMAT = 2  # Raise it when `decode` gives other pixels. (2: images of 32 bits, by their range.)
# What the decoded images may take of the memory that is free on the host, or of the device's.
_MEMORY_FRACTION = 0.5


@dataclass(frozen=True)
class Squares:
    """A decoded split in host memory: squares uint8 [N, R, R, 3], labels int32 [N].

    `mask` float32 [N] is 0 for the images that could not be decoded (black squares), which `bad`
    lists as {id: reason}. `fingerprint`, `stamp`, `origin`, `files` and `left_out` are those of the
    source that it was made from, empty where they aren't known; `contents` is that of
    identity.Identity.
    """

    name: str
    split: str
    fingerprint: str
    stamp: str
    class_names: tuple[str, ...]
    squares: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    bad: dict[int, str]
    left_out: tuple[str, ...] = ()
    contents: str = ""
    origin: str = ""
    files: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        """The number of examples, undecodable ones included."""
        return len(self.labels)


def load(
    source: Source,
    resize_size: int,
    *,
    skip_bad: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Squares:
    """Returns the decoded split, from the cache folder if it is there, or else decoded and kept.

    `progress(what, done, total)` is called while decoding. Raises UserError if the squares would
    take more than half of the free memory, or if an image cannot be decoded and `skip_bad` isn't
    set.
    """
    size = source.num_examples * resize_size**2 * 3
    free = _free_memory()
    if size > _MEMORY_FRACTION * free:
        raise UserError(
            f"data set {source.name!r}, split {source.split!r}, takes {size / 2**30:.1f} GiB"
            f" decoded, more than half of the {free / 2**30:.1f} GiB of free memory: set"
            " data.backend to 'tfdata'"
        )
    path = cache.folder() / _file_name(source.name, source.split, resize_size, source.stamp)
    names = ("fingerprint", "origin", "files", "left_out")
    known = {name: getattr(source, name) for name in names}
    if (kept := _read(path, skip_bad)) and kept.stamp == source.stamp:
        return replace(kept, **known)

    count = source.num_examples
    squares = np.empty((count, resize_size, resize_size, 3), np.uint8)
    labels = np.empty(count, np.int32)
    mask = np.empty(count, np.float32)
    bad: dict[int, str] | None = {} if skip_bad else None
    done = 0
    progress = progress or (lambda *_: None)
    progress(f"decoding {source.split}", 0, count)
    read, contents = identity.digesting(source.read, count)
    for chunk in host.squares(replace(source, read=read), resize_size=resize_size, bad=bad):
        rows = slice(done, done + len(chunk[0]))
        squares[rows], labels[rows], mask[rows] = chunk
        done = rows.stop
        progress(f"decoding {source.split}", done, count)
    decoded = Squares(
        name=source.name,
        split=source.split,
        stamp=source.stamp,
        class_names=source.class_names,
        squares=squares,
        labels=labels,
        mask=mask,
        bad=dict(sorted(bad.items())) if bad else {},
        contents=contents(),
        **known,
    )
    _write(path, decoded, resize_size)
    return decoded


def load_kept(name: str, split: str, resize_size: int, *, skip_bad: bool = False) -> Squares | None:
    """Returns a split decoded earlier, for a machine that lacks the data set itself.

    Raises UserError as `load` does, and if files of several versions of the data set are kept.
    """
    found = cache.folder().glob(_file_name(name, split, resize_size, "*", version="[0-9]"))
    # Of each version of the data set the one decoded last.
    files = list({file.stem.rpartition("-")[2]: file for file in sorted(found)}.values())
    if len(files) > 1:
        raise UserError(
            f"data set {name!r} isn't here, and its decoded files are of {len(files)} versions:"
            f" keep one of {', '.join(map(str, files))}"
        )
    return _read(files[0], skip_bad) if files else None


def _file_name(
    name: str, split: str, resize_size: int, stamp: str, version: int | str = _FORMAT
) -> str:
    return f"{cache.slug(name, split)}-{resize_size}px-v{version}-{stamp[:16]}.npz"


def _write(path: Any, decoded: Squares, resize_size: int) -> None:
    meta = {
        "name": decoded.name,
        "split": decoded.split,
        "fingerprint": decoded.stamp,  # As earlier commits call it.
        "identity": [decoded.fingerprint, decoded.contents, decoded.origin],
        "resize_size": resize_size,
        "bad": list(decoded.bad.items()),
    }
    arrays = {
        "squares": decoded.squares,
        "labels": decoded.labels,
        "mask": decoded.mask,
        "class_names": np.array(decoded.class_names),
    }
    cache.write(path, arrays, meta)


def _read(path: Any, skip_bad: bool) -> Squares | None:
    kept = cache.read(path)
    if kept is None:
        return None
    arrays, meta = kept
    if meta["bad"] and not skip_bad:
        raise UserError(host.bad_image(meta["bad"][0][1]))
    if not np.isin(arrays["labels"], range(len(arrays["class_names"]))).all():
        return None  # Earlier commits kept splits without labels.
    fingerprint, contents, origin = meta.get("identity", ("", "", ""))
    return Squares(
        name=meta["name"],
        split=meta["split"],
        fingerprint=fingerprint,
        stamp=meta["fingerprint"],
        contents=contents,
        origin=origin,
        class_names=tuple(map(normal_name, arrays["class_names"].tolist())),
        squares=arrays["squares"],
        labels=arrays["labels"],
        mask=arrays["mask"],
        bad=dict(meta["bad"]),
    )


def _free_memory() -> int:
    """Returns the bytes that this process may still take."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # Not Linux.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class DeviceSplit:
    """A decoded split on the devices, whole on each: squares, labels and mask as in Squares."""

    squares: jax.Array
    labels: jax.Array
    mask: jax.Array


def place(decoded: Squares, shardings: Shardings) -> DeviceSplit:
    """Puts a decoded split on every device of `shardings`' mesh.

    Raises UserError if it would take more than half of a device's free memory.
    """
    everywhere = replicated(shardings)
    stats = next(iter(everywhere.addressable_devices)).memory_stats() or {}
    free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    if stats and decoded.squares.nbytes > _MEMORY_FRACTION * free:
        raise UserError(
            f"data set {decoded.name!r}, split {decoded.split!r}, takes"
            f" {decoded.squares.nbytes / 2**30:.1f} GiB decoded, more than half of the"
            f" {free / 2**30:.1f} GiB that are free on the device: set data.backend to 'tfdata'"
        )
    return DeviceSplit(
        *(put(array, everywhere) for array in (decoded.squares, decoded.labels, decoded.mask))
    )


def replicated(shardings: Shardings) -> jax.sharding.Sharding:
    """Returns the sharding that puts an array whole on each device of the batch's mesh."""
    sharding = shardings["ids"]
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.P())
    return sharding


def put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Returns `array`, which each process holds whole, laid out by `sharding`."""
    with jax.transfer_guard_host_to_device("allow"):  # Meant, whatever the caller forbids.
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def train_batches(
    split: DeviceSplit,
    *,
    image_size: int,
    seed: int,
    batch_size: int,
    start_step: int,
    crop: bool,
    flip: bool,
    shardings: Shardings,
) -> Iterator[dict[str, jax.Array]]:
    """Yields the training batches of host.train_batches as global arrays, without end.

    The host sends the order and crops of an epoch at its start, and nothing between the steps.
    """
    num_examples, resize_size = split.squares.shape[:2]
    everywhere = replicated(shardings)
    take = _train_taker(batch_size, image_size, everywhere, tuple(sorted(shardings.items())))
    steps_per_epoch = num_examples // batch_size
    epoch, step = divmod(start_step, steps_per_epoch)
    while True:
        margin = resize_size - image_size
        plan = epoch_plan(seed, epoch, num_examples, margin, crop=crop, flip=flip)
        order, crops = (put(array, everywhere) for array in plan)
        position = put(np.array(step * batch_size, np.int32), everywhere)
        for _ in range(step, steps_per_epoch):
            batch, position = take(split, order, crops, position)
            yield batch
        epoch, step = epoch + 1, 0


def eval_batches(
    split: DeviceSplit,
    *,
    image_size: int,
    batch_size: int,
    views: Sequence[View],
    shardings: Shardings,
) -> Iterator[dict[str, jax.Array]]:
    """Yields the batches of host.eval_batches as global arrays."""
    everywhere = replicated(shardings)
    take = _eval_taker(
        batch_size, image_size, tuple(views), everywhere, tuple(sorted(shardings.items()))
    )
    position = put(np.array(0, np.int32), everywhere)
    for _ in range(math.ceil(split.labels.shape[0] / batch_size)):
        batch, position = take(split, position)
        yield batch


jax.tree_util.register_dataclass(DeviceSplit, ["squares", "labels", "mask"], [])


@functools.lru_cache(maxsize=8)  # Compiled once, however many epochs and evaluations.
def _train_taker(
    batch_size: int, image_size: int, everywhere: Any, shardings: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    outputs = dict(shardings)

    @functools.partial(jax.jit, out_shardings=(outputs, everywhere))
    def take(split: DeviceSplit, order: jax.Array, crops: jax.Array, position: jax.Array) -> Any:
        ids = jax.lax.dynamic_slice_in_dim(order, position, batch_size)
        crops = crops[ids]
        batch = {
            "images": _cut(split.squares, ids, crops, image_size),
            "labels": split.labels[ids],
            "crops": crops,
            "mask": split.mask[ids],
            "ids": ids,
        }
        return batch, position + batch_size

    return take


@functools.lru_cache(maxsize=8)
def _eval_taker(
    batch_size: int,
    image_size: int,
    views: tuple[View, ...],
    everywhere: Any,
    shardings: tuple[tuple[str, Any], ...],
) -> Callable[..., Any]:
    outputs = dict(shardings)

    @functools.partial(jax.jit, out_shardings=(outputs, everywhere))
    def take(split: DeviceSplit, position: jax.Array) -> Any:
        num_examples = split.labels.shape[0]
        rows = position + jnp.arange(batch_size, dtype=jnp.int32)
        real = rows < num_examples
        ids = jnp.where(real, rows, 0)
        crops = jnp.broadcast_to(jnp.array(views, jnp.int32), (batch_size, len(views), 3))
        images = [_cut(split.squares, ids, crops[:, v], image_size) for v in range(len(views))]
        batch = {
            "images": jnp.where(real[:, None, None, None, None], jnp.stack(images, axis=1), 0),
            "labels": jnp.where(real, split.labels[ids], 0),
            "crops": crops,
            "mask": jnp.where(real, split.mask[ids], 0),
            "ids": jnp.where(real, ids, host.PADDING),
        }
        return batch, position + batch_size

    return take


def _cut(squares: jax.Array, ids: jax.Array, crops: jax.Array, size: int) -> jax.Array:
    """Returns images uint8 [B, S, S, 3] cut from squares [N, R, R, 3] by crops int32 [B, 3]."""

    def window(example: jax.Array, crop: jax.Array) -> jax.Array:
        start = (example, crop[0], crop[1], jnp.int32(0))  # Not Python's 0, of 64 bits under x64.
        return jax.lax.dynamic_slice(squares, start, (1, size, size, 3))[0]

    images = jax.vmap(window)(ids, crops)
    flipped = crops[:, 2, None, None, None] == 1
    return jnp.where(flipped, images[:, :, ::-1], images)
