"""Convolutions by oneDNN, the library that computes PyTorch's on a CPU, out of jaxlib's own copy.

The call to it is written here, as jaxlib's compiler would [openxla/xla, xla/service/cpu:
onednn_contraction_rewriter.cc for its fields, onednn_convolution.cc for what is done with them].
XLA cannot write such a program into the compilation cache: see jax_versions.can_be_cached.
"""

import json

import jax
from jax import lax

from alexnet_jax.models import windows
from alexnet_jax.runtime import jax_versions

CACHED_BYTES = 2**20  # of the output's gradient in one call, which is read once per input channel
BATCH = 16  # images whose kernel gradient is one call, at least: a vector of float32

_IMAGES = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}  # [B, H, W, C]
_KERNEL = {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}  # [K, K, I, O]
_EXCHANGED = {"input_feature_dim": 3, "output_feature_dim": 2, "spatial_dims": [0, 1]}


def convolution(x, kernel, stride: int, padding: tuple[int, int]):
    """Convolves float32 [B, H, W, I] with [K, K, I, O], without a gradient of its own.

    It and `input_gradient` reach what XLA's matrix products do on that CPU (the first layer five
    sixths of it), `kernel_gradient` two thirds or more [experiments/results/bench/layers.jsonl].

    Args:
        x: float32 [B, H, W, I].
        kernel: float32 [K, K, I, O].
        stride: pixels between windows, on both axes.
        padding: (before, after) on both axes, each smaller than the kernel.
    """
    sides = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    sizes = [windows.output_size(size, window, stride, padding) for size, window in sides]
    shape = (len(x), *sizes, kernel.shape[-1])
    return _call(x, kernel, shape, stride=stride, padding=(padding, padding))


def input_gradient(x, kernel, g, padding: tuple[int, int]):
    """Returns the gradient of `x` from that of the output, `g`, of a convolution of stride 1.

    It is `g` convolved with the kernel turned by half a circle, its input and output exchanged.
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
        used = (g.shape[axis] - 1) * stride + size - padding[0]  # of the input, and padding after
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
    `dilation` is the kernel's. There is no gradient.
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
