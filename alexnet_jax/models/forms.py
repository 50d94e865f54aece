"""Which form of an operator a platform takes: the plain one, or a faster one that equals it.

Where a faster form is known it stands beside the plain form, and both give the same values and
gradients (tests/test_ops.py). `FAST_ON` is the one place that decides between them.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

# The platforms on which an operator's fast form wins: measured on CPUs, estimated for CUDA's cards
# (docs/speed.md). Elsewhere the plain forms stand until they are measured against.
FAST_ON = {
    "conv": ("cpu",),
    "norm": ("cpu", "cuda"),
    "pool": ("cpu", "cuda"),
    "first towers": ("cuda",),  # the image convolved once per tower: their gradients aren't joined
    "sum across maps": ("cuda",),
    "bias": ("cuda",),  # its gradient is a sum of what is in memory, not of what makes it
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
        form: "fast" or "plain"; None leaves it to the platform that the program is compiled for,
            which need not be the one that traces it. The gradient then saves what both forms need,
            of which the compiler drops what the platform doesn't use.
        fast: the faster function of the operands.
        plain: the plain one, whose results have the same shapes and dtypes.
        operands: arrays.
    """
    if form is None:
        on = dict.fromkeys(FAST_ON[operator], fast)
        return lax.platform_dependent(*operands, **on, default=plain)
    return {"fast": fast, "plain": plain}[form](*operands)
