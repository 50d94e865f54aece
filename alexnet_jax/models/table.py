"""Defines the rows of a table of layers, which is a tuple of `Conv` rows and then `Dense` rows.

`presets.py` has the published tables, and `operations.py` reads them.
"""

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Stateless:
    """Describes an operation without parameters, which a row's `then` may contain.

    Attributes:
        name: The name of its output without the layer's number: "swish" after conv1 is swish1.
        function: The function of the maps of one tower, float [B, H, W, C], which may change H and
            W. After a dense layer, it is a function of features [B, features] to as many features.
        window: The side of the square of the input that one output depends on.
        stride: The distance between the squares of two neighbouring outputs.
        joins: Whether the function takes the maps of both towers at once.
    """

    name: str
    function: Callable
    window: int = 1
    stride: int = 1
    joins: bool = False


@dataclasses.dataclass(frozen=True)
class Conv:
    """Describes a convolution and the operations after it, which each tower applies.

    Attributes:
        name: The name of the layer, with a number: "conv1".
        maps: The number of its maps, of both towers together.
        kernel: The side of its kernels in pixels.
        stride: The pixels from one position of the kernel to the next.
        padding: The pixels added on each side of both axes, or (before, after).
        joins: Whether each tower reads the maps of both towers, not only its own.
        std: The standard deviation of the initial kernels, which are Gaussian.
        bias: The initial value of the biases.
        then: The operations that follow in this order: "act", "lrn" (normalisation across maps),
            "norm" (within each map), "pool" (as the net's fields say), "avg_pool" (always the
            average), or your own `Stateless`.
        local: Whether it is untied, with its own kernel and bias for every output position.
    """

    name: str
    maps: int
    kernel: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    joins: bool = False
    std: float = 0.01
    bias: float = 0.0
    then: tuple[str | Stateless, ...] = ("act",)
    local: bool = False


@dataclasses.dataclass(frozen=True)
class Dense:
    """Describes a fully connected layer, which reads the features of both towers.

    Attributes:
        name: The name of the layer, with a number: "fc6".
        units: The number of its units; None in the last row, which has one for each class.
        std: The standard deviation of the initial kernel, which is Gaussian.
        bias: The initial value of the biases.
        then: The operations that follow in this order: "act", "drop", or your own `Stateless`.
    """

    name: str
    units: int | None = None
    std: float = 0.01
    bias: float = 0.0
    then: tuple[str | Stateless, ...] = ()


def number(layer: str) -> str:
    """Returns the number in a layer's name, such as "1", which its operations get as well."""
    return layer.lstrip("abcdefghijklmnopqrstuvwxyz")


def canonical(then: Sequence[str], maximum: bool) -> list[str]:
    """Leaves dropout out, and moves activations before maximum pooling, which is equivalent."""
    ops = [op for op in then if op != "drop"]
    for i in range(1, len(ops) if maximum else 0):
        if ops[i - 1 : i + 1] == ["pool", "act"]:
            ops[i - 1 : i + 1] = ["act", "pool"]
    return ops
