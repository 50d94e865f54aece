"""What the program sets in the libraries under it, for the whole process: all of it is here.

A program that imports the package keeps its own settings: only commands call these functions.
"""

import contextlib
import ctypes
import os
import sys

import jax
from absl import flags, logging

from alexnet_jax.data import cache
from alexnet_jax.records import files


def set_up_command() -> None:
    """Sets what every command wants: less chatter, kept programs, and an allocator that keeps.

    What must stand in the environment before jax is loaded, `process.begin` sets.
    """
    if not flags.FLAGS["verbosity"].present:  # Orbax turns its own progress messages on
        logging.set_verbosity(logging.WARNING)
    # A second start loads what the first compiled, from the user's cache folder.
    if reason := files.obstacle(cache.folder()):
        advice = "set ALEXNET_JAX_CACHE to a folder that can be written"
        print(f"warning: nothing is kept for the next start: {reason}; {advice}", file=sys.stderr)
    elif not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    _keep_memory()


def _keep_memory() -> None:
    """Has glibc keep freed memory, instead of giving large blocks back to the kernel.

    XLA's CPU backend frees and takes its buffers anew in each step; the page faults that this
    costs were a third of the step of the full-size net. Elsewhere than on glibc this does nothing.
    """
    mmap_max, trim_threshold, arena_max = -4, -1, -8  # names of mallopt(3), from malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)  # take no block from the kernel by mmap, to be unmapped when freed
        mallopt(trim_threshold, -1)  # never give the top of the heap back
        mallopt(arena_max, 1)  # one heap: those of other threads are too small for such blocks


def leave_signals_to_us() -> None:
    """Has JAX start several processes without its service that would swallow a SIGTERM."""
    jax.config.update("jax_enable_preemption_service", False)


def keep_no_programs() -> None:
    """Ends the use of the compilation cache."""
    jax.config.update("jax_enable_compilation_cache", False)


def keep_programs_in(folder: str | None, least_seconds: float) -> None:
    """Has the compilation cache in `folder` keep what takes `least_seconds` to compile, or more."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)


def compute_on_cpu() -> None:
    """Has JAX use the CPU alone; call it before anything touches a device."""
    jax.config.update("jax_platforms", "cpu")


def split_cpu(devices: int) -> None:
    """Has JAX see the CPU as so many devices; call it before anything touches one."""
    jax.config.update("jax_num_cpu_devices", devices)
