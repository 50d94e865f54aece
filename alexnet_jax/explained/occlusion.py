"""Finds the parts of a picture on which an answer rests, by covering one part at a time.

The method is from M. Zeiler and R. Fergus, Visualizing and Understanding Convolutional Networks
(2013), section 4.2.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.runtime.compilation import Program
from alexnet_jax.trained.pretrained import Pretrained

PLACES = 16  # positions of the square's centre on each axis
BATCH = 64


def side_of(size: int) -> int:
    """Returns the side of the square that covers a part of an input of `size` pixels."""
    return max(1, size // 5)


def fall(net: Pretrained, image: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Returns how much the probability of each class falls if a place of the picture is covered.

    Args:
        net: the net.
        image: its input, float [1, S, S, 3]. It is covered with 0, the mean of training.
        classes: the numbers of the classes.

    Returns:
        Float [classes, PLACES, PLACES]; the places are spread evenly on each axis, with its ends.
    """
    size = image.shape[1]
    side = side_of(size)
    centres = np.linspace(0, size, PLACES)
    pixels = np.arange(size) + 0.5
    covered = np.abs(pixels - centres[:, None]) < side / 2  # [PLACES, S]
    squares = covered[:, None, :, None] & covered[None, :, None, :]
    squares = squares.reshape(PLACES**2, size, size, 1)
    chosen = jnp.array(classes)
    answers = Program(
        lambda params, x: jax.nn.softmax(net.model.apply({"params": params}, x)[0])[:, chosen]
    )
    falls = [
        np.asarray(answers(net.params, jnp.where(squares[i : i + BATCH], 0, image)))
        for i in range(0, len(squares), BATCH)
    ]
    whole = np.asarray(answers(net.params, jnp.repeat(image, BATCH, axis=0)))[0]
    return (whole - np.concatenate(falls)).T.reshape(len(classes), PLACES, PLACES)
