"""Convolutions by oneDNN, the library that computes PyTorch's on a CPU, out of jaxlib's own copy.

jaxlib's builds have oneDNN and the call to it, but not the compiler pass that would write the call;
here it is written instead [openxla/xla, xla/service/cpu: onednn_contraction_rewriter.cc for its
fields, onednn_convolution.cc for what is done with them]. Forward and for the gradient of the input
it reaches what XLA's matrix products do on that CPU, for the kernel's two thirds of it or more
(`bench layers`; experiments/results/bench/layers.jsonl).

XLA cannot write such a program into the compilation cache (jaxlib 0.10.2 ends with std::bad_alloc).
"""

import functools
import json
import math
import platform
import sys

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax

# Whose call has these fields: with others, oneDNN would end the process. Tried one by one.
JAXLIBS = ("0.10.2",)
LEAST_WORK = 2**27  # multiply-adds; fewer don't repay a compilation at every start

_BATCH = 16  # images whose kernel gradient is one call, at least: a vector of float32
_CACHED_BYTES = 2**21  # of the output's gradient in one call, which is read once per input channel

_IMAGES = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}  # [B, H, W, C]
_KERNEL = {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}  # [K, K, I, O]
_TURNED = {"input_feature_dim": 3, "output_feature_dim": 2, "spatial_dims": [0, 1]}


def takes(x, kernel, stride: int, padding: tuple[int, int]) -> bool:
    """Whether `conv` can compute this one on this machine, and is worth it."""
    if jaxlib.__version__ not in JAXLIBS:
        return False
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    if x.dtype != jnp.float32 or max(padding) >= min(kernel.shape[:2]):
        return False
    out = _out_shape(x.shape, kernel.shape, stride, padding)
    return math.prod(out) * math.prod(kernel.shape[:3]) >= LEAST_WORK


def conv(x, kernel, stride: int, padding: tuple[int, int]):
    """`ops.conv` of float32 arrays."""
    # Whatever this is a part of is not to be written into the cache.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", sys.float_info.max)
    axes = [jax.typeof(each).manual_axis_type.varying for each in (x, kernel)]  # in shard_map
    missing = [tuple(sorted((axes[0] | axes[1]) - own)) for own in axes]
    x, kernel = (
        lax.pcast(each, axis, to="varying") if axis else each
        for each, axis in zip((x, kernel), missing, strict=True)
    )
    return _conv(x, kernel, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, stride, padding):
    out = _out_shape(x.shape, kernel.shape, stride, padding)
    return _call(x, kernel, out, stride=stride, padding=(padding, padding))


def _conv_fwd(x, kernel, stride, padding):
    return _conv(x, kernel, stride, padding), (x, kernel)


def _conv_bwd(stride, padding, saved, g):
    x, kernel = saved
    return (
        _input_gradient(x, kernel, g, stride, padding),
        _kernel_gradient(x, kernel, g, stride, padding),
    )


_conv.defvjp(_conv_fwd, _conv_bwd)


def _input_gradient(x, kernel, g, stride, padding):
    """`g` convolved with the kernel turned by half a circle, its input and output exchanged."""
    if stride > 1:  # as in a first layer, where the compiler leaves it out
        strides, pads, order = (stride, stride), (padding, padding), ("NHWC", "HWIO", "NHWC")
        plain = functools.partial(lax.conv_general_dilated, dimension_numbers=order)
        return jax.vjp(lambda x: plain(x, kernel, strides, pads), x)[1](g)[0]
    pads = [tuple(size - 1 - pad for pad in padding) for size in kernel.shape[:2]]
    return _call(g, kernel[::-1, ::-1], x.shape, padding=pads, layout=_TURNED)


def _kernel_gradient(x, kernel, g, stride, padding):
    """A convolution whose channels are the images and whose images are the input's channels."""
    height, width, channels, features = kernel.shape
    pads = []
    for axis, size in ((1, height), (2, width)):
        used = (g.shape[axis] - 1) * stride + size - padding[0]  # of the input, and padding after
        x = lax.slice_in_dim(x, 0, min(used, x.shape[axis]), axis=axis)
        pads.append((padding[0], used - x.shape[axis]))
    batches = _CACHED_BYTES // (g[0].size * g.dtype.itemsize) // _BATCH
    count = _BATCH * max(1, batches)
    total = 0
    for start in range(0, len(x), count):
        images = x[start : start + count].transpose(3, 1, 2, 0)
        weights = g[start : start + count].transpose(1, 2, 0, 3)
        out = (channels, height, width, features)
        total += _call(images, weights, out, padding=pads, dilation=stride)
    return total.transpose(1, 2, 0, 3)


def _out_shape(images, kernel, stride, padding):
    sizes = [
        (size + sum(padding) - window) // stride + 1
        for size, window in zip(images[1:3], kernel[:2], strict=True)
    ]
    return (images[0], *sizes, kernel[3])


def _call(images, kernel, out, *, padding, stride=1, dilation=1, layout=_KERNEL):
    """A forward convolution; `padding` is (before, after) of each axis, `dilation` the kernel's."""
    befores, afters = zip(*padding, strict=True)
    config = {
        "dims": 4,
        "input": {"dims": 4, **_IMAGES},
        "kernel": {"dims": 4, "filter": layout},
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
        "__onednn$convolution",
        jax.typeof(images).update(shape=out),
        custom_call_api_version=1,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(images, kernel)
