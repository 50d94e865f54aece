"""Finds the pictures of a data set, and the places in them, that excite a unit most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from alexnet_jax.explained.layers import Field
from alexnet_jax.trained import pictures
from alexnet_jax.trained.pretrained import Pretrained

COUNT = 6  # the number of pictures that are shown for a unit


@dataclass(frozen=True)
class Units:
    """Describes units of a layer: maps of a convolution, or units of a dense layer.

    Attributes:
        layer: the name of the activation.
        numbers: the numbers of the units on the last axis.
        field: the part of the input that a value of a map sees; None for a dense layer.
        across: the number of values in a row of a map.
    """

    layer: str
    numbers: tuple[int, ...]
    field: Field | None = None
    across: int = 1

    def part(self, image: np.ndarray, place: int) -> np.ndarray:
        """Returns the part of a unit's input [S, S, 3] that is shown: what the place sees."""
        if self.field is None:
            return image
        side = shown_side(self.field, len(image))
        middle = self.field.centre(*divmod(place, self.across))
        y, x = (int(np.clip(round(at - side / 2), 0, len(image) - side)) for at in middle)
        return image[y : y + side, x : x + side]


@dataclass(frozen=True)
class Exciting:
    """Holds the part of a picture that excites a unit, the picture's class, and the strength."""

    image: np.ndarray
    label: str
    value: float


def shown_side(field: Field, size: int) -> int:
    """Returns the side of the part that is shown of `size` pixels: that of the field, or half."""
    return min(field.side, size // 2)


def peaks(values, units: Units) -> tuple:
    """Returns the largest value of each unit, and its place in the map: [N, units] each."""
    values = values[..., np.array(units.numbers)].astype(jnp.float32)
    values = values.reshape(values.shape[0], -1, len(units.numbers))
    return values.max(axis=1), values.argmax(axis=1)


def exciting(
    net: Pretrained, chosen: Sequence[pictures.Picture], wanted: Sequence[Units]
) -> Mapping[str, list[list[Exciting]]]:
    """Finds the pictures that excite each unit most: {layer: a list for each unit, the best first}.

    It is empty where none of the pictures can be read.

    Args:
        net: the net.
        chosen: the pictures to look through, each once.
        wanted: the units of each layer.
    """

    def output(_, activations):
        found = [jnp.stack(peaks(activations[each.layer], each), axis=1) for each in wanted]
        return jnp.concatenate(found, axis=2)  # [N, value and place, units of all layers]

    rows = list(pictures.run(net, chosen, output))
    if not rows:
        return {}
    values, places = np.stack([row[0] for *_, row in rows], axis=1)  # [pictures, units] each
    found, column = {}, 0
    for units in wanted:
        found[units.layer] = []
        for _ in units.numbers:
            best = np.argsort(-values[:, column], kind="stable")[:COUNT]
            found[units.layer].append(
                [
                    Exciting(
                        units.part(net.recipe.seen(rows[i][0].read()[0]), int(places[i, column])),
                        rows[i][1],
                        float(values[i, column]),
                    )
                    for i in best
                ]
            )
            column += 1
    return found
