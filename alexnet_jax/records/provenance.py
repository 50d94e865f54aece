"""What produced a result: the commit, the command, the machine and the versions of packages."""

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

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, if it is one
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("tensorflow", "tensorflow-cpu", "tensorflow-datasets"),
)


def collect() -> dict:
    """Collects what produces a result in this process.

    Returns:
        'commit': None outside a checkout; it ends in '-dirty' when files that Git knows have
        changed, other than earlier records. 'date': ISO 8601, UTC. 'command': as it was typed.
        'hardware': the CPU, its cores, and JAX's devices. 'versions': see `versions`.
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
    # GIT_DIR and the like, as set inside a hook, would point at another repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        run = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        return run.stdout.strip()

    try:
        # An installed package may lie inside somebody else's checkout.
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
