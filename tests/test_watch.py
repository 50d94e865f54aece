"""What TensorBoard shows of the net itself, in every layout and after a restart."""

import collections
import io

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from alexnet_jax import models
from alexnet_jax.config import load_config, override
from alexnet_jax.data import tfrecord
from alexnet_jax.evaluate import load_run
from alexnet_jax.parallel import MeshSpec, make_layout
from alexnet_jax.records import watch
from alexnet_jax.train import train


def events(workdir):
    """{tag: {step: value}} of the one event file."""
    (path,) = workdir.glob("events.out.tfevents.*")
    found = collections.defaultdict(dict)
    for event in map(Event.FromString, tfrecord.records(path)):
        for value in event.summary.value:
            assert event.step not in found[value.tag]
            found[value.tag][event.step] = value
    return found


def test_a_run_shows_norms_and_kernels(trained):
    found = events(trained.workdir)
    logged = [2, 4, 6, 8, 10, 12, 14, 15]
    for layer in ("conv1", "conv5", "fc8"):
        for name in ("weight_norm", "update_norm"):
            assert list(found[f"{name}/{layer}"]) == logged
    assert list(found["conv1"]) == [5, 10, 15]
    _, params, _ = load_run(trained.workdir, 15)
    norm = float(np.linalg.norm(params["conv3"]["kernel"]))
    assert found["weight_norm/conv3"][15].simple_value == pytest.approx(norm, rel=1e-5)
    with Image.open(io.BytesIO(found["conv1"][15].image.encoded_image_string)) as image:
        shown = np.asarray(image)
    kernels = np.asarray(params["conv1"]["kernel"])
    np.testing.assert_array_equal(shown, watch.kernel_grid(kernels, towers=2))


def test_a_resumed_run_shows_the_same(trained, tmp_path):
    config = load_config(trained.config_file)
    # An epoch's end, and a logged step.
    assert train(override(config, {"num_train_steps": 10}), tmp_path / "run") == 0
    assert train(config, tmp_path / "run") == 0
    resumed, whole = events(tmp_path / "run"), events(trained.workdir)
    for tag in whole:
        if tag != "train/images_per_second" and not tag.startswith("config"):
            for step, value in whole[tag].items():
                assert resumed[tag][step] == value, (tag, step)


@pytest.mark.parametrize("name", ["data", "towers", "hybrid"])
def test_every_layout_shows_the_same(name):
    model = models.create("alexnet", width=1 / 16, hidden_units=32, num_classes=4)
    layout = make_layout(MeshSpec(name, data=2, model=2), towers=2, batch_size=8)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    params, velocity = (
        jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
        for _ in range(2)
    )
    state = params, (optax.EmptyState(), optax.TraceState(velocity))
    placed = jax.device_put(state, layout.state_shardings(state))
    assert placed[0]["fc6"]["kernel"].is_fully_replicated == (name == "data")

    watching = watch.make_watch(model, layout)
    norms = watching.norms(*placed)
    for kind, tree in (("weight_norm", params), ("update_norm", velocity)):
        for layer, leaves in tree.items():
            assert norms[f"{kind}/{layer}"].is_fully_replicated
            expected = np.linalg.norm(leaves["kernel"].astype(np.float64))
            np.testing.assert_allclose(norms[f"{kind}/{layer}"], expected, rtol=1e-5)
    kernels = watching.kernels(placed[0])
    assert kernels.is_fully_replicated
    np.testing.assert_array_equal(kernels, params["conv1"]["kernel"])


def test_kernels_by_tower():
    kernels = np.zeros((3, 5, 3, 40), np.float32)
    kernels[:, :, 0, 1] = 2.0  # the first tower's second: red
    kernels[:, :, :, 20] = -2.0  # the second tower's first: black
    image = watch.kernel_grid(kernels, towers=2)[:: watch.ENLARGED, :: watch.ENLARGED]
    # Two rows of 16 and 4 to a tower; a line between kernels, three between towers.
    assert image.shape == (4 * 3 + 2 + 3, 16 * 5 + 15, 3)
    assert image[0, 0].tolist() == [128, 128, 128]
    assert image[2, 6].tolist() == image[0, 10].tolist() == [255, 128, 128]
    assert image[3, 6].tolist() == image[0, 5].tolist() == [255, 255, 255]
    assert image[10, 0].tolist() == [0, 0, 0]
    assert image[9, 0].tolist() == [255, 255, 255]
    assert image[4, 25].tolist() == [255, 255, 255]  # the row has ended


def test_all_zero_kernels_are_grey():
    assert set(np.unique(watch.kernel_grid(np.zeros((2, 2, 3, 1)), towers=1))) == {128}
