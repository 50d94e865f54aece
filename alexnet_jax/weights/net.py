"""Defines what a reader finds in a file, and finds the one of our nets that it is."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.models import AlexNet, Conv, create, operations
from alexnet_jax.models.table import canonical
from alexnet_jax.trained import names


@dataclasses.dataclass(frozen=True)
class Layer:
    """Holds a layer with weights, in the shapes of `models.alexnet`, and what follows it.

    Attributes:
        name: the layer's name in the file.
        kernel: [kh, kw, inputs of a tower, maps], [oh, ow, kh, kw, inputs, maps] if untied, or
            [inputs, units]; the towers are side by side on the last axis.
        bias: [maps], [oh, ow, maps] or [units].
        then: the operations up to the next layer: "act", "pool", "avg_pool", "lrn", "norm", "drop";
            None if the file does not say.
        stride: the stride of a convolution; None if the file does not say.
        padding: the padding of a convolution, (before, after) in pixels; None likewise.
    """

    name: str
    kernel: np.ndarray
    bias: np.ndarray
    then: tuple[str, ...] | None = None
    stride: int | None = None
    padding: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """Holds a net that was read from a file.

    Attributes:
        layers: the layers, in the order of the net.
        presets: the names of the nets that it may be, the most probable first.
        fields: the fields of `AlexNet` that the file has and that may differ from a preset's.
        image_size: the side of the net's input in pixels.
        resize_size: the side of the square from which the input is cut, in pixels.
        mean: the mean of `recipe.Recipe`, [3] for RGB.
        scale: the scale of `recipe.Recipe`, [3] for RGB.
        mean_under_crop: that of `recipe.Recipe`.
        channel_order: the order of the file's first kernel, which is RGB in `layers`.
        class_names: the names of the classes, if they are known.
        note: a line about a file that contains more than this net, or "".
    """

    layers: Sequence[Layer]
    presets: Sequence[str]
    image_size: int
    resize_size: int
    mean: Sequence[float]
    scale: Sequence[float] = (1.0, 1.0, 1.0)
    mean_under_crop: bool = False
    channel_order: str = "rgb"
    fields: dict = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    note: str = ""


def fit(found: Found) -> tuple[str, dict, dict]:
    """Finds the preset of a file's net, its fields, and its parameters under our names.

    Raises:
        UserError: no preset has these layers. The message lists them with those of the nearest
            net, or says which stride or padding differs.
    """
    theirs = [(layer.kernel.shape, layer.bias.shape) for layer in found.layers]
    nearest = None
    for preset in found.presets:
        model, fields = _scaled(preset, found)
        shapes = _shapes(model, found.image_size)
        if shapes == theirs and _same_order(model, found.layers):
            _check_geometry(preset, model, found.layers, found.image_size)
            params = {
                row.name: {"kernel": layer.kernel, "bias": layer.bias}
                for row, layer in zip(model.layers, found.layers, strict=True)
            }
            return preset, fields, params
        alike = sum(a == b for a, b in zip(shapes, theirs, strict=False))
        if nearest is None or alike > nearest[0]:
            nearest = alike, preset, zip(model.layers, shapes, strict=False)
    _, preset, rows = nearest
    raise UserError(
        f"its layers are not those of {' or '.join(found.presets)}; of each the kernel, the bias "
        "and what follows\n  the file:\n"
        + _list((x.name, x.kernel.shape, x.bias.shape, x.then) for x in found.layers)
        + f"\n  {preset}, as wide as its first layer, for {found.image_size} pixels:\n"
        + _list((row.name, *shape, row.then) for row, shape in rows)
    )


def agree(fields: dict, layer: str, given: dict) -> None:
    """Adds the fields that a layer gives to the net's `fields`; all layers must give the same.

    Raises:
        ValueError: another layer has given another value.
    """
    for name, value in given.items():
        if fields.setdefault(name, value) != value:
            raise ValueError(f"layer {layer} has {name} {value}, where others have {fields[name]}")


def imagenet_classes(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Returns ImageNet's classes in torchvision's and Caffe's order, if there are 1000 outputs."""
    known = tuple(names.imagenet())
    return known if layers and len(layers[-1].bias) == len(known) else ()


def _scaled(preset: str, found: Found) -> tuple[AlexNet, dict]:
    """Returns the preset at the width of the file's layers, and the fields that differ from it."""
    fields = dict(found.fields)
    base = create(preset, **fields)
    maps = found.layers[0].bias.shape[-1] if found.layers else base.layers[0].maps
    if maps != base.layers[0].maps:
        fields["width"] = maps / base.layers[0].maps
    dense = [layer for layer in found.layers if layer.kernel.ndim == 2]
    if len(dense) > 1:
        table = next(row.units for row in base.layers if not isinstance(row, Conv))
        if "width" in fields or len(dense[0].bias) != table:
            fields["hidden_units"] = len(dense[0].bias)
    if dense and len(dense[-1].bias) != base.num_classes:
        fields["num_classes"] = len(dense[-1].bias)
    return create(preset, **fields), fields


def _shapes(model: AlexNet, image_size: int) -> list[tuple]:
    """Returns the shapes of each layer's kernel and bias; none if the images are too small."""
    try:
        return [(op.kernel, op.bias) for op in operations(model, image_size) if op.kernel]
    except UserError:
        return []


def _same_order(model: AlexNet, theirs: Sequence[Layer]) -> bool:
    maximum = model.pooling == "max"
    return all(
        layer.then is None or canonical(row.then, maximum) == canonical(layer.then, maximum)
        for row, layer in zip(model.layers, theirs, strict=True)
    )


def _check_geometry(preset: str, model: AlexNet, theirs: Sequence[Layer], image_size: int) -> None:
    """Raises UserError unless the convolutions have the model's strides and paddings."""
    ours = [op for op in operations(model, image_size) if op.kernel]
    for op, layer in zip(ours, theirs, strict=True):
        own = {} if op.dense else {"stride": op.stride, "padding": op.padding}
        for name, number in own.items():
            given = getattr(layer, name)
            if given not in (None, number):
                raise UserError(f"layer {layer.name} has {name} {given}, and {preset} {number}")


def _list(rows: Iterable[tuple]) -> str:
    lines = [
        f"    {name:18} {_product(kernel):24} {_product(bias):8} {', '.join(then or ())}".rstrip()
        for name, kernel, bias, then in rows
    ]
    return "\n".join(lines) or "    (none)"


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
