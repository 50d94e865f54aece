"""Explains errors of libraries to the user in one line, in place of a traceback."""

import re

import jax
from absl import flags

# It finds the size in messages of XLA and NumPy: "Out of memory allocating 68719476736 bytes",
# "Failed to allocate request for 64.00GiB", "Unable to allocate 1.2 TiB for an array with shape …".
_SIZE = re.compile(r"allocat\w* (?:request for )?([\d.]+ ?(?:bytes|[KMGTPE]i?B?))\b", re.IGNORECASE)


def explain(error: Exception) -> str | None:
    """Returns a line that says what `error` means and what to do, or None for unknown errors."""
    on_device = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if on_device or isinstance(error, MemoryError):
        return out_of_memory(str(error))
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"'{error.filename}' cannot be used: {error.strerror}; give another path"
    return missing_platform()


def out_of_memory(message: str) -> str:
    """Returns the line for an allocation that failed, on a device or on the host."""
    asked = _SIZE.search(message)
    size = f" for {_readable(asked[1])}" if asked else ""
    if "config" in flags.FLAGS:
        advice = (
            "lower --config.batch_size, set --config.model.dtype=bfloat16, or keep the images "
            "out of the device's memory with --config.data.backend=tfdata"
        )
    else:
        advice = "give it fewer at once, or free memory; JAX_PLATFORMS=cpu computes without a GPU"
    return f"out of memory{size}: {advice}"


def missing_platform() -> str | None:
    """Returns a line if JAX_PLATFORMS names a platform that this machine lacks, else None."""
    asked = jax.config.jax_platforms
    if not asked:
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # The latter has no message, for "cuda".
        reason = str(error).partition(" (set JAX_PLATFORMS")[0].partition("\n")[0]
        because = f" ({reason})" if reason else ""
        return (
            f"JAX_PLATFORMS={asked} names nothing that JAX can use here{because}: unset it, "
            "set it to cpu, or install JAX for that platform"
        )
    return None


def _readable(size: str) -> str:
    """Returns a size in a library's message, converted to GB or MB if it is in bytes."""
    number, _, unit = size.partition(" ")
    if unit.lower() != "bytes":
        return size
    count = float(number)
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
