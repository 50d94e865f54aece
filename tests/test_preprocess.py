"""Mean, colour noise and scale against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data import Statistics
from alexnet_jax.preprocess import PreprocessSpec, make_preprocess

SIZE, RESIZED = 6, 9


@pytest.fixture
def statistics():
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) * 40
    return Statistics(
        mean_image=rng.uniform(80, 140, (RESIZED, RESIZED, 3)).astype(np.float32),
        channel_mean=np.float32([120, 110, 100]),
        covariance=np.cov(pixels.T, bias=True),
    )


def run(statistics, images, crops, draws=None, step=0, **options):
    until = options.pop("noise_until_step", 1000)
    spec = PreprocessSpec(**{"mean": "none", "scale": 1.0, "colour_noise": "none"} | options)
    prep = make_preprocess(statistics, spec, noise_until_step=until)
    return np.asarray(jax.jit(prep)(images, crops, draws, jnp.int32(step)))


def a_batch():
    rng = np.random.default_rng(1)
    squares = rng.integers(0, 256, (2, RESIZED, RESIZED, 3), dtype=np.uint8)
    crops = np.int32([[3, 1, 0], [0, 2, 1]])
    images = np.stack(
        [
            s[y : y + SIZE, x : x + SIZE][:, :: -1 if f else 1]
            for s, (y, x, f) in zip(squares, crops, strict=True)
        ]
    )
    return squares, crops, images


def test_mean_image_is_subtracted_under_the_crop_as_in_the_text(statistics):
    """Subtracting first and cropping afterwards gives the same numbers."""
    squares, crops, images = a_batch()
    got = run(statistics, images, crops, mean="image", scale=0.5)
    whole = (squares.astype(np.float32) - statistics.mean_image) * 0.5
    for each, square, (y, x, flipped) in zip(got, whole, crops, strict=True):
        expected = square[y : y + SIZE, x : x + SIZE]
        np.testing.assert_allclose(each, expected[:, ::-1] if flipped else expected, rtol=1e-6)


def test_mean_images_centre_is_subtracted_wherever_the_crop_lay_as_in_the_code(statistics):
    _, crops, images = a_batch()
    got = run(statistics, images, crops, mean="image_centre")
    centre = statistics.mean_image[1 : 1 + SIZE, 1 : 1 + SIZE]
    np.testing.assert_allclose(got, images - centre, rtol=1e-6)


def test_channel_mean(statistics):
    _, crops, images = a_batch()
    got = run(statistics, images, crops, mean="channel")
    np.testing.assert_allclose(got, images - np.float32([120, 110, 100]), rtol=1e-6)


@pytest.mark.parametrize(
    ("form", "variance_of_noise"),
    [
        ("source", lambda eigenvalues: 0.01 * eigenvalues),
        ("text", lambda eigenvalues: 0.01 * eigenvalues**2),
        ("text_unit", lambda eigenvalues: 0.01 * (eigenvalues / 255) ** 2),
    ],
)
def test_colour_noise_moves_whole_images_along_the_principal_axes(
    statistics, form, variance_of_noise
):
    draws = np.random.default_rng(2).normal(size=(20000, 3)).astype(np.float32)
    images = np.zeros((20000, 1, 1, 3), np.uint8)
    crops = np.zeros((20000, 3), np.int32)
    noise = run(statistics, images, crops, draws, colour_noise=form)[:, 0, 0]
    noise = noise * (1.1 if form == "source" else 1.0)
    eigenvalues, axes = np.linalg.eigh(statistics.covariance)
    along_axes = np.var(noise @ axes, axis=0)
    np.testing.assert_allclose(along_axes, variance_of_noise(eigenvalues), rtol=0.05)


def test_source_noise_divides_the_image_until_it_is_switched_off(statistics):
    _, crops, images = a_batch()
    draws = np.zeros((2, 3), np.float32)
    options = {"colour_noise": "source", "noise_until_step": 5}
    np.testing.assert_allclose(
        run(statistics, images, crops, draws, step=4, **options),
        images / np.float32(1.1),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(run(statistics, images, crops, draws, step=5, **options), images)


def test_evaluation_has_no_noise(statistics):
    _, crops, images = a_batch()
    np.testing.assert_array_equal(
        run(statistics, images, crops, draws=None, colour_noise="source"), images
    )
