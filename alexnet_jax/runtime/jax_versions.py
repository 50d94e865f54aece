"""Contains everything that depends on a version of jax or jaxlib, with the versions tried.

All other modules use only the documented interface of the versions that requirements.txt allows.
"""

import contextlib
import logging
import sys
from collections.abc import Callable

import jax
from jax._src import config as jax_config
from jax._src import distributed as jax_distributed
from jax.experimental.compilation_cache import compilation_cache

# jaxlib's builds contain oneDNN and the call to it, but not the compiler pass that would write the
# call. The fields of the call are not an interface: a jaxlib with other fields would abort. Each of
# these versions was tried, on Linux and x86-64 [openxla/xla,
# xla/service/cpu/onednn_contraction_rewriter.cc]; any other is tried on each machine by
# models/onednn_trial.py.
ONEDNN_CALL = "__onednn$convolution"
ONEDNN_JAXLIBS = (
    *("0.10.0", "0.10.1", "0.10.2"),
    *("0.11.0", "0.11.1", "0.11.2"),
    *("0.12.0", "0.12.0.1"),
)

# What Pallas says from jax 0.11 on where a kernel for GPUs is lowered without one.
NO_GPU_TO_LOWER_FOR = "No supported GPU devices"


def can_be_cached(lowered: jax.stages.Lowered) -> bool:
    """Returns whether XLA can write the compiled program into the compilation cache.

    It cannot if the program calls oneDNN, with any jaxlib up to 0.12.0.1: XLA mistakes the
    operation for a custom call of another class, misreads its fields, and runs out of memory
    (std::bad_alloc) or aborts.
    """
    return ONEDNN_CALL not in lowered.as_text()


def without_cache() -> contextlib.AbstractContextManager:
    """Returns a context in which this thread writes nothing into the compilation cache.

    jax 0.10.2 documents only the setting of the whole process.
    """
    return jax_config.persistent_cache_min_compile_time_secs(sys.float_info.max)


def reopen_cache() -> None:
    """Makes JAX use the settings of the compilation cache as they are now.

    Without it, jax 0.10.2 keeps the folder with which it first used the cache.
    """
    compilation_cache.reset_cache()


def explain_failed_plugins(tell: Callable[[str], None]) -> None:
    """Makes JAX tell one line where a GPU's plugin finds no GPU, and no longer a traceback.

    If JAX_PLATFORMS asks for that GPU, the error that follows is enough (`failures`).
    """
    logger = logging.getLogger("jax._src.xla_bridge")
    logger.addFilter(_FailedPlugins(tell))


class _FailedPlugins(logging.Filter):
    def __init__(self, tell: Callable[[str], None]):
        super().__init__()
        self.tell = tell

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info or "plugin configuration error" not in str(record.msg):
            return True
        if jax.config.jax_platforms:
            return False
        plugin = str(record.args[0]).removeprefix("jax_plugins.") if record.args else "a plugin"
        reason = " ".join(str(record.exc_info[1]).partition(";")[0].split())
        self.tell(
            f"JAX computes without {plugin}, which can't start here: {reason}. On a machine with a "
            "GPU check its driver"
        )
        return False


def varying_axes(x: jax.Array) -> frozenset[str]:
    """Returns the mesh axes over which `x` varies inside a shard_map, by jax 0.10.2's name."""
    return jax.typeof(x).manual_axis_type.varying


def result_like(x: jax.Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """Describes a kernel's result that varies, inside a shard_map, over the axes that `x` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def distributed_state() -> jax_distributed.State:
    """Returns the state that jax.distributed.initialize has set.

    It has `process_id`, `num_processes`, `coordinator_address` and `client`, the client of the
    key-value store and of the barriers. jax.process_index() would start to use the devices, and all
    processes wait for each other there.
    """
    return jax_distributed.global_state
