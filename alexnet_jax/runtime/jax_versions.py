"""What depends on a version of jax or jaxlib, and the versions that it was tried with.

Everything else keeps to jax's documented interface, of the versions that requirements.txt allows.
"""

import contextlib
import sys

import jax
from jax._src import config as jax_config
from jax._src import distributed as jax_distributed

# jaxlib's builds have oneDNN and the call to it, but not the compiler pass that would write the
# call. Its fields are not an interface: a jaxlib with others would end the process. Tried one by
# one, on Linux and x86-64 [openxla/xla, xla/service/cpu/onednn_contraction_rewriter.cc]; one that
# is not among them, each machine tries for itself (models/onednn_trial.py).
ONEDNN_CALL = "__onednn$convolution"
ONEDNN_JAXLIBS = (
    *("0.10.0", "0.10.1", "0.10.2"),
    *("0.11.0", "0.11.1", "0.11.2"),
    *("0.12.0", "0.12.0.1"),
)


def can_be_cached(lowered: jax.stages.Lowered) -> bool:
    """Returns whether XLA can write the compiled program into the compilation cache.

    It cannot if the program calls oneDNN, with any jaxlib up to 0.12.0.1: XLA takes the operation
    for a custom call of another class, reads its fields as that one's, and runs out of memory
    (std::bad_alloc) or ends the process.
    """
    return ONEDNN_CALL not in lowered.as_text()


def without_cache() -> contextlib.AbstractContextManager:
    """Returns a context in which this thread writes nothing into the compilation cache.

    jax 0.10.2 has no documented one: outside it the setting is the whole process's.
    """
    return jax_config.persistent_cache_min_compile_time_secs(sys.float_info.max)


def varying_axes(x: jax.Array) -> frozenset[str]:
    """Returns the mesh axes over which `x` varies inside a shard_map (jax 0.10.2's name for it)."""
    return jax.typeof(x).manual_axis_type.varying


def result_like(x: jax.Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """Describes a kernel's result that varies, inside a shard_map, over the axes that `x` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def distributed_state() -> jax_distributed.State:
    """Returns what jax.distributed.initialize was told or found, and its key-value store's client.

    It has `process_id`, `num_processes`, `coordinator_address` and `client`. jax.process_index()
    would begin to use the devices, for which all processes wait.
    """
    return jax_distributed.global_state
