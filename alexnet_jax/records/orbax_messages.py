"""Hides the tracebacks of Orbax and TensorStore for a failed save, and makes one line of them."""

import contextlib
import logging
import os
import re
import sys
import warnings

from absl import logging as absl_logging


def silence() -> contextlib.ExitStack:
    """Hides messages about a failed save until the returned stack is closed.

    Orbax reports a failed save twice, asyncio reports it for each array, and TensorStore's threads
    do when they are collected after their event loop has closed. All of them print tracebacks,
    while our own error is one line.
    """
    stack = contextlib.ExitStack()
    absl, tracebacks = absl_logging.get_absl_logger(), _OrbaxTracebacks()
    stack.callback(absl.removeFilter, tracebacks)
    absl.addFilter(tracebacks)
    asyncio = logging.getLogger("asyncio")
    stack.callback(asyncio.setLevel, asyncio.level)
    asyncio.setLevel(logging.CRITICAL)
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    hook = sys.unraisablehook
    stack.callback(setattr, sys, "unraisablehook", hook)

    def pass_over_closed_loops(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = pass_over_closed_loops
    return stack


class _OrbaxTracebacks(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        told = record.exc_info or "already exists. Removing existing" in record.getMessage()
        return not (told and "orbax" in record.pathname)


def reason(error: BaseException) -> str:
    """Returns one line for an error of Orbax or TensorStore, with the system's words if it can."""
    code = error.errno if isinstance(error, OSError) else None
    if match := re.search(r"os_error_code='(\d+)'", str(error)):
        code = int(match[1])
    if code:
        return os.strerror(code)
    return str(error).strip().split("\n")[0] or type(error).__name__
