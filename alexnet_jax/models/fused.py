"""Computes ReLU, normalisation across maps and max pooling in one kernel, with one pass over maps.

XLA runs a separate kernel for each of these operators, and three for their gradients. This kernel
is written in Pallas for NVIDIA's GPUs, and gives the same values and gradients (tests/test_ops.py).
It is off until it has been measured on a card (docs/speed.md).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from alexnet_jax.models import norms, pools
from alexnet_jax.models.operations import Operation
from alexnet_jax.runtime import jax_versions


class Constants(NamedTuple):
    """Holds the constants of the normalisation and of the pooling (see norms.py and pools.py)."""

    size: int
    alpha: float
    beta: float
    k: float
    window: int
    stride: int


def chains(model, table: Sequence[Operation]) -> dict[str, tuple[str, Constants]]:
    """Finds where a net has the three operators in a row, for each tower separately.

    Args:
        model: An `AlexNet`.
        table: Its operations.

    Returns:
        {name of the pooling: (name of the ReLU, the constants of both others)}.
    """
    if model.activation != "relu" or model.pool_overhang:
        return {}
    lrn = (model.lrn_size, model.lrn_alpha, model.lrn_beta, model.lrn_k)
    return {
        pool.name: (act.name, Constants(*lrn, pool.window, pool.stride))
        for act, norm, pool in zip(table, table[1:], table[2:], strict=False)
        if (act.kind, norm.kind, pool.kind) == ("act", "lrn", "max_pool") and norm.reads == "own"
    }


def relu_lrn_max_pool(x, constants: Constants):
    """Pools the normalised ReLU of maps [B, H, W, C], in one kernel if the platform is CUDA."""
    return lax.platform_dependent(
        x,
        cuda=lambda x: by_kernel(x, constants, False),
        default=lambda x: by_operators(x, constants),
    )


def by_operators(x, constants: Constants):
    """Applies the three operators one after the other."""
    size, alpha, beta, k, window, stride = constants
    y = norms.local_response_norm(jax.nn.relu(x), size=size, alpha=alpha, beta=beta, k=k)
    return pools.max_pool(y, window=window, stride=stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def by_kernel(x, constants: Constants, interpret: bool):
    """Applies the kernel, which with `interpret` runs slowly on any platform."""
    return _forward(x, constants, interpret)[0]


def _forward(x, constants, interpret):
    batch, *sides, maps = x.shape
    places = [1 + (n - constants.window) // constants.stride for n in sides]
    shape = (batch, *places, maps)
    y, place = _call(
        functools.partial(_forward_kernel, constants),
        (batch, places[0]),
        [jax_versions.result_like(x, shape, x.dtype), jax_versions.result_like(x, shape, jnp.int8)],
        interpret,
    )(x)
    return y, (x, place)


def _backward(constants, interpret, saved, g):
    x, _ = saved
    kernel = functools.partial(_backward_kernel, constants)
    return (
        _call(kernel, x.shape[:2], jax_versions.result_like(x, x.shape, x.dtype), interpret)(
            *saved, g
        ),
    )


by_kernel.defvjp(_forward, _backward)


def _call(kernel, grid, out, interpret):
    params = triton.CompilerParams(num_warps=8)
    return pl.pallas_call(kernel, out, grid=grid, compiler_params=params, interpret=interpret)


def _tile(ref):
    """Numbers the columns and maps of a row in a tile, whose sides are powers of two for Triton."""
    *_, width, maps = ref.shape
    shape = (pl.next_power_of_2(width), pl.next_power_of_2(maps))
    columns, own = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    return columns, own, (columns < width) & (own < maps)


def _read(ref, row, columns, maps, where):
    """Reads a tile of this program's image, with zeros where `where` is false."""
    there = (columns >= 0) & (columns < ref.shape[2]) & (maps >= 0) & (maps < ref.shape[3])
    where = where & there & (row >= 0) & (row < ref.shape[1])
    zero = np.zeros((), ref.dtype)
    return triton.load(ref.at[pl.program_id(0), row, columns, maps], mask=where, other=zero)


def _rectified(ref, row, columns, maps, where, reach):
    """Reads ReLUs of maps and of their neighbours in float32, by the distance of the neighbour."""
    return {
        n: jnp.maximum(_read(ref, row, columns, maps + n, where).astype(jnp.float32), 0)
        for n in range(-reach[0], reach[1] + 1)
    }


def _divisors(constants, values, at):
    before = constants.size // 2
    window = range(at - before, at - before + constants.size)
    return constants.k + constants.alpha * sum(values[n] * values[n] for n in window)


def _forward_kernel(constants, x_ref, y_ref, place_ref):
    size, _, beta, _, window, stride = constants
    row = pl.program_id(1)
    columns, maps, inside = _tile(y_ref)
    best = place = None
    for number, (i, j) in enumerate(np.ndindex(window, window)):
        values = _rectified(
            *(x_ref, row * stride + i, columns * stride + j, maps, inside),
            (size // 2, size - 1 - size // 2),
        )
        value = values[0] * norms.inverse_power(_divisors(constants, values, 0), beta)
        # After this rounding, ties are the same as those of the operators.
        value = value.astype(x_ref.dtype).astype(jnp.float32)
        if number == 0:
            best, place = value, jnp.zeros(value.shape, jnp.int32)
            continue
        place = jnp.where(value > best, number, place)
        best = jnp.where((value > best) | (value != value), value, best)
    at = (pl.program_id(0), row, columns, maps)
    triton.store(y_ref.at[at], best.astype(y_ref.dtype), mask=inside)
    triton.store(place_ref.at[at], place.astype(jnp.int8), mask=inside)


def _backward_kernel(constants, x_ref, place_ref, g_ref, dx_ref):
    size, alpha, beta, *_ = constants
    row = pl.program_id(1)
    columns, maps, inside = _tile(dx_ref)
    before, after = size // 2, size - 1 - size // 2
    values = _rectified(x_ref, row, columns, maps, inside, (size - 1, size - 1))
    shared = 0.0
    for n in range(-after, before + 1):  # the maps whose sums contain this one
        d = _divisors(constants, values, n)
        pooled = _pooled_gradient(constants, place_ref, g_ref, row, columns, maps + n, inside)
        scaled = pooled * norms.inverse_power(d, beta)
        shared += scaled * values[n] / d
        if n == 0:
            own = scaled
    dx = jnp.where(values[0] > 0, own - 2 * alpha * beta * values[0] * shared, 0.0)
    at = (pl.program_id(0), row, columns, maps)
    triton.store(dx_ref.at[at], dx.astype(dx_ref.dtype), mask=inside)


def _pooled_gradient(constants, place_ref, g_ref, row, columns, maps, inside):
    """Adds up the gradients of those windows of which a pixel is the first maximum."""
    window, stride = constants.window, constants.stride
    found = 0.0
    for i, j in np.ndindex(*[-(-window // stride)] * 2):
        y, x = row // stride - i, columns // stride - j
        number = (row - y * stride) * window + columns - x * stride
        where = inside & (row - y * stride < window) & (columns - x * stride < window)
        chosen = _read(place_ref, y, x, maps, where).astype(jnp.int32) == number
        g = _read(g_ref, y, x, maps, where & chosen)
        found += g.astype(jnp.float32)
    return found
