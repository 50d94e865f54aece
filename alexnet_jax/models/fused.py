"""Computes a convolution's bias, ReLU, normalisation across maps and max pooling in one kernel.

XLA runs several kernels for these operators, and more for their gradients. This one is written in
Pallas for NVIDIA's GPUs, passes over the maps once, and gives the same values and gradients
(tests/test_ops.py). It is off until it has been measured on a card (docs/speed.md).
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
from alexnet_jax.models.operations import Operation, apply
from alexnet_jax.runtime import jax_versions


class Constants(NamedTuple):
    """Holds the constants of the normalisation and of the pooling (see norms.py and pools.py)."""

    size: int
    alpha: float
    beta: float
    k: float
    window: int
    stride: int


class Stage(NamedTuple):
    """Holds a convolution and the operators that follow it, up to its pooling."""

    conv: Operation
    pool: Operation
    constants: Constants


def stages(model, table: Sequence[Operation]) -> dict[str, Stage]:
    """Finds where a net has a convolution with the operators in a row, for each tower separately.

    Args:
        model: An `AlexNet`.
        table: Its operations.

    Returns:
        {name of the pooling: the stage that it ends}.
    """
    if model.activation != "relu" or model.pool_overhang:
        return {}
    lrn = (model.lrn_size, model.lrn_alpha, model.lrn_beta, model.lrn_k)
    return {
        pool.name: Stage(conv, pool, Constants(*lrn, pool.window, pool.stride))
        for conv, act, norm, pool in zip(table, table[1:], table[2:], table[3:], strict=False)
        if (conv.kind, act.kind, norm.kind, pool.kind) == ("conv", "act", "lrn", "max_pool")
        and norm.reads == "own"
    }


def run(stage: Stage, maps: list, kernel, bias, *, parts: int) -> list:
    """Applies a stage to arrays [B, H, W, C], in one kernel if the platform is CUDA.

    Args:
        stage: A convolution and the operators that follow it.
        maps: One array per tower, or one that all towers read.
        kernel: This device's part of the convolution's kernel.
        bias: This device's part of its bias.
        parts: The number of arrays to return, one per tower.
    """
    conv, pool, constants = stage

    def in_one(*operands):
        *maps, kernel, bias = (x.astype(conv.dtype) for x in operands)
        each = parts // len(maps)
        pooled = []
        split = (jnp.split(w, len(maps), axis=-1) for w in (kernel, bias))
        for x, kernel, bias in zip(maps, *split, strict=True):
            with jax.named_scope(conv.name):
                linear = conv.function(x, kernel)
            with jax.named_scope(pool.name):
                pooled += by_kernel(linear, bias, constants, each, False)
        return pooled

    def one_by_one(*operands):
        *maps, kernel, bias = operands
        return [by_operators(x, constants) for x in apply(conv, maps, kernel, bias, parts=parts)]

    return lax.platform_dependent(*maps, kernel, bias, cuda=in_one, default=one_by_one)


def by_operators(x, constants: Constants):
    """Applies ReLU, the normalisation and the pooling one after the other."""
    size, alpha, beta, k, window, stride = constants
    y = norms.local_response_norm(jax.nn.relu(x), size=size, alpha=alpha, beta=beta, k=k)
    return pools.max_pool(y, window=window, stride=stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def by_kernel(x, bias, constants: Constants, towers: int, interpret: bool) -> list:
    """Applies the kernel to a convolution without its bias.

    Args:
        x: The convolution, [B, H, W, C].
        bias: The bias, [C], which the kernel adds.
        constants: The constants of the normalisation and of the pooling.
        towers: The number of parts of C that are normalised separately.
        interpret: Whether to run slowly, on any platform, without compiling the kernel.

    Returns:
        The pooled maps of each tower, [B, H', W', C / towers].
    """
    return _forward(x, bias, constants, towers, interpret)[0]


def _forward(x, bias, constants, towers, interpret):
    batch, *sides, maps = x.shape
    places = [1 + (n - constants.window) // constants.stride for n in sides]
    shape = (batch, *places, maps // towers)
    pooled, chosen = _call(
        functools.partial(_forward_kernel, constants),
        (batch, places[0]),
        [[jax_versions.result_like(x, shape, each)] * towers for each in (x.dtype, jnp.int8)],
        interpret,
    )(x, bias)
    return pooled, (x, bias, chosen)


def _backward(constants, towers, interpret, saved, gradients):
    x, bias, chosen = saved
    batch, height, _, maps = x.shape
    # Each row of an image is added up beside the gradient of its maps, which is not read again.
    rows = jax_versions.result_like(x, (batch, height, maps), jnp.float32)
    dx, rows = _call(
        functools.partial(_backward_kernel, constants),
        (batch, height),
        [jax_versions.result_like(x, x.shape, x.dtype), rows],
        interpret,
    )(x, bias, chosen, gradients)
    return dx, rows.sum(axis=(0, 1)).astype(bias.dtype)


by_kernel.defvjp(_forward, _backward)


def _call(kernel, grid, out, interpret):
    params = triton.CompilerParams(num_warps=8)
    return pl.pallas_call(kernel, out, grid=grid, compiler_params=params, interpret=interpret)


def _tile(width, maps):
    """Numbers the columns and maps of a row in a tile, whose sides are powers of two for Triton."""
    shape = (pl.next_power_of_2(width), pl.next_power_of_2(maps))
    columns, own = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    return columns, own, (columns < width) & (own < maps)


def _read(ref, row, columns, maps, where):
    """Reads a tile of this program's image, with zeros where `where` is false."""
    where = where & (columns >= 0) & (columns < ref.shape[2]) & (row >= 0) & (row < ref.shape[1])
    zero = np.zeros((), ref.dtype)
    return triton.load(ref.at[pl.program_id(0), row, columns, maps], mask=where, other=zero)


class _Tower(NamedTuple):
    """Reads the maps of one tower by their numbers in it; outside it everything is zero."""

    x: jax.Ref
    bias: jax.Ref
    maps: int
    number: int

    def rectified(self, row, columns, maps, where, reach):
        """Returns ReLUs of maps and their neighbours in float32, by the neighbour's distance."""
        return {
            n: self._rectified(row, columns, maps + n, where)
            for n in range(-reach[0], reach[1] + 1)
        }

    def _rectified(self, row, columns, maps, where):
        where, maps = where & self.has(maps), self.number * self.maps + maps
        zero = np.zeros((), self.bias.dtype)
        linear = _read(self.x, row, columns, maps, where)
        linear += triton.load(self.bias.at[maps], mask=where, other=zero)
        return jnp.maximum(linear.astype(jnp.float32), 0)

    def has(self, maps):
        """Returns where `maps` are numbers of maps of this tower."""
        return (maps >= 0) & (maps < self.maps)


def _divisors(constants, values, at):
    before = constants.size // 2
    window = range(at - before, at - before + constants.size)
    return constants.k + constants.alpha * sum(values[n] * values[n] for n in window)


def _forward_kernel(constants, x_ref, bias_ref, pooled_refs, chosen_refs):
    for number, (pooled_ref, chosen_ref) in enumerate(zip(pooled_refs, chosen_refs, strict=True)):
        tower = _Tower(x_ref, bias_ref, pooled_ref.shape[-1], number)
        _pool_tower(constants, tower, pooled_ref, chosen_ref)


def _pool_tower(constants, tower, pooled_ref, chosen_ref):
    """Writes a row of the pooled maps, and the number of each window's first maximum."""
    size, _, beta, _, window, stride = constants
    row = pl.program_id(1)
    columns, maps, inside = _tile(*pooled_ref.shape[2:])
    best = chosen = None
    for number, (i, j) in enumerate(np.ndindex(window, window)):
        values = tower.rectified(
            *(row * stride + i, columns * stride + j, maps, inside),
            (size // 2, size - 1 - size // 2),
        )
        value = values[0] * norms.inverse_power(_divisors(constants, values, 0), beta)
        # After this rounding, ties are the same as those of the operators.
        value = value.astype(pooled_ref.dtype).astype(jnp.float32)
        if number == 0:
            best, chosen = value, jnp.zeros(value.shape, jnp.int32)
            continue
        chosen = jnp.where(value > best, number, chosen)
        best = jnp.where((value > best) | (value != value), value, best)
    at = (pl.program_id(0), row, columns, maps)
    triton.store(pooled_ref.at[at], best.astype(pooled_ref.dtype), mask=inside)
    triton.store(chosen_ref.at[at], chosen.astype(jnp.int8), mask=inside)


def _backward_kernel(constants, x_ref, bias_ref, chosen_refs, g_refs, dx_ref, rows_ref):
    for number, (chosen_ref, g_ref) in enumerate(zip(chosen_refs, g_refs, strict=True)):
        tower = _Tower(x_ref, bias_ref, g_ref.shape[-1], number)
        _tower_gradient(constants, tower, chosen_ref, g_ref, dx_ref, rows_ref)


def _tower_gradient(constants, tower, chosen_ref, g_ref, dx_ref, rows_ref):
    """Writes a row of the gradient of `x`, and its sum over the columns."""
    size, alpha, beta, *_ = constants
    row = pl.program_id(1)
    columns, maps, inside = _tile(dx_ref.shape[2], tower.maps)
    before, after = size // 2, size - 1 - size // 2
    values = tower.rectified(row, columns, maps, inside, (size - 1, size - 1))
    shared = 0.0
    for n in range(-after, before + 1):  # the maps whose sums contain this one
        d = _divisors(constants, values, n)
        where = inside & tower.has(maps + n)
        pooled = _pooled_gradient(constants, chosen_ref, g_ref, row, columns, maps + n, where)
        scaled = pooled * norms.inverse_power(d, beta)
        shared += scaled * values[n] / d
        if n == 0:
            own = scaled
    dx = jnp.where(values[0] > 0, own - 2 * alpha * beta * values[0] * shared, 0.0)
    place = (pl.program_id(0), row)
    first = tower.number * tower.maps
    triton.store(dx_ref.at[*place, columns, first + maps], dx.astype(dx_ref.dtype), mask=inside)
    maps = lax.iota(jnp.int32, dx.shape[1])
    total = jnp.where(inside, dx, 0.0).sum(axis=0)
    triton.store(rows_ref.at[*place, first + maps], total, mask=maps < tower.maps)


def _pooled_gradient(constants, chosen_ref, g_ref, row, columns, maps, where):
    """Adds up the gradients of those windows of which a pixel is the first maximum."""
    window, stride = constants.window, constants.stride
    found = 0.0
    for i, j in np.ndindex(*[-(-window // stride)] * 2):
        y, x = row // stride - i, columns // stride - j
        number = (row - y * stride) * window + columns - x * stride
        covered = where & (row - y * stride < window) & (columns - x * stride < window)
        chosen = _read(chosen_ref, y, x, maps, covered).astype(jnp.int32) == number
        g = _read(g_ref, y, x, maps, covered & chosen)
        found += g.astype(jnp.float32)
    return found
