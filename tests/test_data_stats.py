"""Mean image, channel means and colour covariance: exact, kept, and never another set's."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import data
from alexnet_jax.data import decode, stats
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """70 images, more than one chunk, whose red and green go together."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for i in range(70):
        place = root / "train" / f"class {i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        colour = np.array((90, 120, 200)) + random.normal() * np.array((40, 40, 0))
        colour = colour + random.normal(size=3) * 9 + random.normal(size=(30, 40, 3)) * 5
        pixels = np.clip(colour, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    (root / "test").symlink_to(root / "train", target_is_directory=True)
    return root


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path))
    return tmp_path


def open_data(root, **fields):
    fields = {"eval_split": "test", "image_size": 12, "resize_size": 16} | fields
    return data.open_data(data.DataSpec(name=f"folder:{root}", **fields))


def all_squares(root):
    source = open_source(f"folder:{root}", None, "train")
    images = [decode.square(source.read(i)[0], 16) for i in range(source.num_examples)]
    return np.stack(images).astype(np.float64)


@pytest.mark.parametrize("backend", ["tfdata", "device"])
def test_statistics_are_those_of_all_training_squares(root, cache_folder, backend):
    squares = all_squares(root)
    got = data.statistics(open_data(root, backend=backend))
    assert got.mean_image.dtype == got.channel_mean.dtype == np.float32
    np.testing.assert_allclose(got.mean_image, squares.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(got.channel_mean, squares.mean(axis=(0, 1, 2)), rtol=1e-6)
    covariance = np.cov(squares.reshape(-1, 3), rowvar=False, bias=True)
    np.testing.assert_allclose(got.covariance, covariance, rtol=1e-9)


def test_both_backends_give_the_same_bits(root, tmp_path, monkeypatch):
    results = []
    for backend in ("tfdata", "device"):
        monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / backend))
        results.append(data.statistics(open_data(root, backend=backend)))
    for field in dataclasses.fields(stats.Statistics):
        np.testing.assert_array_equal(*(getattr(result, field.name) for result in results))


def test_principal_colours_are_deviations_and_directions(root, cache_folder):
    got = data.statistics(open_data(root))
    deviations, directions = got.principal_colours()
    assert (np.diff(deviations) < 0).all()
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-12)
    rebuilt = directions.T @ np.diag(deviations**2) @ directions
    np.testing.assert_allclose(rebuilt, got.covariance, rtol=1e-9)
    # Light moves red and green together, by 40 each; what is left is noise of 9.
    np.testing.assert_allclose(directions[0], (0.5**0.5, 0.5**0.5, 0), atol=0.1)
    np.testing.assert_allclose(deviations, (40 * 2**0.5, 9, 9), rtol=0.25)


def test_statistics_are_computed_once(root, cache_folder, monkeypatch):
    seen = []
    first = data.statistics(open_data(root), progress=lambda *report: seen.append(report))
    assert (seen[0], seen[-1]) == (("computing the mean image", 0, 70), (stats.COMPUTING, 70, 70))
    monkeypatch.setattr(stats, "compute", None)  # Calling it would fail.
    again = data.statistics(open_data(root))
    np.testing.assert_array_equal(again.mean_image, first.mean_image)
    np.testing.assert_array_equal(again.covariance, first.covariance)


def test_a_file_of_another_data_set_is_refused(root, cache_folder):
    opened = open_data(root)
    data.statistics(opened)
    stamp = opened.splits["train"].stamp
    file = stats.path(opened.spec.name, "train", 16, stamp)
    assert file.exists()
    with pytest.raises(UserError, match="another data set"):
        stats.load(file, stamp[:16] + "0" * 48)


def test_a_damaged_file_is_computed_again(root, cache_folder):
    first = data.statistics(open_data(root))
    for file in cache_folder.iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(data.statistics(open_data(root)).mean_image, first.mean_image)


def test_skipped_images_do_not_count(root, cache_folder, tmp_path):
    spoilt = tmp_path / "spoilt" / "train" / "class 0"
    spoilt.mkdir(parents=True)
    (spoilt / "0.png").write_bytes((root / "train" / "class 0" / "0.png").read_bytes())
    (spoilt.parent / "class 1").mkdir()
    (spoilt.parent / "class 1" / "1.png").write_bytes(b"")
    place = tmp_path / "spoilt"
    for backend in ("tfdata", "device"):
        opened = open_data(place, eval_split="train", backend=backend, bad_images="skip")
        expected = decode.square((spoilt / "0.png").read_bytes(), 16)
        np.testing.assert_array_equal(data.statistics(opened).mean_image, expected)
    (spoilt / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="no image"):
        data.statistics(open_data(place, eval_split="train", bad_images="skip"))
