"""The training step compiled for a card that isn't here, and what it would cost there.

Nothing runs: the figures are estimates from the optimised program (see estimate.py), made to rank
programs. docs/speed.md says what they leave out.
"""

from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies

from alexnet_jax.assemble import Run, compiler_options
from alexnet_jax.bench import hlo
from alexnet_jax.bench.common import Options, Table, step_bytes, synthetic_run
from alexnet_jax.bench.estimate import KINDS, Cost, costs, schedule
from alexnet_jax.bench.target import Target, load
from alexnet_jax.config import Config
from alexnet_jax.errors import UserError, writing
from alexnet_jax.runtime import jax_versions

LARGEST = 15
# Nothing can be tried on a card that isn't here, so cuDNN's and cuBLAS's kernels aren't chosen by
# timing; matrix products go to cuBLAS, since untuned Triton ones are estimated absurdly slow.
FLAGS = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_collect_cost_model_stats": True,
    "xla_gpu_enable_triton_gemm": False,
}


def measure(config: Config, options: Options) -> dict:
    """Compiles the training step for `options.devices` of the target, and adds up its costs.

    Raises:
        UserError: The target is unknown, the CUDA plugin isn't installed, the mesh or the batch
            doesn't fit the devices, or the program doesn't fit the card's memory.
    """
    if options.devices < 1:
        raise UserError(f"--devices={options.devices}: must be at least 1")
    target = load(options.target)
    devices = _devices(target, options.devices)
    run = synthetic_run(config, images=1, devices=devices)
    flags = FLAGS | {"xla_gpu_enable_analytical_sol_latency_estimator": target.modelled}
    flags |= compiler_options(config, run.layout)
    try:
        lowered = run.train_step.lower(run.abstract_state(), _abstract_batch(run))
        with jax_versions.without_cache():  # such a program can't be read back from it
            compiled = lowered.compile(flags)
    except RuntimeError as error:
        if jax_versions.NO_GPU_TO_LOWER_FOR in str(error):
            raise UserError(
                f"jax {jax.__version__} compiles the kernel of model.fused_kernel only where a GPU "
                "is: take jax 0.10 for it, or leave the field out"
            ) from None
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _too_large(target, config.batch_size, "") from None
    text = compiled.as_text()
    if options.hlo:
        with writing(options.hlo):
            Path(options.hlo).write_text(text)
    peak = step_bytes(compiled)
    if peak > target.memory:
        raise _too_large(target, config.batch_size, f" of {peak / 2**30:.1f} GiB")
    priced = costs(hlo.operations(text), target, run.model.dtype)
    return {
        "target": target.name,
        "device": f"{target.description}, estimated",
        "devices": options.devices,
        **summary(priced),
        "peak_bytes": peak,
        "flags": flags,
    }


def summary(priced: list[Cost]) -> dict:
    """Adds the costs of a program up: altogether, by kind, of its collectives, the largest."""
    total, waited = schedule(priced)
    by_kind = {}
    for name in KINDS:
        own = [cost for cost in priced if cost.kind == name]
        by_kind[name] = {
            "us": sum(cost.us for cost in own),
            "bytes": sum(cost.moved for cost in own),
        }
    starts = [cost for cost in priced if cost.operation.name in waited]
    largest = sorted(priced, key=lambda cost: -cost.us)[:LARGEST]
    return {
        "estimated_us": total,
        "bytes": sum(cost.moved for cost in priced),
        "by_kind": by_kind,
        "exposed_us": sum(waited.values()),
        "operations": len(priced),
        "collectives": [
            {**_shown(cost), "exposed_us": waited[cost.operation.name]} for cost in starts
        ],
        "largest": [_shown(cost) for cost in largest],
    }


def tables(result: dict) -> list[Table]:
    """Lays out the costs by kind, and the operations that cost most."""
    kinds = {name: each for name, each in result["by_kind"].items() if each["bytes"] or each["us"]}
    rows = [
        (name, f"{each['us']:,.0f}", f"{each['bytes'] / 1e6:,.0f}") for name, each in kinds.items()
    ]
    rows.append(("all", f"{result['estimated_us']:,.0f}", f"{result['bytes'] / 1e6:,.0f}"))
    where = f"{result['devices']} x {result['device']}"
    note = f"{result['operations']} operations, {result['peak_bytes'] / 2**30:.2f} GiB a device"
    if result["devices"] > 1:
        note += f"; {result['exposed_us']:,.0f} us of the collectives are not hidden"
    largest = [
        (
            each["layer"] or each["kind"],
            f"{each['us']:,.1f}",
            f"{each['bytes'] / 1e6:,.1f}",
            each["shape"].lstrip("(").partition("{")[0],  # of several results the first
            each["op_name"].rsplit("/", 1)[-1],
        )
        for each in result["largest"]
    ]
    return [
        Table(f"a training step on {where}", ("", "us", "MB"), rows, note),
        Table("the largest operations", ("", "us", "MB", "result", "last step"), largest),
    ]


def _devices(target: Target, count: int) -> list:
    """Makes devices that can be compiled for, of one host."""
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=target.text, topology=f"1x1x{count}"
        )
    except NotImplementedError:
        raise UserError(
            "compiling for a GPU needs the CUDA plugin's wheels, some GB and no GPU: "
            f"pip install 'jax[cuda12]=={jax.__version__}'"
        ) from None
    return list(topology.devices)


def _abstract_batch(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    size, batch = run.config.data.image_size, run.config.batch_size
    arrays = {
        "images": ((batch, size, size, 3), np.uint8),
        "crops": ((batch, 3), np.int32),
        "labels": ((batch,), np.int32),
        "mask": ((batch,), np.float32),
        "ids": ((batch,), np.int32),
    }
    shardings = run.layout.batch_shardings()
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=shardings[name])
        for name, (shape, dtype) in arrays.items()
    }


def _too_large(target: Target, batch_size: int, needs: str) -> UserError:
    return UserError(
        f"the step{needs} doesn't fit the {target.memory / 2**30:.0f} GiB of one "
        f"{target.description}: lower batch_size={batch_size}, or take more --devices"
    )


def _shown(cost: Cost) -> dict:
    each = cost.operation
    return {
        "name": each.name,
        "layer": cost.layer,
        "kind": cost.kind,
        "us": cost.us,
        "bytes": cost.moved,
        "shape": each.shape,
        "op_name": each.op_name,
    }
