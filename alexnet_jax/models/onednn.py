"""A convolution by oneDNN, the library that computes PyTorch's on a CPU, out of jaxlib's own copy.

jaxlib's builds have oneDNN and the call to it, but not the compiler pass that would write the call;
here it is written instead [openxla/xla, xla/service/cpu: onednn_contraction_rewriter.cc for its
fields, onednn_convolution.cc for what is done with them].

XLA cannot write such a program into the compilation cache (jaxlib 0.10.2 ends with std::bad_alloc).
"""

import json
import platform
import sys

import jax
import jaxlib

# Whose call has these fields: with others, oneDNN would end the process. Tried one by one.
JAXLIBS = ("0.10.2",)

_IMAGES = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}  # [B, H, W, C]
_KERNEL = {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}  # [K, K, I, O]
_EXCHANGED = {"input_feature_dim": 3, "output_feature_dim": 2, "spatial_dims": [0, 1]}


def known() -> bool:
    """Whether this machine's jaxlib is one of which the call is known."""
    machine = sys.platform, platform.machine()
    return jaxlib.__version__ in JAXLIBS and machine == ("linux", "x86_64")


def convolve(images, kernel, shape, *, padding, stride=1, dilation=1, exchanged=False):
    """Convolution of float32 [B, H, W, I] with [K, K, I, O] (exchanged: [K, K, O, I]) to `shape`.

    `padding` is (before, after) of each axis and not negative; `dilation` is the kernel's. There is
    no gradient. Ends this process's writing to the compilation cache.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", sys.float_info.max)
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
        "__onednn$convolution",
        jax.typeof(images).update(shape=shape),
        custom_call_api_version=1,
        vmap_method="sequential",
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(images, kernel)
