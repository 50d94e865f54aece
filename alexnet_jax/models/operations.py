"""Reads a table of layers: lists every operation of a net in order, with its shapes.

The module runs the list that `operations` returns. The summary, the benchmarks, the same net in
PyTorch and the figure of the architecture count, time, translate and draw the same list.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax.errors import UserError
from alexnet_jax.models import conv, forms, norms, pools, windows
from alexnet_jax.models.table import Conv, Dense, Stateless, number

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}


@dataclasses.dataclass(frozen=True)
class Operation:
    """Describes one operation of the whole net; `Placement` divides it among devices.

    Attributes:
        name: The name, such as "conv1", "act1", "lrn1", "norm1", "pool1", "fc6", "act6" or "drop6".
        kind: "conv", "local", "dense", "drop", "act", "lrn", "norm", "max_pool", "avg_pool", or
            "own" if the table's row carries the function.
        layer: The name of the table's row to which it belongs.
        reads: What one tower reads: the "image", "own" (its maps) or "both" (all maps).
        towers: The number of parts into which its output is divided, one for each tower.
        input: The shape of one example before it: (height, width, maps) or (features,).
        output: The shape of one example after it.
        function: The function of the maps of one tower or of all, and of the kernel if it has one.
        window: The side of the square of the input on which one output depends.
        stride: The distance between the squares of two neighbouring outputs.
        padding: The pixels added (before, after) on both axes.
        kernel: The shape of its kernel, with the towers side by side on the last axis, or None.
        bias: The shape of its bias, in the same form, or None.
        std: The standard deviation of the initial kernel.
        constant: The initial value of the bias.
        dtype: The dtype that it computes in.
    """

    name: str
    kind: str
    layer: str
    reads: str
    towers: int
    input: tuple[int, ...]
    output: tuple[int, ...]
    function: Callable | None
    window: int = 1
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    kernel: tuple[int, ...] | None = None
    bias: tuple[int, ...] | None = None
    std: float = 0.0
    constant: float = 0.0
    dtype: str = "float32"

    @property
    def parameters(self) -> int:
        """Returns the number of its parameters."""
        return math.prod(self.kernel) + math.prod(self.bias) if self.kernel else 0

    @property
    def multiply_adds(self) -> int:
        """Returns the multiply-adds with its kernel in the forward pass of one example."""
        if not self.kernel:
            return 0
        # The kernels of untied and dense layers already contain the places of the output.
        places = self.output[:2] if self.kind == "conv" else ()
        return math.prod(places) * math.prod(self.kernel)

    @property
    def dense(self) -> bool:
        """Returns whether it works on features [B, features], not on maps [B, H, W, C]."""
        return len(self.output) == 1


def operations(
    model, image_size: int | Sequence[int], platform: str | None = None
) -> tuple[Operation, ...]:
    """Reads the table of a net for images of one size.

    Args:
        model: An `AlexNet`.
        image_size: The side of a square RGB image, or (height, width, channels).
        platform: The platform whose forms of the operators are taken, such as "cuda"; None leaves
            the choice to the compiler (see forms.py).

    Raises:
        UserError: The images are too small, or a row's own function cannot be applied.
    """
    square = isinstance(image_size, int)
    shape = (image_size, image_size, 3) if square else tuple(image_size)
    found, towers, joins = [], 1, False
    for row in model.layers:
        joins = joins or isinstance(row, Dense) or row.joins
        then = row.then
        if row.name in model.skip:  # If it joins the towers, the next layer does so instead.
            then = [entry for entry in then if _pools(entry)]
        else:
            reads = "both" if joins else "own" if found else "image"
            make = _dense if isinstance(row, Dense) else _conv
            found.append(make(model, row, shape, reads, platform))
            shape, towers, joins = found[-1].output, found[-1].towers, False
        for entry in then:
            if entry in ("lrn", "norm") and not model.lrn:
                continue
            if entry == "drop" and not model.dropout:
                continue
            found.append(_stateless(model, row, entry, shape, towers, platform))
            shape = found[-1].output
    return tuple(found)


def layer_dtypes(model, image_size: int | Sequence[int]) -> dict[str, str]:
    """Returns the dtype in which each layer with weights computes."""
    return {op.layer: op.dtype for op in operations(model, image_size) if op.kernel}


def apply(op: Operation, maps: list, kernel=None, bias=None, *, parts: int) -> list:
    """Applies an operation to arrays, in a scope of its name that profiles and programs show.

    Args:
        op: The operation.
        maps: One array per tower, or one that all towers read: [B, H, W, C] or [B, features].
        kernel: This device's part of its kernel, along the last axis; None if it has no kernel.
        bias: This device's part of its bias; None if it has no bias.
        parts: The number of arrays to return, one per tower.
    """
    with jax.named_scope(op.name):
        maps = [x.astype(op.dtype) for x in maps]
        if op.kernel is None:
            out = [op.function(x) for x in maps]
        else:
            weights = kernel.astype(op.dtype), bias.astype(op.dtype)
            if op.reads == "image" and parts > 1:
                return forms.take(
                    "first towers",
                    None,
                    lambda x, *weights: _weighted(op, [x] * parts, *weights),
                    lambda x, *weights: jnp.split(_weighted(op, [x], *weights)[0], parts, axis=-1),
                    *(*maps, *weights),
                )
            out = _weighted(op, maps, *weights)
        return out if len(out) == parts else jnp.split(out[0], parts, axis=-1)


def _weighted(op: Operation, maps: list, kernel, bias) -> list:
    """Applies an operation's weights to one array per tower, each of which has a part of them."""
    kernels, biases = (jnp.split(each, len(maps), axis=-1) for each in (kernel, bias))
    add = conv.add_bias if op.kind == "conv" else operator.add
    return [
        add(op.function(x, kernel), bias)
        for x, kernel, bias in zip(maps, kernels, biases, strict=True)
    ]


def _pools(entry) -> bool:
    own = isinstance(entry, Stateless)
    return entry.stride > 1 if own else entry in ("pool", "avg_pool")


def _conv(model, row: Conv, shape, reads, platform) -> Operation:
    size, stride, padding = row.kernel, row.stride, row.padding
    first = row is model.layers[0]
    if first:
        size = size if model.conv1_kernel is None else model.conv1_kernel
        stride = stride if model.conv1_stride is None else model.conv1_stride
        padding = padding if model.conv1_padding is None else model.conv1_padding
    padding = (padding, padding) if isinstance(padding, int) else tuple(padding)
    places = _places(row.name, shape, size, stride, f"{size}x{size} kernel", padding=padding)
    maps = _scaled(model, row.maps)
    divided = model.towers if reads == "own" else 1
    kernel, bias = (size, size, shape[-1] // divided, maps), (maps,)
    form = forms.of_platform("conv", platform)
    convolve = functools.partial(conv.first_conv if first else conv.conv, form=form, stride=stride)
    if row.local:
        kernel, bias = (*places, *kernel), (*places, *bias)
        convolve = conv.local_conv
    return Operation(
        name=row.name,
        kind="local" if row.local else "conv",
        layer=row.name,
        reads=reads,
        towers=model.towers,
        input=shape,
        output=(*places, maps),
        function=functools.partial(convolve, padding=padding),
        window=size,
        stride=stride,
        padding=padding,
        **_parameters(model, row, kernel, bias),
        dtype=model.dtype,
    )


def _dense(model, row: Dense, shape, reads, platform) -> Operation:
    if row.units is None:
        units = model.num_classes
    else:
        units = model.hidden_units or _scaled(model, row.units)
    inputs = math.prod(shape)
    last = row is model.layers[-1]
    return Operation(
        name=row.name,
        kind="dense",
        layer=row.name,
        reads=reads,
        towers=1,
        input=(inputs,),
        output=(units,),
        function=jnp.matmul,
        **_parameters(model, row, (inputs, units), (units,)),
        # Logits are computed in float32, or wider.
        dtype=model.param_dtype if last else model.dtype,
    )


def _stateless(model, row, entry, shape, towers, platform) -> Operation:
    own = isinstance(entry, Stateless)
    kind = "own" if own else f"{model.pooling}_pool" if entry == "pool" else entry
    found = entry if own else KNOWN[kind](model, platform)
    name = found.name + number(row.name)
    output = shape
    if own:
        output = _own_output(row, found, shape, 1 if found.joins else towers)
    elif kind in ("max_pool", "avg_pool"):
        window, stride = found.window, found.stride
        hangs = dict(overhang=model.pool_overhang)
        places = _places(name, shape, window, stride, f"{window}x{window} window", **hangs)
        output = (*places, shape[-1])
    return Operation(
        name=name,
        kind=kind,
        layer=row.name,
        reads="both" if found.joins else "own",
        towers=towers,
        input=shape,
        output=output,
        function=found.function,
        window=found.window,
        stride=found.stride,
        dtype=model.dtype,
    )


def _pool(model, function) -> Stateless:
    window, stride = model.pool_window, model.pool_stride
    pool = functools.partial(function, window=window, stride=stride, overhang=model.pool_overhang)
    return Stateless("pool", pool, window, stride)


# {name in a row's `then`: the function that makes the operation}. A new activation, normalisation
# or pooling is one more entry.
KNOWN: dict[str, Callable[[Any, str | None], Stateless]] = {
    "act": lambda model, platform: Stateless("act", ACTIVATIONS[model.activation]),
    "lrn": lambda model, platform: Stateless(
        "lrn",
        functools.partial(
            norms.local_response_norm,
            size=model.lrn_size,
            alpha=model.lrn_alpha,
            beta=model.lrn_beta,
            k=model.lrn_k,
            form=forms.of_platform("norm", platform),
        ),
        joins=model.lrn_joins,
    ),
    "norm": lambda model, platform: Stateless(
        "norm",
        functools.partial(
            norms.within_map_norm,
            size=model.norm_size,
            alpha=model.norm_alpha,
            beta=0.75,
            form=forms.of_platform("norm", platform),
        ),
        window=model.norm_size,
    ),
    "max_pool": lambda model, platform: _pool(
        model, functools.partial(pools.max_pool, form=forms.of_platform("pool", platform))
    ),
    "avg_pool": lambda model, platform: _pool(model, pools.avg_pool),
    "drop": lambda model, platform: Stateless("drop", None),  # The module drops, by its random key.
}
AFTER_CONV = ("act", "lrn", "norm", "pool", "avg_pool")
AFTER_DENSE = ("act", "drop")


def _own_output(row, own: Stateless, shape, towers) -> tuple[int, ...]:
    one = (*shape[:-1], shape[-1] // towers)
    try:
        found = jax.eval_shape(own.function, jax.ShapeDtypeStruct((1, *one), jnp.float32)).shape
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{row.name}: its operation '{own.name}' can't be applied to an array of shape "
            f"{(1, *one)}: {reason}"
        ) from error
    # The number of maps, or of features, must stay.
    fixed = slice(-1, None) if len(one) == 3 else slice(0, None)
    if len(found) != 1 + len(one) or found[0] != 1 or found[1:][fixed] != one[fixed]:
        raise UserError(
            f"{row.name}: its operation '{own.name}' makes an array of shape {found} from one of "
            f"{(1, *one)}: it may change only the height and the width of maps"
        )
    return (*found[1:-1], shape[-1])


def _places(name, shape, window, stride, what, **options) -> list[int]:
    """Returns the height and width of an output, or raises UserError if no window fits."""
    places = [windows.output_size(n, window, stride, **options) for n in shape[:2]]
    if min(places) < 1:
        raise UserError(
            f"{name}: its {what} does not fit its {shape[0]}x{shape[1]} input: the images are too "
            "small for this net; take larger ones, or a smaller conv1_kernel and conv1_stride, or "
            "more conv1_padding"
        )
    return places


def _parameters(model, row, kernel, bias) -> dict:
    fan_in = math.prod(kernel[-4:-1])
    std = math.sqrt(2 / fan_in) if model.kernel_init == "he" else row.std
    return dict(
        kernel=kernel,
        bias=bias,
        std=std * (model.init_scale * dict(model.layer_init_scales).get(row.name, 1.0)),
        constant=model.bias_one if row.bias == 1 else row.bias,
    )


def _scaled(model, features: int) -> int:
    """Returns `width` times as many features, rounded to a multiple of the towers."""
    return max(1, round(features * model.width / model.towers)) * model.towers
