"""Computes where windows slide over maps [B, H, W, C], and shifts the maps under them."""

import math

from jax import lax


def output_size(
    size: int, window: int, stride: int, padding: tuple[int, int] = (0, 0), overhang: bool = False
) -> int:
    """Returns the length of the output along one axis, which is below 1 if no window fits.

    Args:
        size: the length of the input along the axis, in pixels.
        window: the length of the window, in pixels.
        stride: the pixels from the beginning of one window to that of the next.
        padding: the pixels that are added (before, after).
        overhang: whether the last window may extend past the border, as in cuda-convnet: the length
            is then 1 + ceil((size - window) / stride), and otherwise it is rounded down.
    """
    steps = (size + sum(padding) - window) / stride
    return 1 + (math.ceil(steps) if overhang else math.floor(steps))


def shifted(x, window: int, stride: int) -> list:
    """Returns window * window slices of `x`; the n-th has the n-th pixel of each window."""
    rows = shifted_along(x, 1, window, stride)
    return [column for row in rows for column in shifted_along(row, 2, window, stride)]


def shifted_along(x, axis: int, window: int, stride: int) -> list:
    """Returns `window` slices of `x` along an axis; the n-th has the n-th place of each window."""
    span = (output_size(x.shape[axis], window, stride) - 1) * stride + 1
    return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(window)]
