"""Chooses the form of an operator for a platform: the plain one, or a faster one that equals it.

An operator's faster form, if one is known, stands beside its plain form, and both give the same
values and gradients (tests/test_ops.py). `FAST_ON` is the only place that decides between them.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

# The platforms on which the fast form of an operator is faster, as measured on CPUs and estimated
# for CUDA's cards (docs/speed.md). Other platforms take the plain forms until they are measured.
FAST_ON = {
    "conv": ("cpu",),
    "norm": ("cpu", "cuda"),
    "pool": ("cpu", "cuda"),
    "first towers": ("cuda",),  # Each tower convolves the image, so their gradients aren't joined.
    "sum across maps": ("cuda",),
    "bias": ("cuda",),  # Its gradient sums what is in memory, without computing it again.
}

FORMS = ("fast", "plain")


def platform() -> str:
    """Returns the platform of this process' devices: "cpu", "cuda", "rocm" or "tpu"."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    version = jax.devices()[0].client.platform_version
    return "rocm" if "rocm" in version.lower() else "cuda"


def of_platform(operator: str, platform: str | None) -> str | None:
    """Returns the form of an operator on a platform, one of `FORMS`; None without a platform.

    Args:
        operator: a key of `FAST_ON`.
        platform: "cpu", "cuda", "rocm" or "tpu"; None leaves the form to `take`.
    """
    if platform is None:
        return None
    return "fast" if platform in FAST_ON[operator] else "plain"


def take(operator: str, form: str | None, fast: Callable, plain: Callable, *operands) -> Any:
    """Calls `fast` or `plain` on the operands.

    Args:
        operator: a key of `FAST_ON`.
        form: "fast" or "plain". None takes the form of the platform for which the program is
            compiled, which may differ from the one that traces it. The gradient then saves what
            both forms need, and the compiler drops what the platform does not use.
        fast: the fast function of the operands.
        plain: the plain function, whose results have the same shapes and dtypes.
        operands: the arrays.
    """
    if form is None:
        on = dict.fromkeys(FAST_ON[operator], fast)
        return lax.platform_dependent(*operands, **on, default=plain)
    return {"fast": fast, "plain": plain}[form](*operands)
