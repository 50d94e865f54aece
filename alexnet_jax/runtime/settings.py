"""Contains all settings of JAX and absl that a command makes for its whole process.

A program that imports the package keeps its own settings, because only commands call these
functions. `process.begin` makes the settings that must precede the import of JAX (the allocator,
TensorFlow's log).
"""

import os
import sys

import jax
from absl import flags, logging

from alexnet_jax.data import cache
from alexnet_jax.records import files
from alexnet_jax.runtime import jax_versions


def set_up_command() -> None:
    """Makes the settings of every command: fewer messages, and a compilation cache."""
    if not flags.FLAGS["verbosity"].present:  # Orbax turns its own progress messages on.
        logging.set_verbosity(logging.WARNING)
    jax_versions.explain_failed_plugins(lambda line: print(f"warning: {line}", file=sys.stderr))
    # A second start loads the programs that the first has compiled, from the user's cache folder.
    if reason := files.obstacle(cache.folder()):
        advice = "set ALEXNET_JAX_CACHE to a folder that can be written"
        print(f"warning: nothing is cached for the next start: {reason}; {advice}", file=sys.stderr)
    elif not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def leave_signals_to_us() -> None:
    """Makes JAX start several processes without its service that would handle SIGTERM."""
    jax.config.update("jax_enable_preemption_service", False)


def keep_no_programs() -> None:
    """Turns the compilation cache off."""
    jax.config.update("jax_enable_compilation_cache", False)


def keep_programs_in(folder: str | None, least_seconds: float) -> None:
    """Makes the cache in `folder` keep programs that take `least_seconds` or more to compile."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    jax_versions.reopen_cache()


def compute_on_cpu() -> None:
    """Makes JAX use only the CPU; must be called before anything uses a device."""
    jax.config.update("jax_platforms", "cpu")


def split_cpu(devices: int) -> None:
    """Makes JAX see the CPU as several devices; must be called before anything uses one."""
    jax.config.update("jax_num_cpu_devices", devices)
