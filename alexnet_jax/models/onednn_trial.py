"""Finds out whether this machine's jaxlib computes convolutions by oneDNN, by a trial if unknown.

    python -m alexnet_jax.models.onednn_trial

This command makes the three calls of onednn.py on small arrays, and compares the results with those
of XLA. It is a separate process, because a jaxlib that reads other fields would abort.
"""

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import numpy as np
from jax import lax

from alexnet_jax.data import cache
from alexnet_jax.models import onednn
from alexnet_jax.records import files
from alexnet_jax.runtime import jax_versions

SECONDS = 120  # the trial takes three on an idle machine
PADDING = (1, 1)


@functools.cache
def has_onednn() -> bool:
    """Returns whether convolutions may call oneDNN here, with a jaxlib that is known or was tried.

    The result of a trial is stored in the cache folder.
    """
    version = jaxlib.__version__
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return False
    if version in jax_versions.ONEDNN_JAXLIBS:
        return True
    kept = cache.folder() / f"onednn-jaxlib-{version}"
    try:
        return kept.read_text() == "works"
    except OSError:
        pass
    return _try_and_keep(kept)


def _try_and_keep(kept: Path) -> bool:
    """Makes the trial in a separate process, and writes its result into the file `kept`."""
    package = Path(__file__).parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    try:
        works = not subprocess.run(
            [sys.executable, "-m", __name__],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        ).returncode
    except (OSError, subprocess.TimeoutExpired):  # This tells nothing about jaxlib.
        return False
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.replace(kept, b"works" if works else b"fails")
    except OSError:
        pass
    return works


def agrees() -> bool:
    """Makes the three calls, and returns whether they agree with XLA's convolution."""
    rng = np.random.default_rng(0)
    shapes = ((16, 9, 7, 8), (3, 3, 8, 16))
    x, kernel = (jax.numpy.asarray(rng.normal(size=shape), np.float32) for shape in shapes)

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1), (PADDING, PADDING), dimension_numbers=numbers
        )

    def by_onednn(x, kernel, g):
        return (
            onednn.convolution(x, kernel, 1, PADDING),
            onednn.input_gradient(x, kernel, g, PADDING),
            onednn.kernel_gradient(x, kernel, g, 1, PADDING),
        )

    y, pullback = jax.vjp(plain, x, kernel)
    with jax_versions.without_cache():
        found = jax.jit(by_onednn)(x, kernel, y)
    return all(
        np.allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
        for ours, theirs in zip(found, (y, *pullback(y)), strict=True)
    )


if __name__ == "__main__":
    sys.exit(not agrees())
