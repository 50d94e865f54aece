"""Computes convolutions with oneDNN, which PyTorch uses on a CPU and of which jaxlib has a copy.

This module writes the call to oneDNN as jaxlib's compiler would [openxla/xla, xla/service/cpu:
onednn_contraction_rewriter.cc for its fields, onednn_convolution.cc for their meaning]. XLA cannot
write such a program into the compilation cache (see jax_versions.can_be_cached).
"""

import json

import jax
from jax import lax

from alexnet_jax.models import windows
from alexnet_jax.runtime import jax_versions

CACHED_BYTES = 2**20  # bytes of the output's gradient in one call, read once per input channel
BATCH = 16  # the fewest images in one call for the kernel's gradient: a vector of float32

_IMAGES = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}  # [B, H, W, C]
_KERNEL = {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}  # [K, K, I, O]
_EXCHANGED = {"input_feature_dim": 3, "output_feature_dim": 2, "spatial_dims": [0, 1]}


def convolution(x, kernel, stride: int, padding: tuple[int, int]):
    """Convolves float32 [B, H, W, I] with [K, K, I, O]; JAX cannot differentiate it.

    This function and `input_gradient` reach the speed of XLA's matrix products on the same CPU (the
    first layer five sixths of it), and `kernel_gradient` two thirds of it or more
    [experiments/results/bench/layers.jsonl].

    Args:
        x: float32 [B, H, W, I].
        kernel: float32 [K, K, I, O].
        stride: the pixels from one window to the next, on both axes.
        padding: (before, after) on both axes, each smaller than the kernel.
    """
    sides = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    sizes = [windows.output_size(size, window, stride, padding) for size, window in sides]
    shape = (len(x), *sizes, kernel.shape[-1])
    return _call(x, kernel, shape, stride=stride, padding=(padding, padding))


def input_gradient(x, kernel, g, padding: tuple[int, int]):
    """Returns the gradient of `x` from that of the output, `g`, of a convolution of stride 1.

    It convolves `g` with the kernel, rotated by half a turn and with input and output exchanged.
    """
    pads = [tuple(size - 1 - pad for pad in padding) for size in kernel.shape[:2]]
    return _call(g, kernel[::-1, ::-1], x.shape, padding=pads, exchanged=True)


def kernel_gradient(x, kernel, g, stride: int, padding: tuple[int, int]):
    """Returns the gradient of the kernel from that of the output, `g`.

    It is a convolution whose channels are the images and whose images are the input's channels.
    """
    height, width, channels, features = kernel.shape
    pads = []
    for axis, size in ((1, height), (2, width)):
        # The part of the input, and of the padding after it, that is used.
        used = (g.shape[axis] - 1) * stride + size - padding[0]
        x = lax.slice_in_dim(x, 0, min(used, x.shape[axis]), axis=axis)
        pads.append((padding[0], used - x.shape[axis]))
    batches = CACHED_BYTES // (g[0].size * g.dtype.itemsize) // BATCH
    count = BATCH * max(1, batches)
    total = 0
    for start in range(0, len(x), count):
        images = x[start : start + count].transpose(3, 1, 2, 0)
        weights = g[start : start + count].transpose(1, 2, 0, 3)
        shape = (channels, height, width, features)
        total += _call(images, weights, shape, padding=pads, dilation=stride)
    return total.transpose(1, 2, 0, 3)


def _call(images, kernel, shape, *, padding, stride=1, dilation=1, exchanged=False):
    """Calls oneDNN on float32 [B, H, W, I] and [K, K, I, O] (exchanged: [K, K, O, I]).

    The result has the shape `shape`. `padding` is (before, after) of each axis and not negative;
    `dilation` is that of the kernel. JAX cannot differentiate the call.
    """
    befores, afters = zip(*padding, strict=True)
    config = {
        "dims": 4,
        "input": {"dims": 4, **_IMAGES},
        "kernel": {"dims": 4, "filter": _EXCHANGED if exchanged else _KERNEL},
        "output": {"dims": 4, **_IMAGES},
        "window": {
            "pad_left": befores,
            "pad_right": afters,
            "strides": (stride, stride),
            "window_dilations": (dilation, dilation),
        },
        "feature_groups": 1,
    }
    call = jax.ffi.ffi_call(
        jax_versions.ONEDNN_CALL,
        jax.typeof(images).update(shape=shape),
        custom_call_api_version=1,
        vmap_method="sequential",
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(images, kernel)
