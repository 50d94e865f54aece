"""Computes response normalisation of maps [B, H, W, C], across maps and within each map.

`form` is "fast", "plain", or None for the form that the platform takes (see forms.py).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.models import forms, windows


def local_response_norm(
    x, *, size: int, alpha: float, beta: float, k: float, form: str | None = None
):
    """Normalises across maps: x_i (k + alpha S_i)^-beta (paper, section 3.3).

    S_i is the sum of the squares of `size` maps from i - size//2 on, without those outside the
    array. `alpha` multiplies the sum itself. The paper's text has size 5, alpha 1e-4, beta 0.75 and
    k 2. The 2012 code, cuda-convnet2, Caffe and PyTorch divide their "1e-4" by the size first, so
    that their alpha is 1e-4 / 5; k is 2 in the first two and 1 in the others.
    """
    return _response_norm(x, (1, 1, 1, size), alpha, beta, k, form)


def within_map_norm(
    x, *, size: int, alpha: float, beta: float, k: float = 1.0, form: str | None = None
):
    """Normalises over a size x size window of each map (cuda-convnet's rnorm without crossMap).

    `alpha` multiplies the sum. It is 1e-3 / 25 in net 145 of the 2012 source and 5e-5 / 9 in the
    18% CIFAR net, which is the scale in their files divided by the square of the size
    (computerhistory/AlexNet-Source-Code, layers-145.cfg; dnouri/cuda-convnet,
    layer-params-18pct.cfg).
    """
    return _response_norm(x, (1, size, size, 1), alpha, beta, k, form)


def _response_norm(x, window, alpha, beta, k, form):
    constants = (window, alpha, beta, k)
    return forms.take(
        "norm", form, lambda x: _fast(x, *constants), lambda x: _plain(x, *constants), x
    )


def _wide(x):
    """Returns `x` in float32 or wider, because a bfloat16 sum loses the values of small maps."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _plain(x, window, alpha, beta, k):
    wide = _wide(x)
    d = k + alpha * _window_sum(jnp.square(wide), window)
    return (wide * d**-beta).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _fast(x, window, alpha, beta, k):
    """Normalises with square roots instead of a general power, and with a closed-form gradient."""
    return _forward(x, window, alpha, beta, k)[0]


def _forward(x, window, alpha, beta, k):
    wide = _wide(x)
    d = k + alpha * _window_sum_fast(jnp.square(wide), window)
    return (wide * inverse_power(d, beta)).astype(x.dtype), (x, d)


def _backward(window, alpha, beta, k, saved, g):
    # y_i = x_i d_i^-beta, so dx_j = g_j d_j^-beta - 2 alpha beta x_j sum_i g_i x_i d_i^(-beta-1)
    # over those i whose window contains j. These form the mirrored window, which differs from the
    # window if the size is even.
    x, d = saved
    wide = _wide(x)
    scaled = _wide(g) * inverse_power(d, beta)
    terms = scaled * wide / d
    if x.dtype != wide.dtype:  # A GPU then writes half as many bytes to memory here.
        terms = _wide(lax.optimization_barrier(terms.astype(x.dtype)))
    shared = _window_sum_fast(terms, window, mirrored=True)
    return ((scaled - 2 * alpha * beta * wide * shared).astype(x.dtype),)


_fast.defvjp(_forward, _backward)


def inverse_power(d, beta):
    """Raises to -beta; for 0.75 by square roots."""
    if beta == 0.75:
        root = lax.rsqrt(d)
        return root * jnp.sqrt(root)
    return d**-beta


def _window_sum(x, window, mirrored=False):
    """Sums over a window that starts size//2 before each place and is clipped at the borders."""
    zero = np.zeros((), x.dtype)
    return lax.reduce_window(x, zero, lax.add, window, (1,) * 4, _around(window, mirrored))


def _window_sum_fast(x, window, mirrored=False):
    """Sums as `_window_sum` does, by shifted slices, which across maps are slower on a CPU."""
    if window[-1] == 1:
        return _shifted_sum(x, window, mirrored)
    return forms.take(
        "sum across maps",
        None,
        lambda x: _shifted_sum(x, window, mirrored),
        lambda x: _window_sum(x, window, mirrored),
        x,
    )


def _shifted_sum(x, window, mirrored):
    x = lax.pad(x, np.zeros((), x.dtype), [(*pad, 0) for pad in _around(window, mirrored)])
    for axis, size in enumerate(window):
        if size > 1:
            x = sum(windows.shifted_along(x, axis, size, 1))
    return x


def _around(window, mirrored):
    pads = [(size // 2, size - 1 - size // 2) for size in window]
    return [pad[::-1] for pad in pads] if mirrored else pads
