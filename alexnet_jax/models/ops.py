"""The array operators of the nets, as pure functions. Images and maps are [B, H, W, C].

Where a faster form is known it stands beside the plain form that it equals, and `_fast` alone
decides between them. Both give the same values and gradients (tests/test_ops.py).
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.models import onednn


def _fast() -> bool:
    """Whether this backend takes the fast forms: they were measured on CPUs, and win there.

    On a GPU or TPU the plain forms stand until they are measured against.
    """
    return jax.default_backend() == "cpu" and not _plain.get()


_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """What is traced in it takes the plain forms: one program for all backends and batch sizes."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


# Normalisation


def local_response_norm(x, *, size: int, alpha: float, beta: float, k: float):
    """Local response normalisation across maps: x_i (k + alpha S_i)^-beta, paper section 3.3.

    S_i sums the squares of the maps from i - size//2 on, `size` of them, clipped at both ends.
    `alpha` multiplies the sum itself. The paper's text has size 5, alpha 1e-4, beta 0.75, k 2; the
    2012 code, cuda-convnet2, Caffe and PyTorch divide their "1e-4" by the size first, so there
    alpha is 1e-4 / 5 (k is 2 in the first two, 1 in the others).
    """
    return _response_norm(x, (1, 1, 1, size), alpha, beta, k)


def within_map_norm(x, *, size: int, alpha: float, beta: float, k: float = 1.0):
    """The same over a size x size window of each map (cuda-convnet's rnorm without crossMap).

    `alpha` multiplies the sum: 1e-3 / 25 in the 2012 source's net 145, 5e-5 / 9 in the 18% CIFAR
    net (computerhistory/AlexNet-Source-Code, layers-145.cfg; dnouri/cuda-convnet,
    layer-params-18pct.cfg: both files' scale divided by the size squared).
    """
    return _response_norm(x, (1, size, size, 1), alpha, beta, k)


def _response_norm(x, window, alpha, beta, k):
    norm = _response_norm_fast if _fast() else _response_norm_plain
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # a bfloat16 sum loses the small maps
    return norm(wide, window, alpha, beta, k).astype(x.dtype)


def _response_norm_plain(x, window, alpha, beta, k):
    return x * (k + alpha * _window_sum(jnp.square(x), window)) ** -beta


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _response_norm_fast(x, window, alpha, beta, k):
    """Square roots instead of a general power, and the gradient in closed form."""
    return x * _inverse_power(k + alpha * _window_sum_fast(jnp.square(x), window), beta)


def _response_norm_fwd(x, window, alpha, beta, k):
    d = k + alpha * _window_sum_fast(jnp.square(x), window)
    return x * _inverse_power(d, beta), (x, d)


def _response_norm_bwd(window, alpha, beta, k, saved, g):
    # y_i = x_i d_i^-beta, so dx_j = g_j d_j^-beta - 2 alpha beta x_j sum_i g_i x_i d_i^(-beta-1)
    # over those i whose window holds j: the mirrored window, which differs if its size is even.
    x, d = saved
    scaled = g * _inverse_power(d, beta)
    shared = _window_sum_fast(scaled * x / d, window, mirrored=True)
    return (scaled - 2 * alpha * beta * x * shared,)


_response_norm_fast.defvjp(_response_norm_fwd, _response_norm_bwd)


def _inverse_power(d, beta):
    if beta == 0.75:
        root = lax.rsqrt(d)
        return root * jnp.sqrt(root)
    return d**-beta


def _window_sum(x, window, mirrored=False):
    """Sum over a window that starts size//2 before each place, clipped at the borders."""
    zero = np.zeros((), x.dtype)
    return lax.reduce_window(x, zero, lax.add, window, (1,) * 4, _around(window, mirrored))


def _window_sum_fast(x, window, mirrored=False):
    """The same; within maps as sums of shifted slices, which are slower across them."""
    if window[-1] > 1:
        return _window_sum(x, window, mirrored)
    pads = [(*pad, 0) for pad in _around(window, mirrored)]
    x = lax.pad(x, np.zeros((), x.dtype), pads)
    for axis in (1, 2):
        x = sum(_shifted_along(x, axis, window[axis], 1))
    return x


def _around(window, mirrored):
    pads = [(size // 2, size - 1 - size // 2) for size in window]
    return [pad[::-1] for pad in pads] if mirrored else pads


# Pooling


def pool_size(size: int, window: int, stride: int, overhang: bool = False) -> int:
    """Length of the output along one axis; 0 or less if the window doesn't fit.

    With overhang the last window may run past the border (cuda-convnet: 1 + ceil((in - window) /
    stride)), else it may not (floor).
    """
    steps = (size - window) / stride
    return 1 + (math.ceil(steps) if overhang else math.floor(steps))


def max_pool(x, *, window: int, stride: int, overhang: bool = False):
    """Largest value of each window x window; the gradient goes to the first largest."""
    x = _overhang(x, window, stride, overhang, -np.inf)
    fast = _fast() and window <= _LARGEST_FAST_POOL
    return (_max_pool_fast if fast else _max_pool_plain)(x, window, stride)


_LARGEST_FAST_POOL = 11  # whose places an int8 can number


def avg_pool(x, *, window: int, stride: int, overhang: bool = False):
    """Mean of each window x window, over the pixels that lie inside the image.

    A sum of shifted slices: reduce_window's gradient is ten times slower on a CPU.
    """
    inside = [
        [
            min(i * stride + window, n) - i * stride
            for i in range(pool_size(n, window, stride, overhang))
        ]
        for n in x.shape[1:3]
    ]
    count = np.outer(*inside)[:, :, None].astype(x.dtype)
    x = _overhang(x, window, stride, overhang, 0)
    return sum(_shifted(x, window, stride)) / count


def _overhang(x, window, stride, overhang, value):
    """`x` padded at the bottom and right up to the end of the last window."""
    if not overhang:
        return x
    ends = [(pool_size(n, window, stride, True) - 1) * stride + window for n in x.shape[1:3]]
    pads = [max(0, end - n) for end, n in zip(ends, x.shape[1:3], strict=True)]
    fill = np.asarray(value, x.dtype)
    return lax.pad(x, fill, [(0, 0, 0), (0, pads[0], 0), (0, pads[1], 0), (0, 0, 0)])


def _max_pool_plain(x, window, stride):
    sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
    low = np.asarray(-np.inf, x.dtype)
    return lax.reduce_window(x, low, lax.max, sizes, strides, "VALID")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool_fast(x, window, stride):
    """Columns first, then rows; the gradient uses the place of the first largest, kept in int8."""
    for axis in (2, 1):
        x = functools.reduce(jnp.maximum, _shifted_along(x, axis, window, stride))
    return x


def _max_pool_fwd(x, window, stride):
    best, *others = _shifted(x, window, stride)
    place = jnp.zeros_like(best, jnp.int8)
    for number, other in enumerate(others, 1):
        place = jnp.where(other > best, jnp.int8(number), place)
        best = jnp.maximum(best, other)
    return best, (place, x)


def _max_pool_bwd(window, stride, saved, g):
    """Each pixel asks the windows that hold it whether it was their first largest.

    Pixels are taken in blocks of stride x stride, all of which the same windows may hold.
    """
    place, x = saved
    reach = -(-window // stride)  # windows along an axis that may hold a pixel: the last so many
    blocks = [-(-size // stride) for size in x.shape[1:3]]
    pads = [(reach - 1, n - size, 0) for n, size in zip(blocks, g.shape[1:3], strict=True)]
    pads = [(0, 0, 0), *pads, (0, 0, 0)]
    place = lax.pad(place, np.int8(-1), pads)
    g = lax.pad(g, np.zeros((), g.dtype), pads)
    dx = 0
    for first in np.ndindex(reach, reach):
        # Where in these windows a block's pixels are; past their end, nowhere.
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


def _shifted(x, window, stride):
    """The window * window strided slices of `x`: the n-th holds the n-th pixel of each window."""
    rows = _shifted_along(x, 1, window, stride)
    return [column for row in rows for column in _shifted_along(row, 2, window, stride)]


def _shifted_along(x, axis, window, stride):
    span = (pool_size(x.shape[axis], window, stride) - 1) * stride + 1
    return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(window)]


# Convolution


def conv_size(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> int:
    """Length of the output along one axis; 0 or less if the kernel doesn't fit."""
    return pool_size(size + sum(padding), kernel, stride)


def conv(x, kernel, *, stride: int, padding: tuple[int, int]):
    """Convolution of [B, H, W, I] with [K, K, I, O]; `padding` is (before, after) on both axes.

    A layer in two towers calls it once per tower: XLA's grouped convolution
    (feature_group_count) is slower, and its partitioner gathers the whole batch.
    """
    if _by_onednn(x, kernel, stride, padding):
        return _conv_fast(*_varying_alike(x, kernel), stride, padding)
    return _conv_plain(x, kernel, stride, padding)


_LEAST_WORK = 2**26  # multiply-adds; fewer don't repay a compilation at every start


def _by_onednn(x, kernel, stride, padding) -> bool:
    if not _fast() or not onednn.known():  # without _fast the batch may be symbolic
        return False
    if x.dtype != jnp.float32 or max(padding) >= min(kernel.shape[:2]):
        return False
    out = _conv_shape(x, kernel, stride, padding)
    return math.prod(out) * math.prod(kernel.shape[:3]) >= _LEAST_WORK


def _conv_shape(x, kernel, stride, padding):
    sides = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    sizes = [conv_size(size, window, stride, padding) for size, window in sides]
    return (len(x), *sizes, kernel.shape[-1])


def _varying_alike(*arrays):
    """The arrays, seen inside shard_map as varying over all axes that any of them varies over."""
    axes = [jax.typeof(each).manual_axis_type.varying for each in arrays]
    missing = [tuple(sorted(frozenset().union(*axes) - own)) for own in axes]
    return [
        lax.pcast(each, axis, to="varying") if axis else each
        for each, axis in zip(arrays, missing, strict=True)
    ]


def _conv_plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_fast(x, kernel, stride, padding):
    """By oneDNN, as are its gradients.

    Forward and for the input's gradient it reaches what XLA's matrix products do on that CPU (the
    first layer five sixths of it), for the kernel's two thirds or more
    [experiments/results/bench/layers.jsonl].
    """
    shape = _conv_shape(x, kernel, stride, padding)
    return onednn.convolve(x, kernel, shape, stride=stride, padding=(padding, padding))


def _conv_fast_fwd(x, kernel, stride, padding):
    return _conv_fast(x, kernel, stride, padding), (x, kernel)


def _conv_fast_bwd(stride, padding, saved, g):
    x, kernel = saved
    return (
        _input_gradient(x, kernel, g, stride, padding),
        _channelwise_kernel_gradient(x, kernel, g, stride, padding),
    )


_conv_fast.defvjp(_conv_fast_fwd, _conv_fast_bwd)


def _input_gradient(x, kernel, g, stride, padding):
    """`g` convolved with the kernel turned by half a circle, its input and output exchanged."""
    if stride > 1:  # as in a first layer, where the compiler leaves it out
        return jax.vjp(lambda x: _conv_plain(x, kernel, stride, padding), x)[1](g)[0]
    pads = [tuple(size - 1 - pad for pad in padding) for size in kernel.shape[:2]]
    return onednn.convolve(g, kernel[::-1, ::-1], x.shape, padding=pads, exchanged=True)


_BATCH = 16  # images whose kernel gradient is one call, at least: a vector of float32
_CACHED_BYTES = 2**20  # of the output's gradient in one call, which is read once per input channel


def _channelwise_kernel_gradient(x, kernel, g, stride, padding):
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
        shape = (channels, height, width, features)
        total += onednn.convolve(images, weights, shape, padding=pads, dilation=stride)
    return total.transpose(1, 2, 0, 3)


def first_conv(x, kernel, *, stride: int, padding: tuple[int, int]):
    """`conv` for the layer that sees the image: few channels, large kernel, large stride.

    Inside shard_map `kernel` must vary over the axes that `x` varies over (jax.lax.pcast).
    """
    columns = -(-kernel.shape[1] // stride) * stride**2 * kernel.shape[2]
    few = stride == 1 or columns < _FIRST_CONV_COLUMNS
    if not _fast() or few or _by_onednn(x, kernel, stride, padding):
        return conv(x, kernel, stride=stride, padding=padding)
    y = conv(x, lax.stop_gradient(kernel), stride=stride, padding=padding)
    return _with_kernel_gradient(y, kernel, x, stride, padding)


_FIRST_CONV_COLUMNS = 128  # 11x11/4 has 144 and gains; 5x5/2 has 36 and loses (measured)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _with_kernel_gradient(y, kernel, x, stride, padding):
    """`y`, the convolution of `x`, with its kernel's gradient as a few matrix products."""
    return y


def _with_kernel_gradient_fwd(y, kernel, x, stride, padding):
    return y, (x, kernel)


def _with_kernel_gradient_bwd(stride, padding, saved, g):
    x, kernel = saved
    return g, _kernel_gradient(x, g, kernel.shape, stride, padding), None


_with_kernel_gradient.defvjp(_with_kernel_gradient_fwd, _with_kernel_gradient_bwd)


def _kernel_gradient(x, g, shape, stride, padding):
    """Gradient of `conv` w.r.t. its kernel: [O] outputs against rows of stride x stride blocks."""
    rows, columns = (-(-size // stride) for size in shape[:2])  # blocks that a kernel covers
    batch, height, width, features = g.shape
    ends = ((height - 1 + rows) * stride, (width - 1 + columns) * stride)
    pads = [
        (padding[0], end - padding[0] - n, 0) for end, n in zip(ends, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])

    blocks = (batch, height - 1 + rows, stride, width - 1 + columns, stride, shape[2])
    x = x.reshape(blocks).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(*x.shape[:3], -1)  # space to depth: a block's pixels are its channels
    x = jnp.concatenate([x[:, :, i : i + width] for i in range(columns)], axis=-1)
    g = g.reshape(-1, features)
    products = [x[:, i : i + height].reshape(len(g), -1).T @ g for i in range(rows)]

    kernel = jnp.stack(products).reshape(rows, columns, stride, stride, shape[2], features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(rows * stride, columns * stride, shape[2], features)
    return kernel[: shape[0], : shape[1]]


def _padded(x, padding):
    return jnp.pad(x, ((0, 0), padding, padding, (0, 0)))


def local_conv(x, kernel, *, padding: tuple[int, int]):
    """Convolution of stride 1 with untied weights: `kernel` is [OH, OW, K, K, I, O].

    Every output position has a kernel of its own (cuda-convnet's type "local").
    """
    height, width, size = kernel.shape[:3]
    patches = jnp.concatenate(_shifted(_padded(x, padding), size, 1), axis=-1)
    flat = kernel.reshape(height, width, -1, kernel.shape[-1])
    return jnp.einsum("bhwi,hwio->bhwo", patches, flat)


ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}
