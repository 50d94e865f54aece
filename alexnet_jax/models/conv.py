"""Convolves [B, H, W, I] with a kernel [K, K, I, O], or with a separate kernel for every place.

`padding` is (before, after) on both axes. `form` is "fast", "plain", or None for the form that the
platform takes (see forms.py).
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.models import forms, onednn, onednn_trial, windows
from alexnet_jax.runtime import jax_versions

LEAST_WORK = 2**26  # multiply-adds from which oneDNN repays a compilation at every start
FIRST_CONV_COLUMNS = 128  # Measured: 11x11/4 with 144 columns gains time, 5x5/2 with 36 loses some.


def conv(x, kernel, *, stride: int, padding: tuple[int, int], form: str | None = None):
    """Convolves [B, H, W, I] with [K, K, I, O].

    A layer in two towers calls it once per tower: XLA's grouped convolution
    (feature_group_count) is slower on a CPU, and no faster by the estimates for a GPU
    (docs/speed.md).
    """
    if _takes_onednn(x, kernel, stride, padding):
        fast = _by_onednn_wide
    elif stride == 1 and _covers(kernel, x, padding):
        fast = _as_product
    else:
        return _plain(x, kernel, stride, padding)
    return forms.take(
        "conv",
        form,
        lambda x, kernel: fast(x, kernel, stride, padding),
        lambda x, kernel: _plain(x, kernel, stride, padding),
        *_varying_alike(x, kernel),
    )


def first_conv(x, kernel, *, stride: int, padding: tuple[int, int], form: str | None = None):
    """Convolves as `conv` does, in a form for the first layer's few channels and large kernel.

    Inside shard_map `kernel` must vary over the axes that `x` varies over (jax.lax.pcast).
    """
    columns = -(-kernel.shape[1] // stride) * stride**2 * kernel.shape[2]
    few = stride == 1 or columns < FIRST_CONV_COLUMNS
    if few or _takes_onednn(x, kernel, stride, padding):
        return conv(x, kernel, stride=stride, padding=padding, form=form)

    def fast(x, kernel):
        y = _plain(x, lax.stop_gradient(kernel), stride, padding)
        return _with_kernel_gradient(y, kernel, x, stride, padding)

    def plain(x, kernel):
        return _plain(x, kernel, stride, padding)

    return forms.take("conv", form, fast, plain, x, kernel)


def local_conv(x, kernel, *, padding: tuple[int, int]):
    """Convolves with stride 1 and untied weights: `kernel` is [OH, OW, K, K, I, O].

    Every output position has its own kernel (cuda-convnet's type "local").
    """
    height, width, size = kernel.shape[:3]
    padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    patches = jnp.concatenate(windows.shifted(padded, size, 1), axis=-1)
    flat = kernel.reshape(height, width, -1, kernel.shape[-1])
    return jnp.einsum("bhwi,hwio->bhwo", patches, flat)


def add_bias(maps, bias):
    """Adds a bias [C] to maps [B, H, W, C]."""
    return forms.take("bias", None, _add_bias_apart, operator.add, maps, bias)


@jax.custom_vjp
def _add_bias_apart(maps, bias):
    """Sums the gradient of the bias separately from the computation of that of the maps.

    Where XLA fuses the two for a GPU it computes the gradient of normalisation and pooling twice:
    to write it and to add it up.
    """
    return maps + bias


def _add_bias_apart_fwd(maps, bias):
    return maps + bias, None


def _add_bias_apart_bwd(_, g):
    g = lax.optimization_barrier(g)
    return g, g.sum(axis=(0, 1, 2))


_add_bias_apart.defvjp(_add_bias_apart_fwd, _add_bias_apart_bwd)


def _plain(x, kernel, stride, padding):
    before, after = padding
    pads = []
    places = _places(x, kernel, stride, padding)
    for size, window, count in zip(x.shape[1:3], kernel.shape[:2], places, strict=True):
        end = (count - 1) * stride + window - before - size
        # cuDNN pads both sides equally, and any other padding makes a copy of the images. So
        # padding that no window reads is left out, as in the paper's first layer at 227 pixels.
        pads.append((before, min(after, max(0, end))))
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _covers(kernel, x, padding) -> bool:
    """Returns whether a kernel has more pixels than the maps, before or after the convolution."""
    before, after = x.shape[1:3], _places(x, kernel, 1, padding)
    return math.prod(kernel.shape[:2]) > min(math.prod(before), math.prod(after))


def _as_product(x, kernel, stride, padding):
    """Convolves by one matrix product of the kernel with the windows.

    XLA swaps a convolution's operands on a CPU where the kernel is the larger one, and is then 20
    times slower (jaxlib 0.10.2, 5x5 kernels on 4x4 maps).
    """
    padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    patches = jnp.concatenate(windows.shifted(padded, kernel.shape[0], stride), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def suits_onednn(x, kernel, stride: int, padding: tuple[int, int]) -> bool:
    """Returns whether oneDNN can compute this convolution, and saves time.

    The arrays may be shapes with dtypes.
    """
    fixed = isinstance(x.shape[0], int)  # The batch of an exported function has no fixed size.
    known = x.dtype in (jnp.float32, jnp.bfloat16)
    if not fixed or not known or max(padding) >= min(kernel.shape[:2]):
        return False
    places = math.prod(_places(x, kernel, stride, padding))
    return x.shape[0] * places * math.prod(kernel.shape) >= LEAST_WORK


def _places(x, kernel, stride, padding) -> list[int]:
    """Returns the height and width of the convolution."""
    sides = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    return [windows.output_size(size, window, stride, padding) for size, window in sides]


def _takes_onednn(x, kernel, stride, padding) -> bool:
    return suits_onednn(x, kernel, stride, padding) and onednn_trial.has_onednn()


def _varying_alike(*arrays):
    """Returns the arrays as varying, in shard_map, over all axes that any of them varies over."""
    axes = [jax_versions.varying_axes(each) for each in arrays]
    missing = [tuple(sorted(frozenset().union(*axes) - own)) for own in axes]
    return [
        lax.pcast(each, axis, to="varying") if axis else each
        for each, axis in zip(arrays, missing, strict=True)
    ]


def _by_onednn_wide(x, kernel, stride, padding):
    """Computes bfloat16 in float32, as XLA does on a CPU, and rounds the result."""
    wide = (each.astype(jnp.float32) for each in (x, kernel))
    return _by_onednn(*wide, stride, padding).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_onednn(x, kernel, stride, padding):
    return onednn.convolution(x, kernel, stride, padding)


def _by_onednn_fwd(x, kernel, stride, padding):
    return _by_onednn(x, kernel, stride, padding), (x, kernel)


def _by_onednn_bwd(stride, padding, saved, g):
    x, kernel = saved
    if stride == 1:
        dx = onednn.input_gradient(x, kernel, g, padding)
    else:  # In a first layer the compiler leaves this gradient out.
        dx = jax.vjp(lambda x: _plain(x, kernel, stride, padding), x)[1](g)[0]
    return dx, onednn.kernel_gradient(x, kernel, g, stride, padding)


_by_onednn.defvjp(_by_onednn_fwd, _by_onednn_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _with_kernel_gradient(y, kernel, x, stride, padding):
    """Returns `y`, the convolution of `x`, with a kernel's gradient by a few matrix products."""
    return y


def _with_kernel_gradient_fwd(y, kernel, x, stride, padding):
    return y, (x, kernel)


def _with_kernel_gradient_bwd(stride, padding, saved, g):
    x, kernel = saved
    return g, _kernel_gradient(x, g, kernel.shape, stride, padding), None


_with_kernel_gradient.defvjp(_with_kernel_gradient_fwd, _with_kernel_gradient_bwd)


def _kernel_gradient(x, g, shape, stride, padding):
    """Computes the kernel's gradient as products of rows of stride x stride blocks with `g`."""
    rows, columns = (-(-size // stride) for size in shape[:2])  # the blocks that a kernel covers
    batch, height, width, features = g.shape
    ends = ((height - 1 + rows) * stride, (width - 1 + columns) * stride)
    pads = [
        (padding[0], end - padding[0] - n, 0) for end, n in zip(ends, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])

    blocks = (batch, height - 1 + rows, stride, width - 1 + columns, stride, shape[2])
    x = x.reshape(blocks).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(*x.shape[:3], -1)  # The pixels of a block become its channels (space to depth).
    x = jnp.concatenate([x[:, :, i : i + width] for i in range(columns)], axis=-1)
    g = g.reshape(-1, features)
    products = [x[:, i : i + height].reshape(len(g), -1).T @ g for i in range(rows)]

    kernel = jnp.stack(products).reshape(rows, columns, stride, stride, shape[2], features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(rows * stride, columns * stride, shape[2], features)
    return kernel[: shape[0], : shape[1]]
