"""Makes a net's input from a picture: its square, crops of it, and the preprocessing."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from alexnet_jax.data import decode
from alexnet_jax.data.plan import views as crops_of
from alexnet_jax.errors import UserError
from alexnet_jax.preprocess import Preprocess


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """Describes how a picture becomes the net's input, in grey levels 0..255 of RGB.

    Attributes:
        image_size: the side S of the net's input, in pixels.
        resize_size: the side R of the square from which crops are cut.
        mean: what is subtracted, float32 [R, R, 3], or [3] for each channel.
        mean_under_crop: whether to subtract the part of a mean image under each crop, instead of
            its centre.
        scale: the factor on the mean-subtracted values, float32 [3].
    """

    image_size: int
    resize_size: int
    mean: np.ndarray
    mean_under_crop: bool
    scale: np.ndarray

    def check(self) -> None:
        """Checks the values, which a person may have edited.

        Raises:
            ValueError: the sizes and shapes do not belong together, or a value is NaN, infinite or,
                of the mean, no grey level.
        """
        size, side = self.image_size, self.resize_size
        if not 1 <= size <= side:
            raise ValueError(f"image_size {size} must be from 1 to resize_size, which is {side}")
        for name, array, shapes in (
            ("mean", self.mean, ((3,), (side, side, 3))),
            ("scale", self.scale, ((3,),)),
        ):
            if array.shape not in shapes:
                wanted = " or ".join(str(list(shape)) for shape in shapes)
                raise ValueError(f"{name} has the shape {list(array.shape)}, not {wanted}")
        if not np.isfinite(self.scale).all():
            raise ValueError("scale has a value that is NaN or infinite")
        check_levels(self.mean)

    def __call__(self, image, views: int = 1) -> np.ndarray:
        """Returns the net's input of a picture; see `pretrained.Pretrained.preprocess`."""
        square = _square(image, self.resize_size)
        crops = crops_of(views, self.resize_size - self.image_size)
        images = []
        for y, x, flipped in crops:
            crop = square[y : y + self.image_size, x : x + self.image_size]
            images.append(crop[:, ::-1] if flipped else crop)
        return np.asarray(self._prepare(np.stack(images), np.asarray(crops, np.int32)))

    def seen(self, image) -> np.ndarray:
        """Returns what the net gets of a picture before the mean is subtracted: uint8 [S, S, 3]."""
        square = _square(image, self.resize_size)
        ((y, x, _),) = crops_of(1, self.resize_size - self.image_size)
        return square[y : y + self.image_size, x : x + self.image_size]

    def of_squares(self, squares):
        """Returns the net's input of squares' centres, uint8 [N, R, R, 3]; JAX can trace it."""
        ((y, x, flipped),) = crops_of(1, self.resize_size - self.image_size)
        images = squares[:, y : y + self.image_size, x : x + self.image_size]
        crops = jnp.broadcast_to(np.array([y, x, flipped], np.int32), (squares.shape[0], 3))
        return self._prepare(images, crops)

    def _prepare(self, images, crops):
        prep = Preprocess(self.mean, mean_under_crop=self.mean_under_crop, scale=self.scale)
        return prep(images, crops, None, 0)


def check_levels(mean: np.ndarray) -> None:
    """Checks that the values of a mean are grey levels of 0..255; all may be 0.

    Raises:
        ValueError: they are not.
    """
    levels = "a mean is in grey levels of 0..255"
    if not np.isfinite(mean).all():
        raise ValueError(f"the mean has values that are NaN or infinite: {levels}")
    low, high = float(mean.min()), float(mean.max())
    if low < 0 or high > 255:
        raise ValueError(f"the mean has values of {low:g} to {high:g}: {levels}")
    if 0 < high <= 1:
        raise ValueError(
            f"the mean has values of {low:g} to {high:g}: {levels}; multiply one of 0..1 by 255"
        )


def _square(image, size: int) -> np.ndarray:
    if isinstance(image, bytes | bytearray | memoryview):
        return decode.square(bytes(image), size)
    if isinstance(image, Image.Image):
        return decode.square_of(image, size)
    array = _array(image)
    if array is None or array.dtype != np.uint8 or array.shape[2:] != (3,):
        what = type(image).__name__ if array is None else f"{array.dtype} {list(array.shape)}"
        hint = "; give the file's bytes" if isinstance(image, str | Path) else ""
        raise UserError(f"a picture must be a uint8 array [H, W, 3] (RGB), not {what}{hint}")
    if 0 in array.shape:
        raise UserError(f"a picture of {array.shape[0]} x {array.shape[1]} pixels cannot be used")
    return decode.square_of(Image.fromarray(array), size)


def _array(image) -> np.ndarray | None:
    """Returns an array of NumPy, JAX, PyTorch or TensorFlow as one of NumPy."""
    if not hasattr(image, "__array__"):
        return None
    try:
        return np.asarray(image)
    except (TypeError, RuntimeError) as error:  # It is traced, on another device, or deleted.
        reason = str(error).splitlines()[0]
        raise UserError(f"a picture in an array whose values cannot be read: {reason}") from None
