"""Takes a batch in any order out of squares split over the devices: only its crops are exchanged.

Each device holds N/D of the squares, and a step needs B/D images on each device, from anywhere. The
device that holds an image cuts it, and sends the crop to the one that needs it: an all-to-all of
`SLOTS` crops from each device to each other one, repeated until the pair with the most to exchange
has done. All devices know the order, so they agree on the rounds and on what lies in which slot
without a word.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

# Each device sends so many crops to each other one in a round. Fewer would send less for nothing,
# in more rounds. Of 8 x 128 images a pair exchanges 16 on average and 26 at most, in 7 rounds.
SLOTS = 4


def exchanged(
    squares: jax.Array, ids: jax.Array, crops: jax.Array, size: int, mesh: Mesh
) -> jax.Array:
    """Returns images uint8 [B, S, S, 3], S = `size`, split by rows over the mesh.

    Args:
        squares: uint8 [N, R, R, 3], split over all of the mesh's axes; N is a multiple of the
            devices.
        ids: int32 [B], the square of each image; whole on each device.
        crops: int32 [B, 3], the (y, x, flipped) of each; whole on each device.
        size: the side S of an image, in pixels.
        mesh: the mesh that holds the squares and gets the images.
    """
    axes, devices = mesh.axis_names, mesh.size
    batch_size = len(ids)
    rows = -(-batch_size // devices)  # Each device gets so many rows.
    ids = jnp.pad(ids, (0, rows * devices - batch_size)).reshape(devices, rows)
    crops = jnp.pad(crops, ((0, rows * devices - batch_size), (0, 0))).reshape(devices, rows, 3)

    def exchange(squares: jax.Array, ids: jax.Array, crops: jax.Array) -> jax.Array:
        me, held = lax.axis_index(axes), squares.shape[0]
        sources = ids // held  # the device that holds each row's square
        of_source = sources[..., None] == jnp.arange(devices)
        # This counts the rows that the same device has from the same source before each row.
        turn = jnp.cumsum(of_source, axis=1, dtype=jnp.int32)
        turn = jnp.take_along_axis(turn, sources[..., None], axis=2)[..., 0] - 1
        receivers = jnp.arange(devices, dtype=jnp.int32)[:, None]

        def one_round(number: jax.Array, images: jax.Array) -> jax.Array:
            slot = turn - number * SLOTS
            now = (slot >= 0) & (slot < SLOTS)
            row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), slot.shape)
            # Slots that stay empty send the first row, which nobody takes out.
            target = jnp.where(now & (sources == me), slot, SLOTS)
            sent = jnp.zeros((devices, SLOTS), jnp.int32)
            sent = sent.at[receivers, target].set(row, mode="drop")
            local = jnp.clip(ids[receivers, sent] - me * held, 0, held - 1)
            out = cut(squares, local.reshape(-1), crops[receivers, sent].reshape(-1, 3), size)
            came = lax.all_to_all(out, axes, 0, 0, tiled=True)
            place = sources[me] * SLOTS + jnp.clip(slot[me], 0, SLOTS - 1)
            return jnp.where(now[me][:, None, None, None], came[place], images)

        black = jnp.zeros((rows, size, size, 3), jnp.uint8)
        return lax.fori_loop(jnp.int32(0), turn.max() // SLOTS + 1, one_round, black)

    run = jax.shard_map(
        exchange, mesh=mesh, in_specs=(P(axes), P(), P()), out_specs=P(axes), check_vma=False
    )
    return run(squares, ids, crops)[:batch_size]


def bytes_sent(
    order: np.ndarray, batch_size: int, num_examples: int, devices: int, size: int
) -> np.ndarray:
    """Returns the bytes that each device sends in each step of an epoch's order, int64 [steps]."""
    rows, held = -(-batch_size // devices), -(-num_examples // devices)
    steps = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    most = np.zeros(len(steps), np.int64)
    for first in range(0, batch_size, rows):
        sources = steps[:, first : first + rows] // held
        for source in range(devices):
            most = np.maximum(most, (sources == source).sum(axis=1))
    return -(-most // SLOTS) * SLOTS * (devices - 1) * size**2 * 3


def cut(squares: jax.Array, ids: jax.Array, crops: jax.Array, size: int) -> jax.Array:
    """Returns images uint8 [B, S, S, 3] cut from squares [N, R, R, 3] by crops int32 [B, 3]."""

    def window(example: jax.Array, crop: jax.Array) -> jax.Array:
        start = (
            example,
            crop[0],
            crop[1],
            jnp.int32(0),
        )  # Python's 0 would have 64 bits under x64.
        return lax.dynamic_slice(squares, start, (1, size, size, 3))[0]

    images = jax.vmap(window)(ids, crops)
    flipped = crops[:, 2, None, None, None] == 1
    return jnp.where(flipped, images[:, :, ::-1], images)
