"""Counts the work of each layer from its shapes, and times each layer separately."""

import statistics
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp

from alexnet_jax import models
from alexnet_jax.bench import timing
from alexnet_jax.bench.common import (
    Options,
    Table,
    compile_step,
    first_batch,
    stepper,
    synthetic_run,
)
from alexnet_jax.config import Config
from alexnet_jax.models import AlexNet, forms
from alexnet_jax.models.operations import apply
from alexnet_jax.runtime.compilation import Program

PARTS = ("forward", "input_gradient", "weight_gradient")


def measure(config: Config, options: Options) -> dict:
    """Times each operation of the net on one device with the whole batch, and then the step."""
    run, repeats = synthetic_run(config), options.repeats
    size, count = config.data.image_size, config.batch_size
    peak = timing.matmul_peak(run.model.dtype)
    flops = layer_flops(run.model, size)
    params = jax.device_put(run.fresh_state().params, jax.devices()[0])
    found = []
    for name, function, weights, maps in operations(run.model, params, size, count):
        times = layer_times(function, weights, maps, repeats, first=not found)
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
    """Makes a table of the layers with the share of the matmul peak that each part reaches."""
    peak, total = result["peak_matmul_flops"], result["sum_seconds"]
    rows = []
    for layer in result["layers"]:
        cells = [f"{layer['flops'] / 1e9:.3g}" if layer["flops"] else ""]
        for part in PARTS:
            share = layer["flops"] / layer[part] / peak if part in layer else 0
            cells += [f"{1e3 * layer[part]:.2f}" if part in layer else ""]
            cells += [f"{share:.2f}" if share else ""]
        rows.append((layer["layer"], *cells, f"{100 * _own_seconds(layer) / total:.1f}"))
    header = ("layer", "GFLOP", "out ms", "of peak", "d in ms", "of peak", "d w ms", "of peak", "%")
    note = f"sum {1e3 * total:.1f} ms, whole step {1e3 * result['step_seconds']:.1f} ms"
    return [Table(f"layers; matmul peak {peak / 1e9:.0f} GFLOP/s", header, rows, note)]


def layer_flops(model: AlexNet, image_size: int) -> dict[str, int]:
    """Counts the floating-point operations of each layer with weights, forward on one image.

    A multiply-add counts as two. Each of a layer's two gradients takes as many.
    """
    table = models.operations(model, image_size)
    return {op.name: 2 * op.multiply_adds for op in table if op.kernel}


def step_flops(model: AlexNet, image_size: int, batch_size: int) -> int:
    """Counts the floating-point operations of a training step.

    They are three times those of the forward pass, without the gradient of the images.
    """
    forward = list(layer_flops(model, image_size).values())
    return batch_size * (3 * sum(forward) - forward[0])


def operations(
    model: AlexNet, params: Mapping, image_size: int, batch_size: int
) -> Iterator[tuple]:
    """Yields (name, function of (weights, maps), its weights, its maps) of each operation in order.

    The maps are made up: one array per tower, or one that all read. Dropout is left out.
    """
    # The platform is named, so that a separate gradient saves only the arrays of one form.
    for op in models.operations(model, image_size, forms.platform()):
        if op.kind == "drop":
            continue
        parts = op.towers if op.reads == "own" else 1
        shape = (batch_size, *op.input[:-1], op.input[-1] // parts)
        maps = [jax.random.normal(jax.random.key(0), shape, model.dtype) for _ in range(parts)]
        weights = {op.name: params[op.name]} if op.kernel else {}

        def function(weights, maps, op=op):
            own = weights.get(op.name, {})
            return apply(op, maps, **own, parts=op.towers)

        yield op.name, function, weights, maps


def layer_times(
    function: Callable, weights: dict, maps: list, repeats: int, first: bool
) -> dict[str, float]:
    """Times the forward pass, which saves what the gradients need, and each gradient."""
    forward = Program(lambda weights, maps: jax.vjp(function, weights, maps))
    out, pull = forward(weights, maps)
    contenders = {"forward": timing.repeated(forward, weights, maps)}
    if not first:
        contenders["input_gradient"] = timing.repeated(
            Program(lambda pull, g: pull(g)[1]), pull, out
        )
    if weights:
        contenders["weight_gradient"] = timing.repeated(
            Program(lambda pull, g: pull(g)[0]), pull, out
        )
    times = timing.take_turns(contenders, repeats)
    return {part: statistics.median(values) for part, values in times.items()}


def _own_seconds(layer: dict) -> float:
    return sum(layer.get(part, 0) for part in PARTS)
