"""Where the step's time goes: each layer forward and its two gradients, timed alone."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax import bench_layers
from alexnet_jax.bench import timing
from alexnet_jax.bench.common import (
    Options,
    Table,
    compile_step,
    first_batch,
    stepper,
    synthetic_run,
)


def measure(config: ConfigDict, options: Options) -> dict:
    """Times each operation of the net alone, on one device with the whole batch; then the step."""
    run, repeats = synthetic_run(config), options.repeats
    size, count = config.data.image_size, config.batch_size
    peak = timing.matmul_peak(run.model.dtype)
    flops = bench_layers.layer_flops(run.model, size)
    params = jax.device_put(run.fresh_state().params, jax.devices()[0])
    found = []
    for name, function, weights, maps in bench_layers.operations(run.model, params, size, count):
        times = bench_layers.layer_times(function, weights, maps, repeats, first=not found)
        found.append({"layer": name, "flops": count * flops.get(name, 0), **times})
    arguments = (jax.tree.map(jnp.zeros_like, params), run.tx.init(params), params)
    update = timing.repeated(jax.jit(run.tx.update), *arguments)
    found.append({"layer": "update", "flops": 0, "forward": timing.median(update, repeats)})

    batch = first_batch(run)
    seconds = timing.median(stepper(run, compile_step(run, batch), batch), repeats)
    return {
        "peak_matmul_flops": peak,
        "layers": found,
        "sum_seconds": sum(_own_seconds(layer) for layer in found),
        "step_seconds": seconds,
    }


def tables(result: dict) -> list[Table]:
    """Lays the layers out with the share of the matmul peak that each part reaches."""
    peak, total = result["peak_matmul_flops"], result["sum_seconds"]
    rows = []
    for layer in result["layers"]:
        cells = [f"{layer['flops'] / 1e9:.3g}" if layer["flops"] else ""]
        for part in bench_layers.PARTS:
            share = layer["flops"] / layer[part] / peak if part in layer else 0
            cells += [f"{1e3 * layer[part]:.2f}" if part in layer else ""]
            cells += [f"{share:.2f}" if share else ""]
        rows.append((layer["layer"], *cells, f"{100 * _own_seconds(layer) / total:.1f}"))
    header = ("layer", "GFLOP", "out ms", "of peak", "d in ms", "of peak", "d w ms", "of peak", "%")
    note = f"sum {1e3 * total:.1f} ms, whole step {1e3 * result['step_seconds']:.1f} ms"
    return [Table(f"layers; matmul peak {peak / 1e9:.0f} GFLOP/s", header, rows, note)]


def _own_seconds(layer: dict) -> float:
    return sum(layer.get(part, 0) for part in bench_layers.PARTS)
