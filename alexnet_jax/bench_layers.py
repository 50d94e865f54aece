"""The work of each layer, counted from shapes, and its time, alone and on made-up maps."""

import statistics
from collections.abc import Callable, Iterator, Mapping

import jax

from alexnet_jax import models
from alexnet_jax.bench import timing
from alexnet_jax.compilation import Program
from alexnet_jax.models import AlexNet, forms
from alexnet_jax.models.operations import apply

PARTS = ("forward", "input_gradient", "weight_gradient")


def layer_flops(model: AlexNet, image_size: int) -> dict[str, int]:
    """Counts the floating-point operations of each layer with weights on one image, forward.

    A product and a sum count as two. Each of a layer's two gradients takes as many.
    """
    table = models.operations(model, image_size)
    return {op.name: 2 * op.multiply_adds for op in table if op.kernel}


def step_flops(model: AlexNet, image_size: int, batch_size: int) -> int:
    """Counts those of a training step: thrice the forward ones, less the images' gradient."""
    forward = list(layer_flops(model, image_size).values())
    return batch_size * (3 * sum(forward) - forward[0])


def operations(
    model: AlexNet, params: Mapping, image_size: int, batch_size: int
) -> Iterator[tuple]:
    """Yields (name, function of (weights, maps), its weights, its maps) of each operation in order.

    The maps are made up: one per tower, or one that all read. Dropout is left out.
    """
    # By its name, so that a gradient taken apart from the program saves one form's arrays alone.
    form = forms.of_platform(jax.default_backend())
    for op in models.operations(model, image_size, form):
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
    """Times in seconds the way forward, saving what the gradients need, and each of these."""
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
