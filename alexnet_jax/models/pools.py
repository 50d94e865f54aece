"""Pools maps [B, H, W, C]: computes the maximum or the mean of each window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.models import forms, windows

LARGEST_FAST = 11  # the largest window whose places an int8 can number


def max_pool(x, *, window: int, stride: int, overhang: bool = False, form: str | None = None):
    """Takes the maximum of each window; the gradient goes to the first of equal maxima.

    `form` is "fast", "plain", or None for the form that the platform takes (see forms.py).
    """
    x = _overhang(x, window, stride, overhang, -np.inf)
    return forms.take(
        "pool",
        "plain" if window > LARGEST_FAST else form,
        lambda x: _max_pool_fast(x, window, stride),
        lambda x: _max_pool_plain(x, window, stride),
        x,
    )


def avg_pool(x, *, window: int, stride: int, overhang: bool = False):
    """Takes the mean of each window over its pixels that lie inside the image.

    It adds shifted slices, because the gradient of reduce_window is ten times slower on a CPU.
    """
    inside = [
        [
            min(i * stride + window, n) - i * stride
            for i in range(windows.output_size(n, window, stride, overhang=overhang))
        ]
        for n in x.shape[1:3]
    ]
    count = np.outer(*inside)[:, :, None].astype(x.dtype)
    x = _overhang(x, window, stride, overhang, 0)
    return sum(windows.shifted(x, window, stride)) / count


def _overhang(x, window, stride, overhang, value):
    """Pads `x` at the bottom and on the right up to the end of the last window."""
    if not overhang:
        return x
    ends = [
        (windows.output_size(n, window, stride, overhang=True) - 1) * stride + window
        for n in x.shape[1:3]
    ]
    pads = [max(0, end - n) for end, n in zip(ends, x.shape[1:3], strict=True)]
    fill = np.asarray(value, x.dtype)
    return lax.pad(x, fill, [(0, 0, 0), (0, pads[0], 0), (0, pads[1], 0), (0, 0, 0)])


def _max_pool_plain(x, window, stride):
    sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
    low = np.asarray(-np.inf, x.dtype)
    return lax.reduce_window(x, low, lax.max, sizes, strides, "VALID")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool_fast(x, window, stride):
    """Reduces columns, then rows; its gradient uses the place of the first maximum, in int8."""
    for axis in (2, 1):
        x = functools.reduce(jnp.maximum, windows.shifted_along(x, axis, window, stride))
    return x


def _max_pool_fwd(x, window, stride):
    best, *others = windows.shifted(x, window, stride)
    place = jnp.zeros_like(best, jnp.int8)
    for number, other in enumerate(others, 1):
        place = jnp.where(other > best, jnp.int8(number), place)
        best = jnp.maximum(best, other)
    return best, (place, x)


def _max_pool_bwd(window, stride, saved, g):
    """Gives each pixel the gradients of those windows of which it is the first maximum.

    Pixels are taken in blocks of stride x stride, which can lie in the same windows.
    """
    place, x = saved
    reach = -(-window // stride)  # the number of windows along an axis that may contain a pixel
    blocks = [-(-size // stride) for size in x.shape[1:3]]
    pads = [(reach - 1, n - size, 0) for n, size in zip(blocks, g.shape[1:3], strict=True)]
    pads = [(0, 0, 0), *pads, (0, 0, 0)]
    place = lax.pad(place, np.int8(-1), pads)
    g = lax.pad(g, np.zeros((), g.dtype), pads)
    dx = 0
    for first in np.ndindex(reach, reach):
        # The places of a block's pixels in these windows; -2 for pixels past their end.
        rows, columns = (np.arange(stride) + stride * (reach - 1 - start) for start in first)
        number = (window * rows)[:, None] + columns
        number[rows >= window] = number[:, columns >= window] = -2
        number = number.astype(np.int8)[:, None, :, None]
        ends = [start + n for start, n in zip(first, blocks, strict=True)]
        cut = (slice(None), slice(first[0], ends[0]), None, slice(first[1], ends[1]), None)
        dx += jnp.where(place[cut] == number, g[cut], np.zeros((), g.dtype))
    dx = dx.reshape(len(x), stride * blocks[0], stride * blocks[1], x.shape[-1])
    return (dx[:, : x.shape[1], : x.shape[2]],)


_max_pool_fast.defvjp(_max_pool_fwd, _max_pool_bwd)
