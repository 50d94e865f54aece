"""What a table of layers is made of: a tuple of `Conv` rows, then of `Dense` rows.

`presets.py` has the published tables, `operations.py` reads them.
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Stateless:
    """An operation without parameters, which a row's `then` may carry beside the known names.

    Attributes:
        name: Its output is called this and the layer's number: "swish" after conv1 is swish1.
        function: Of float [B, H, W, C], the maps of one tower, and it may change H and W. After a
            dense layer it takes and gives [B, features].
        window, stride: Of the square of its input that one output depends on.
        joins: Whether it takes the maps of both towers at once, and not each tower's by itself.
    """

    name: str
    function: Callable
    window: int = 1
    stride: int = 1
    joins: bool = False


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution and the operations after it, in order, each once per tower.

    Attributes:
        padding: On both axes, on each side or (before, after).
        joins: Whether each tower reads the maps of both, not only its own.
        std, bias: Of the Gaussian kernels at the start; the biases' constant.
        then: Of "act", "lrn" (across maps), "norm" (within each map), "pool" (as the net's fields
            say) and "avg_pool" (average, whatever they say), or a `Stateless` of one's own.
        local: Whether it is untied: a kernel and a bias for every output position.
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
    """A fully connected layer; it reads the features of both towers.

    Attributes:
        units: None in the last row, which has one per class.
        std, bias: Of the Gaussian kernels at the start; the biases' constant.
        then: Of "act" and "drop", or a `Stateless` of one's own.
    """

    name: str
    units: int | None = None
    std: float = 0.01
    bias: float = 0.0
    then: tuple[str | Stateless, ...] = ()


def number(layer: str) -> str:
    """Returns "1" of conv1: what the operations after a layer are numbered by."""
    return layer.lstrip("abcdefghijklmnopqrstuvwxyz")
