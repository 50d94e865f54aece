"""The work of each layer, counted from shapes, and its time, alone and on made-up maps."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.bench import timing
from alexnet_jax.models.alexnet import AlexNet, Dense

PARTS = ("forward", "input_gradient", "weight_gradient")


def layer_flops(model: AlexNet, image_size: int) -> dict[str, int]:
    """Floating-point operations of each layer with weights on one image, forward.

    A product and a sum count as two. Each of a layer's two gradients takes as many.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)

    def forward(images):
        (_, activations), variables = model.init_with_output(jax.random.key(0), images)
        return activations, variables["params"]

    activations, params = jax.eval_shape(forward, images)
    flops = {}
    for row in model.layers:
        if row.name in params:
            kernel = params[row.name]["kernel"]
            places = activations[row.name].shape[1:3] if kernel.ndim == 4 else ()
            flops[row.name] = 2 * int(np.prod(places, dtype=int)) * kernel.size
    return flops


def step_flops(model: AlexNet, image_size: int, batch_size: int) -> int:
    """Those of a training step: three times the forward ones, less the gradient to the images."""
    forward = list(layer_flops(model, image_size).values())
    return batch_size * (3 * sum(forward) - forward[0])


class _OneOperation(AlexNet):
    """The same net, of which one operation runs."""

    @nn.compact
    def __call__(self, op, row, maps):
        """One map per tower, from one per tower or one that all read; [B, features] if dense."""
        if op == "conv":
            return self._convolve(row, maps)
        if op == "dense":
            return [self._connect(row, maps[0], self._units(row))]
        return self._apply(op, row, maps)


def operations(
    model: AlexNet, params: Mapping, image_size: int, batch_size: int
) -> Iterator[tuple]:
    """(name, function of (weights, maps), its weights, its maps) of each operation in order.

    The maps are made up. As AlexNet's own __call__ but for dropout.
    """
    fields = [f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
    one = _OneOperation(**{name: getattr(model, name) for name in fields})
    shapes, joins = [(batch_size, image_size, image_size, 3)], False
    for row in model.layers:
        dense = isinstance(row, Dense)
        todo = [("dense" if dense else "conv", row.name)]
        number = row.name.strip("abcdefghijklmnopqrstuvwxyz")
        todo += [(op, op.removeprefix("avg_") + number) for op in row.then if op != "drop"]
        if row.name in model.skip:
            joins, todo = joins or row.joins, [each for each in todo if each[0].endswith("pool")]
        for op, name in todo:
            if not model.lrn and op in ("lrn", "norm"):
                continue
            if op == "dense" or (op == "conv" and (joins or row.joins)):
                shapes = [(*shapes[0][:-1], sum(shape[-1] for shape in shapes))]
                joins = False
            if op == "dense":
                shapes = [(batch_size, int(np.prod(shapes[0][1:])))]
            weights = {row.name: params[row.name]} if op in ("conv", "dense") else {}
            maps = [jax.random.normal(jax.random.key(0), shape, model.dtype) for shape in shapes]

            def function(weights, maps, op=op, row=row):
                return one.apply({"params": weights}, op, row, maps)

            shapes = [out.shape for out in jax.eval_shape(function, weights, maps)]
            yield name, function, weights, maps


def layer_times(
    function: Callable, weights: dict, maps: list, repeats: int, first: bool
) -> dict[str, float]:
    """Seconds forward, saving what the gradients need, and of each gradient that a step takes."""
    forward = jax.jit(lambda weights, maps: jax.vjp(function, weights, maps))
    out, pull = forward(weights, maps)
    contenders = {"forward": timing.repeated(forward, weights, maps)}
    if not first:
        contenders["input_gradient"] = timing.repeated(
            jax.jit(lambda pull, g: pull(g)[1]), pull, out
        )
    if weights:
        contenders["weight_gradient"] = timing.repeated(
            jax.jit(lambda pull, g: pull(g)[0]), pull, out
        )
    times = timing.take_turns(contenders, repeats)
    return {part: statistics.median(values) for part, values in times.items()}
