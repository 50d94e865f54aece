"""Runs a net on a picture and keeps its input, its activations and its answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from alexnet_jax import classify
from alexnet_jax.data import decode
from alexnet_jax.errors import UserError
from alexnet_jax.models import Operation, operations
from alexnet_jax.trained import pictures
from alexnet_jax.trained.pretrained import Pretrained, open_pretrained


@dataclass(frozen=True)
class Seen:
    """Holds a picture in a net, which all sections of the page describe.

    Attributes:
        path: the name or the place of the net.
        net: the net.
        name: the picture's file.
        square: the part of the picture that the net reads, uint8 [S, S, 3].
        image: the net's input, float [1, S, S, 3].
        table: the net's operations.
        activations: {name: array [1, ...]}.
        shares: the probability of each class.
        class_names: the English names of the classes.
    """

    path: str
    net: Pretrained
    name: str
    square: np.ndarray
    image: np.ndarray
    table: list[Operation]
    activations: dict[str, np.ndarray]
    shares: np.ndarray
    class_names: Sequence[str]

    @property
    def likeliest(self) -> list[int]:
        """Returns the classes, the most probable first."""
        return [int(i) for i in np.argsort(-self.shares, kind="stable")]

    def half(self, op: Operation, number: int) -> int | None:
        """Returns the half, 0 or 1, of a map or unit, or None in a net of one tower."""
        if self.net.model.towers != 2 or op.towers != 2:
            return None
        return int(number >= op.output[-1] // 2)


def look(path: str, file: str) -> tuple[Seen, bytes]:
    """Runs the net at `path` on a picture; returns what it sees, and the file's bytes.

    Raises:
        UserError: `open_pretrained` raises it, the file is not a picture, or it is a folder of
            several.
    """
    picture, *others = pictures.find([file])
    if others:
        raise UserError(f"'{file}' has {1 + len(others)} pictures: name one of them")
    net = open_pretrained(path)
    try:
        encoded = picture.read()[0]
        image, square = net.preprocess(encoded), net.recipe.seen(encoded)
    except (OSError, decode.BadImage) as error:
        raise UserError(f"'{file}': {getattr(error, 'strerror', None) or error}") from None
    logits, activations = net.model.apply({"params": net.params}, image)
    seen = Seen(
        path=path,
        net=net,
        name=Path(picture.name).name,
        square=square,
        image=image,
        table=operations(net.model, net.recipe.image_size),
        activations={name: np.asarray(each) for name, each in activations.items()},
        shares=np.asarray(jax.nn.softmax(logits), np.float64)[0],
        class_names=classify.class_names(net),
    )
    return seen, encoded
