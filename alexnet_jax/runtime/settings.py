"""What the program sets in JAX and absl for the whole process: all of it is here.

A program that imports the package keeps its own settings: only commands call these functions. What
has to be set before JAX is loaded (the allocator, TensorFlow's log) stands in `process.begin`.
"""

import os
import sys

import jax
from absl import flags, logging

from alexnet_jax.data import cache
from alexnet_jax.records import files


def set_up_command() -> None:
    """Sets what every command wants: less chatter and kept programs.

    What must be set before jax is loaded, `process.begin` sets.
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
