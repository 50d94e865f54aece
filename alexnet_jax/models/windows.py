"""Windows that slide over maps [B, H, W, C]: how many fit, and the maps shifted under them."""

import math

from jax import lax


def output_size(
    size: int, window: int, stride: int, padding: tuple[int, int] = (0, 0), overhang: bool = False
) -> int:
    """Returns the length of the output along one axis; 0 or less if the window doesn't fit.

    Args:
        size: the length of the input along the axis, in pixels.
        window: the window's length, in pixels.
        stride: pixels between the beginnings of two windows.
        padding: (before, after), in pixels.
        overhang: whether the last window may run past the border (cuda-convnet: 1 + ceil((in -
            window) / stride)); else it may not (floor).
    """
    steps = (size + sum(padding) - window) / stride
    return 1 + (math.ceil(steps) if overhang else math.floor(steps))


def shifted(x, window: int, stride: int) -> list:
    """Returns window * window strided slices of `x`: the n-th has the n-th pixel of each window."""
    rows = shifted_along(x, 1, window, stride)
    return [column for row in rows for column in shifted_along(row, 2, window, stride)]


def shifted_along(x, axis: int, window: int, stride: int) -> list:
    """Returns `window` strided slices of `x`: the n-th has the n-th place of each window."""
    span = (output_size(x.shape[axis], window, stride) - 1) * stride + 1
    return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(window)]
