"""From uint8 crops to what the net reads: mean subtracted, colours shifted, scaled, on the device.

Cropping and flipping are the data pipeline's; this arithmetic follows it on the device, so that
one byte a channel crosses to it and every backend gives the same numbers.
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
    """What becomes of a crop's grey levels. Its fields stand in the section `data`."""

    mean: str = "image"  # subtract the mean image under the crop ('image', the text) or its centre
    # ('image_centre', the 2012 code), the mean of each 'channel', or 'none'
    scale: float = 1.0  # factor on the mean-subtracted grey levels of 0..255; none in 2012
    colour_noise: str = "text_unit"  # 'none', 'source', 'text' or 'text_unit': `make_preprocess`
    colour_noise_std: float = 0.1  # standard deviation of its draws (paper, section 4.1)
    colour_noise_until_epoch: float | None = None  # where it is switched off; None: never

    def check(self) -> None:
        """Refuses values that mean nothing.

        Raises:
            UserError: A field has such a value.
        """
        choose(self.mean, MEANS, "data.mean")
        choose(self.colour_noise, COLOUR_NOISES, "data.colour_noise")
        until = self.colour_noise_until_epoch
        if until is not None and not until >= 0:
            raise UserError(f"data.colour_noise_until_epoch={until}: must not be negative")


@dataclass(frozen=True, eq=False)
class Preprocess:
    """How a crop becomes the net's input.

    Attributes:
        mean: [R, R, 3] mean image of the training set, or [3] channel mean, in grey levels.
        mean_under_crop: subtract the part of the mean image under each crop, as the paper's text
            says (section 2); else its centre, wherever the crop lay, as the 2012 code does
            (cuda-convnet `convdata.py`).
        scale: factor on the mean-subtracted grey levels, one or [3]; 1 in 2012.
        noise_axes: [3, 3], one row for each principal colour axis: its direction times the
            standard deviation of the noise along it, in grey levels; None for no noise.
        noise_divisor: the image is divided by this while noise is added (1.1 in the 2012 code).
        noise_until_step: the step at which noise and divisor are switched off.
    """

    mean: np.ndarray
    mean_under_crop: bool = False
    scale: float | np.ndarray = 1.0
    noise_axes: np.ndarray | None = None
    noise_divisor: float = 1.0
    noise_until_step: int = np.iinfo(np.int32).max

    def __call__(self, images, crops, draws, step):
        """Float images for the net.

        Args:
            images: uint8 [B, S, S, 3] crops, already flipped.
            crops: int32 [B, 3], y and x of each crop in its R x R square and whether it is flipped.
            draws: float [B, 3] standard normal draws, one for each colour axis; None in evaluation.
            step: int32 scalar, the training step.
        """
        dtype = jnp.result_type(float)
        x = images.astype(dtype) - self._mean_under(crops, images.shape[1]).astype(dtype)
        if self.noise_axes is not None and draws is not None:
            noise = draws @ jnp.asarray(self.noise_axes, dtype)
            noisy = (x + noise[:, None, None, :]) / self.noise_divisor
            x = jnp.where(step < self.noise_until_step, noisy, x)
        return x * self.scale

    def _mean_under(self, crops, size):
        """The mean to subtract: [3], [S, S, 3], or [B, S, S, 3] under each crop."""
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
    """Preprocess from the training set's statistics (see `data.stats`).

    Colour noise adds to all pixels of an image, for each principal axis p of the training set's
    RGB covariance with eigenvalue l, a draw of N(0, colour_noise_std) times

        source     p sqrt(l), and divides the image by 1.1 (cuda-convnet `convdata.py`; CC2's
                   `input_meta` holds the square roots): 12, 4 and 2 grey levels on ImageNet
        text       p l, the paper's section 2.1 to the letter on grey levels: about 1,500
        text_unit  p l with l of pixels in 0..1, as later "lighting" code reads the text: about 6
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
