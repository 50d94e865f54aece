"""Holds a split's squares in the memory of the devices: whole on each, or split over the mesh.

Batches are cut from them there. The numbers equal those of the other backends.
"""

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax.data import decoded
from alexnet_jax.data.copies import Copy
from alexnet_jax.data.decoded import Squares
from alexnet_jax.data.exchange import cut, exchanged
from alexnet_jax.data.plan import PADDING, Batches
from alexnet_jax.errors import UserError

Shardings = Mapping[str, jax.sharding.Sharding]

# So many bytes of a device are left to the net, its activations and what JAX needs.
RESERVE = 4 * 2**30
_CHUNK = 2**28  # So many bytes are put on a device at a time.


@dataclass(frozen=True)
class DeviceSplit:
    """A split on the devices: squares, labels and mask as in Squares.

    The squares are whole on each device, or else split over all of them, with black ones at the
    end so that each device has as many.
    """

    squares: jax.Array
    labels: jax.Array
    mask: jax.Array


jax.tree_util.register_dataclass(DeviceSplit, ["squares", "labels", "mask"], [])


def room(devices: list[jax.Device]) -> int:
    """Returns the bytes that squares may take on each of this process' devices."""
    stats = [device.memory_stats() for device in devices]
    if any(each is None for each in stats):  # CPU devices share the host's memory.
        return max(0, decoded.free_memory() - decoded.RESERVE) // len(devices)
    free = min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    return max(0, free - RESERVE)


# A split lies on the devices for as long as anything refers to it.
_placed: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def placed(split: Squares | Copy, shardings: Shardings) -> DeviceSplit:
    """Returns a split on the devices of `shardings`, put there when it is first asked for.

    Raises:
        UserError: it takes more memory than the devices have; see `_place`.
    """
    everywhere = replicated(shardings)
    meshes = _placed.setdefault(split, {})
    if everywhere not in meshes:
        meshes[everywhere] = _place(split, everywhere)
    return meshes[everywhere]


def _place(split: Squares | Copy, everywhere: jax.sharding.Sharding) -> DeviceSplit:
    """Puts the squares on the devices of a mesh, a part at a time.

    They lie whole on each device where they fit beside the reserve, and split over all otherwise.

    Args:
        split: the squares.
        everywhere: the sharding that puts an array whole on each device.

    Raises:
        UserError: they don't fit even when they are split.
    """
    count, side = split.num_examples, split.resize_size
    size, num_devices = count * side**2 * 3, everywhere.num_devices
    free = room(list(everywhere.addressable_devices))
    if jax.process_count() > 1:  # All processes have to come to the same result.
        free = int(np.min(multihost_utils.process_allgather(np.array(free // 2**20)))) * 2**20
    sharding, rows = everywhere, count
    if size > free and num_devices > 1:
        sharding = jax.NamedSharding(everywhere.mesh, jax.P(everywhere.mesh.axis_names))
        rows = -(-count // num_devices) * num_devices
    part = rows // (1 if sharding is everywhere else num_devices) * side**2 * 3
    if part > free:
        largest = int((free / part) ** 0.5 * side)
        raise UserError(
            f"data set {split.name!r}, split {split.split!r}, takes {size / 2**30:.1f} GiB as"
            f" squares of {side} pixels, {part / 2**30:.1f} on each of {num_devices} devices, and"
            f" {free / 2**30:.1f} GiB are free there beside what is kept for the net: set"
            f" data.backend to 'mapped' or 'tfdata', or data.resize_size to {largest} at most"
        )
    squares = jax.make_array_from_single_device_arrays(
        (rows, side, side, 3),
        sharding,
        [
            _fill(split, device, index[0].indices(rows)[:2])
            for device, index in sharding.addressable_devices_indices_map((rows, side)).items()
        ],
    )
    return DeviceSplit(squares, put(split.labels, everywhere), put(split.mask, everywhere))


def _fill(split: Squares | Copy, device: jax.Device, rows: tuple[int, int]) -> jax.Array:
    """Puts the rows [lo, hi) of a split on a device; rows beyond its end are black."""
    lo, hi = rows
    end = min(hi, split.num_examples)
    step = max(1, _CHUNK // split.resize_size**2 // 3)
    with jax.transfer_guard_host_to_device(
        "allow"
    ):  # This transfer is meant, whatever the caller forbids.
        if hi == end and hi - lo <= step:
            return jax.device_put(split.rows(lo, hi), device)
        shape = (hi - lo, split.resize_size, split.resize_size, 3)
        with jax.default_device(device):
            squares = jnp.zeros(shape, jnp.uint8)
        for first in range(lo, end, step):
            chunk = split.rows(first, min(first + step, end))
            start = jax.device_put(np.int32(first - lo), device)
            squares = _write(squares, jax.device_put(chunk, device), start)
        return squares


@functools.partial(jax.jit, donate_argnums=0)
def _write(squares: jax.Array, chunk: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(squares, chunk, start, 0)


def replicated(shardings: Shardings) -> jax.sharding.Sharding:
    """Returns the sharding that puts an array whole on each device of the batch's mesh."""
    sharding = shardings["ids"]
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.P())
    return sharding


def put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Returns `array`, which each process holds whole, laid out by `sharding`."""
    with jax.transfer_guard_host_to_device(
        "allow"
    ):  # This transfer is meant, whatever the caller forbids.
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def stream(
    split: DeviceSplit, batches: Batches, image_size: int, shardings: Shardings
) -> Iterator[dict[str, jax.Array]]:
    """Yields the batches of `tfdata.stream` as global arrays.

    The host sends the order and crops of an epoch at its start, and nothing between the steps.
    """
    everywhere = replicated(shardings)
    mesh = None if split.squares.is_fully_replicated else everywhere.mesh
    take = _taker(
        batches.batch_size, image_size, everywhere, tuple(sorted(shardings.items())), mesh
    )
    steps = iter(batches.steps)
    for step in steps:
        epoch = batches.epoch(step)
        order, crops = put(epoch.order, everywhere), put(epoch.crops, everywhere)
        start = (step - epoch.first) * batches.batch_size
        position = put(np.array(start, np.int32), everywhere)
        for _ in itertools.chain([step], itertools.islice(steps, epoch.end - step - 1)):
            batch, position = take(split, order, crops, position)
            yield batch


@functools.lru_cache(
    maxsize=16
)  # It is compiled once, however many epochs and evaluations there are.
def _taker(
    batch_size: int,
    image_size: int,
    everywhere: Any,
    shardings: tuple[tuple[str, Any], ...],
    mesh: jax.sharding.Mesh | None,
) -> Callable[..., Any]:
    """Compiles what takes a batch, of squares split over `mesh` or whole on each device."""
    outputs = dict(shardings)

    @functools.partial(jax.jit, out_shardings=(outputs, everywhere))
    def take(split: DeviceSplit, order: jax.Array, crops: jax.Array, position: jax.Array) -> Any:
        ids = jax.lax.dynamic_slice_in_dim(order, position, batch_size)
        real = ids != PADDING
        known = jnp.where(real, ids, 0)
        crops = crops[known % crops.shape[0]]
        images = _images(split.squares, known, crops, image_size, mesh)
        batch = {
            "images": jnp.where(real.reshape(-1, *[1] * (images.ndim - 1)), images, 0),
            "labels": jnp.where(real, split.labels[known], 0),
            "crops": crops,
            "mask": jnp.where(real, split.mask[known], 0),
            "ids": ids,
        }
        return batch, position + batch_size

    return take


def _images(
    squares: jax.Array,
    ids: jax.Array,
    crops: jax.Array,
    size: int,
    mesh: jax.sharding.Mesh | None,
) -> jax.Array:
    """Returns images uint8 [B, *views, S, S, 3] by crops int32 [B, *views, 3]."""
    if crops.ndim == 2:
        if mesh is None:
            return cut(squares, ids, crops, size)
        return exchanged(squares, ids, crops, size, mesh)
    if mesh is not None:  # Each square is sent once, whole, for all views.
        whole = jnp.zeros((len(ids), 3), jnp.int32)
        squares = exchanged(squares, ids, whole, squares.shape[1], mesh)
        ids = jnp.arange(len(ids), dtype=jnp.int32)
    views = [cut(squares, ids, crops[:, view], size) for view in range(crops.shape[1])]
    return jnp.stack(views, axis=1)
