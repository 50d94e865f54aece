"""Which form of an operator a platform takes: the plain one, or a faster one that equals it.

Where a faster form is known it stands beside the plain form, and both give the same values and
gradients (tests/test_ops.py). `FAST_ON` is the one place that decides between them.
"""

from collections.abc import Callable
from typing import Any

from jax import lax

# Where the fast forms were measured, and win. Elsewhere the plain forms stand until they are
# measured against.
FAST_ON = ("cpu",)

FORMS = ("fast", "plain")


def of_platform(platform: str) -> str:
    """Returns the form, one of `FORMS`, that a platform takes: "cpu", "cuda", "rocm" or "tpu"."""
    return "fast" if platform in FAST_ON else "plain"


def take(form: str | None, fast: Callable, plain: Callable, *operands) -> Any:
    """Calls `fast` or `plain` on the operands.

    Args:
        form: "fast" or "plain"; None leaves it to the platform that the program is compiled for,
            which need not be the one that traces it. The gradient then saves what both forms need,
            of which the compiler drops what the platform doesn't use.
        fast, plain: functions of arrays, with results of the same shapes and dtypes.
        operands: arrays.
    """
    if form is None:
        return lax.platform_dependent(*operands, **dict.fromkeys(FAST_ON, fast), default=plain)
    return {"fast": fast, "plain": plain}[form](*operands)
