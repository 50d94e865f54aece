"""Makes the net's input from uint8 crops: subtracts the mean, adds colour noise, and scales.

The data pipeline crops and flips. This arithmetic follows on the device, so that one byte per
channel is transferred to it and every backend gives the same numbers.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.errors import UserError, choose

MEANS = ("image", "image_centre", "channel", "none")
COLOUR_NOISES = ("none", "source", "text", "text_unit")


@dataclass(frozen=True)
class PreprocessSpec:
    """Configures the preprocessing. Its fields stand in the section `data`."""

    mean: str = "image"  # what is subtracted: the mean image under the crop ('image', the text) or
    # at its centre ('image_centre', the 2012 code), the mean of each 'channel', or 'none'
    scale: float = 1.0  # factor on the mean-subtracted grey levels of 0..255; 1 in 2012
    colour_noise: str = "text_unit"  # 'none', 'source', 'text' or 'text_unit': `make_preprocess`
    colour_noise_std: float = 0.1  # standard deviation of the draws of colour noise (section 4.1)
    colour_noise_until_epoch: float | None = None  # when colour noise is switched off; None: never

    def check(self) -> None:
        """Checks the values of the fields.

        Raises:
            UserError: A field has a value without a meaning.
        """
        choose(self.mean, MEANS, "data.mean")
        choose(self.colour_noise, COLOUR_NOISES, "data.colour_noise")
        if self.scale == 0:
            raise UserError("data.scale=0: all images would be alike; 1 leaves the grey levels")
        if not self.colour_noise_std >= 0:
            raise UserError(f"data.colour_noise_std={self.colour_noise_std}: must not be negative")
        until = self.colour_noise_until_epoch
        if until is not None and not until >= 0:
            raise UserError(f"data.colour_noise_until_epoch={until}: must not be negative")


@dataclass(frozen=True, eq=False)
class Preprocess:
    """Makes the net's input from crops.

    Attributes:
        mean: the mean image [R, R, 3] of the training set, or its mean colour [3], in grey levels.
        mean_under_crop: whether to subtract the part of the mean image under each crop, as the
            paper's text says (section 2). Otherwise its centre is subtracted, wherever the crop
            was taken, as in the 2012 code (cuda-convnet `convdata.py`).
        scale: the factor on the mean-subtracted grey levels, a number or [3]; 1 in 2012.
        noise_axes: [3, 3], one row for each principal colour axis: its direction times the standard
            deviation of the noise along it, in grey levels. None adds no noise.
        noise_divisor: the number by which images with noise are divided (1.1 in the 2012 code).
        noise_until_step: the first step without noise and without the divisor.
    """

    mean: np.ndarray
    mean_under_crop: bool = False
    scale: float | np.ndarray = 1.0
    noise_axes: np.ndarray | None = None
    noise_divisor: float = 1.0
    noise_until_step: int = np.iinfo(np.int32).max

    def __call__(self, images, crops, draws, step):
        """Returns the net's input, float [B, S, S, 3].

        Args:
            images: The crops, uint8 [B, S, S, 3], already flipped.
            crops: int32 [B, 3]: y and x of each crop in its R x R square, and if it is flipped.
            draws: Standard normal draws [B, 3], one for each colour axis; None in evaluation.
            step: The training step, an int32 scalar.
        """
        dtype = jnp.result_type(float)
        x = images.astype(dtype) - self._mean_under(crops, images.shape[1]).astype(dtype)
        if self.noise_axes is not None and draws is not None:
            noise = draws @ jnp.asarray(self.noise_axes, dtype)
            noisy = (x + noise[:, None, None, :]) / self.noise_divisor
            x = jnp.where(step < self.noise_until_step, noisy, x)
        return x * self.scale

    def _mean_under(self, crops, size):
        """Returns the mean to subtract: [3], [S, S, 3], or [B, S, S, 3] for each crop its own."""
        mean = jnp.asarray(self.mean, jnp.result_type(float))
        if mean.ndim == 1:
            return mean
        if not self.mean_under_crop:
            start = (mean.shape[0] - size) // 2
            return mean[start : start + size, start : start + size]

        def under(crop):
            window = jax.lax.dynamic_slice(
                mean, (crop[0], crop[1], jnp.zeros_like(crop[0])), (size, size, 3)
            )
            return jnp.where(crop[2] > 0, window[:, ::-1], window)

        return jax.vmap(under)(crops)


def make_preprocess(statistics, spec: PreprocessSpec, *, noise_until_step: int) -> Preprocess:
    """Makes the preprocessing from the statistics of the training set (see `data.stats`).

    For each principal axis p of the training set's RGB covariance, with eigenvalue l, colour noise
    adds to all pixels of an image the product of a draw from N(0, colour_noise_std) and:

        source     p sqrt(l), and the image is then divided by 1.1 (cuda-convnet `convdata.py`;
                   CC2's `input_meta` holds the square roots): 12, 4 and 2 grey levels on ImageNet
        text       p l of grey levels, the letter of the paper's section 4.1: about 1,500
        text_unit  p l of pixels in 0..1, as later "lighting" code reads the text: about 6
    """
    means = {
        "image": statistics.mean_image,
        "image_centre": statistics.mean_image,
        "channel": statistics.channel_mean,
        "none": np.zeros(3, np.float32),
    }
    axes = None
    if spec.colour_noise != "none":
        deviations, directions = statistics.principal_colours()
        sizes = {
            "source": deviations,
            "text": deviations**2,
            "text_unit": deviations**2 / 255,  # l / 255^2 in 0..1 units, times 255 grey levels
        }[spec.colour_noise]
        axes = spec.colour_noise_std * sizes[:, None] * directions
    return Preprocess(
        mean=np.asarray(means[spec.mean]),
        mean_under_crop=spec.mean == "image",
        scale=spec.scale,
        noise_axes=axes,
        noise_divisor=1.1 if spec.colour_noise == "source" else 1.0,
        noise_until_step=noise_until_step,
    )
