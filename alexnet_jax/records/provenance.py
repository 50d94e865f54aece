"""Describes what produced a result: commit, command, machine and versions of packages."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[2]  # the root of the checkout, if this is one
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("tensorflow", "tensorflow-cpu", "tensorflow-datasets"),
)


def collect() -> dict:
    """Describes what produces a result in this process.

    Returns:
        'commit' is None outside a checkout, and ends in '-dirty' if files that Git knows have
        changed, except for earlier records. 'date' is in UTC, in the form of ISO 8601. 'command' is
        the command as it was typed. 'hardware' describes the CPU, its cores, and JAX's devices.
        'versions' is the result of `versions`.
    """
    devices = jax.devices()
    return {
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
        "hardware": {
            "cpu": _cpu_model(),
            "cpu_cores": os.cpu_count(),
            "device_kind": devices[0].device_kind,
            "device_count": len(devices),
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of those `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> str | None:
    # Variables such as GIT_DIR, which are set inside a hook, would name another repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        run = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        return run.stdout.strip()

    try:
        # An installed package may be inside the checkout of another project.
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return None
        code = (".", ":!experiments/results")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
