"""Finds a layer's strongest maps of a picture, and the part of it that a value of a map sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alexnet_jax.models import Operation


@dataclass(frozen=True)
class Field:
    """Describes the squares of the input on which the values of a map depend.

    Attributes:
        side: the side in pixels, where padding counts as a part of the image.
        start: the beginning of the first value's square, on both axes; it may be negative.
        jump: the pixels from the square of one value to that of the next.
    """

    side: int
    start: int
    jump: int

    def centre(self, y: int, x: int) -> tuple[float, float]:
        """Returns the middle of the square of the value at (y, x), in pixels."""
        middle = self.start + self.side / 2
        return middle + y * self.jump, middle + x * self.jump


def fields(table: Sequence[Operation]) -> dict[str, Field]:
    """Returns the field of each activation of the convolutional part, by name."""
    found, side, start, jump = {}, 1, 0, 1
    for op in table:
        if op.dense:
            break
        start -= op.padding[0] * jump
        side += (op.window - 1) * jump
        jump *= op.stride
        found[op.name] = Field(side, start, jump)
    return found


def shown(table: Sequence[Operation]) -> list[Operation]:
    """Returns the operation that is shown of each convolution: its nonlinearity, or its last."""
    chosen: dict[str, Operation] = {}
    for op in table:
        kept = chosen.get(op.layer)
        if not op.dense and (kept is None or kept.kind != "act"):
            chosen[op.layer] = op
    return list(chosen.values())


def hidden(table: Sequence[Operation]) -> str | None:
    """Returns the last fully connected layer below the output, or None if there is none."""
    dense = list(dict.fromkeys(op.layer for op in table if op.dense))
    return dense[-2] if len(dense) > 1 else None


def strongest(values: np.ndarray, count: int) -> list[int]:
    """Returns the maps or units, on the last axis, with the largest values, the largest first."""
    peaks = values.reshape(-1, values.shape[-1]).max(axis=0)
    return [int(i) for i in np.argsort(-peaks, kind="stable")[:count] if peaks[i] > 0]
