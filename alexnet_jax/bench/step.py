"""Times the compiled training step and the forward pass, and finds compile time and memory."""

import statistics
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.assemble import Run
from alexnet_jax.bench import layers, timing
from alexnet_jax.bench.common import (
    Options,
    Table,
    compile_step,
    first_batch,
    milliseconds,
    step_bytes,
    stepper,
    synthetic_run,
)
from alexnet_jax.config import Config
from alexnet_jax.errors import UserError
from alexnet_jax.runtime import settings
from alexnet_jax.runtime.compilation import Program


def measure(config: Config, options: Options) -> dict:
    """Times the training step, and the forward pass on one image and on a batch.

    Raises:
        UserError: PyTorch is to be compared on several devices, or is not installed.
    """
    run = synthetic_run(config)
    if options.torch and run.layout.mesh.size > 1:
        raise UserError("--against=torch compares on one device: set --config.mesh.data=1")
    batch = first_batch(run)
    first, second = _compile_seconds(run, batch)
    compiled = compile_step(run, batch)
    tasks = {"step": stepper(run, compiled, batch)}
    tasks["step"](1)
    memory = _memory(compiled)  # before anything else uses memory
    params = jax.device_put(run.fresh_state().params, jax.devices()[0])
    images = {f"forward_{count}": _float_images(config, count) for count in (1, config.batch_size)}
    forward = Program(lambda params, images: run.model.apply({"params": params}, images)[0])
    tasks |= {task: timing.repeated(forward, params, each) for task, each in images.items()}
    peak = timing.matmul_peak(run.model.dtype)
    torch = {}
    if options.torch:
        from alexnet_jax.bench import torch_step

        times, compared = torch_step.compare(run, params, batch, tasks, images, options.repeats)
        torch = {"torch": compared}
    else:
        times = timing.take_turns(tasks, options.repeats)
    peak = max(peak, timing.matmul_peak(run.model.dtype))

    seconds = statistics.median(times["step"])
    flops = layers.step_flops(run.model, config.data.image_size, config.batch_size)
    return {
        "images_per_second": config.batch_size / seconds,
        **timing.spread(times["step"], "step_"),
        "compile_seconds": first,
        "second_compile_seconds": second,
        "peak_matmul_flops": peak,
        "model_flops": flops,
        "share_of_peak": flops / seconds / peak / run.layout.mesh.size,
        **memory,
        "forward": {str(len(images[task])): timing.spread(times[task]) for task in images},
        **torch,
    }


def tables(result: dict) -> list[Table]:
    """Makes a table of the result, and one of the comparison with PyTorch if there was one."""
    rows = [
        ("images/s", f"{result['images_per_second']:.1f}"),
        ("step", milliseconds(result, "step_")),
        ("first compilation", f"{result['compile_seconds']:.2f} s"),
        ("second start", f"{result['second_compile_seconds']:.2f} s"),
        ("operations", f"{result['model_flops'] / 1e9:.3g} GFLOP"),
        ("matmul peak", f"{result['peak_matmul_flops'] / 1e9:.0f} GFLOP/s"),
        ("share of peak", f"{result['share_of_peak']:.2f}"),
        ("the step's arrays", f"{result['step_bytes'] / 2**20:.0f} MiB"),
        ("peak memory", f"{result['peak_memory_bytes'] / 2**20:.0f} MiB"),
    ]
    forward = result["forward"].items()
    rows += [(f"forward, batch {count}", milliseconds(each)) for count, each in forward]
    shown = [Table("step", ("", ""), rows)]
    return [*shown, _torch_table(result["torch"])] if "torch" in result else shown


def _torch_table(compared: dict) -> Table:
    rows = [
        (
            f"{task.replace('_', ', batch ')}, {kind}",
            each["variant"].partition(" ")[2],
            f"{1e3 * each['seconds']:.2f}",
            f"{each['ratio']:.2f}",
            f"{each['ratio_min']:.2f} to {each['ratio_max']:.2f}",
        )
        for task, kinds in compared.items()
        if task not in ("version", "screened")
        for kind, each in kinds.items()
    ]
    title = f"PyTorch {compared['version']}; the ratio is its time over ours"
    return Table(title, ("", "best variant", "ms", "ratio", "in a turn"), rows)


def _compile_seconds(run: Run, batch: dict) -> tuple[float, float]:
    """Returns the seconds to trace and compile the step, at a first start and at a second."""
    folder = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    with tempfile.TemporaryDirectory() as cold:
        settings.keep_programs_in(cold, 0)
        try:
            return tuple(timing.elapsed(lambda _: compile_step(run, batch), 1) for _ in range(2))
        finally:
            settings.keep_programs_in(folder, least)


def _float_images(config: Config, count: int) -> jax.Array:
    """Makes up preprocessed images."""
    shape = (count, config.data.image_size, config.data.image_size, 3)
    dtype = jnp.result_type(float)
    images = np.random.default_rng(1).normal(size=shape) * 60 * config.preprocess.scale
    return jax.device_put(images.astype(dtype), jax.devices()[0])


def _memory(compiled: jax.stages.Compiled) -> dict:
    """Returns the bytes of the step's arrays, and the most bytes that were in use."""
    on_device = jax.devices()[0].memory_stats()  # None on a CPU
    return {
        "step_bytes": step_bytes(compiled),
        "peak_memory_bytes": on_device["peak_bytes_in_use"] if on_device else _process_peak(),
    }


def _process_peak() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
