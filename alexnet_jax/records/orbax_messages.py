"""What Orbax and TensorStore say of a failed save: one line of it, and none of their tracebacks."""

import logging
import os
import re
import sys
import warnings

from absl import logging as absl_logging


def silence() -> None:
    """A failed save is told of by Orbax, twice, by asyncio for each array, and by TensorStore's
    threads, whose event loop is gone: all with tracebacks. We say it once."""
    logger = absl_logging.get_absl_logger()
    if not any(isinstance(known, _OrbaxTracebacks) for known in logger.filters):
        logger.addFilter(_OrbaxTracebacks())
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # nothing else here uses it
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _pass_over_closed_loops


def _pass_over_closed_loops(unraisable) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


class _OrbaxTracebacks(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        told = record.exc_info or "already exists. Removing existing" in record.getMessage()
        return not (told and "orbax" in record.pathname)


def reason(error: BaseException) -> str:
    """One line for an error of Orbax or TensorStore, the system's own words where it has them."""
    code = error.errno if isinstance(error, OSError) else None
    if match := re.search(r"os_error_code='(\d+)'", str(error)):
        code = int(match[1])
    if code:
        return os.strerror(code)
    return str(error).strip().split("\n")[0] or type(error).__name__
