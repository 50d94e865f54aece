"""What every command shares: its flags, and the user's mistakes answered in one line.

ml_collections loads the configuration while flags are parsed, before `main` runs, and raises
exceptions of its own there; `run` turns those, and every `UserError`, into a line on stderr.
"""

import contextlib
import ctypes
import os
import sys
import traceback
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from alexnet_jax import distributed
from alexnet_jax.config import flatten, load_config
from alexnet_jax.data import cache
from alexnet_jax.errors import UserError, nearest


def define_config():
    """Defines `--config` (a file with `get_config()`) and its `--config.FIELD=VALUE` overrides."""
    return config_flags.DEFINE_config_file(
        "config", None, "Configuration file, e.g. configs/default.py.", lock_config=True
    )


def run(main: Callable[[list[str]], int | None], *, takes_files: bool = False) -> None:
    """Parses the flags, runs `main(files)` and exits with what it returns (None: 0).

    A mistake of the user's exits with 1 after one line on stderr.
    """

    def quiet_main(argv):
        if not flags.FLAGS["verbosity"].present:  # Orbax turns its own progress messages on
            logging.set_verbosity(logging.WARNING)
        _keep_compiled_programs()
        _keep_memory()
        return main(argv[1:])

    try:
        app.run(quiet_main, flags_parser=lambda argv: _parse(argv, takes_files))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
    distributed.leave(1)


def _keep_compiled_programs() -> None:
    """A second start loads what the first compiled, from the user's cache folder."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


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


def _parse(argv: list[str], takes_files: bool) -> list[str]:
    _check_overrides(argv)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is None:
        raise UserError("no configuration: give one, e.g. --config=configs/default.py")
    if len(rest) > 1 and not takes_files:
        raise UserError(f"unexpected argument '{rest[1]}': options are written --name=value")
    return rest


def _check_overrides(argv: list[str]) -> None:
    """Loads the configuration file that `argv` names and looks up each field it overrides."""
    known = None
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-"):
            continue
        if name == "config":
            known = flatten(load_config(value or following))
        elif name.startswith("config.") and known is not None:
            field = name.removeprefix("config.")
            if field not in known:
                raise UserError(f"unknown field --config.{field}; {nearest(field, known)}")
