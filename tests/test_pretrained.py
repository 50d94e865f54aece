"""A run's net outside of its run: the same numbers, without the data set; and as a beginning."""

import io
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import alexnet_jax
from alexnet_jax import data, export
from alexnet_jax.assemble import assemble
from alexnet_jax.config import check_same_run, load_config, override, read_config
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import load_run
from alexnet_jax.models import create
from alexnet_jax.preprocess import Preprocess
from alexnet_jax.train import train
from alexnet_jax.trained import pretrained
from alexnet_jax.trained.begin import _differences, begin_from
from alexnet_jax.trained.kept import RECIPE
from alexnet_jax.trained.pretrained import open_pretrained
from alexnet_jax.trained.recipe import Recipe
from tests import tiny


@pytest.fixture(scope="module")
def evaluated(trained):
    """The run, its best parameters, and its log-probabilities of the first 16 test images."""
    run, params, _ = load_run(trained.workdir)
    batch = next(
        data.eval_batches(
            data.open_split(run.data, "test"),
            "test",
            batch_size=16,
            views=data.views(1, 4),
            shardings=run.layout.batch_shardings(),
        )
    )
    return run, params, np.asarray(run.predict(params, batch))


@pytest.fixture(scope="module")
def pictures(trained):
    """The bytes of the same images, in the same order."""
    return [path.read_bytes() for path in sorted((trained.images / "test").glob("*/*"))[:16]]


def log_probs(net, pictures, views=1):
    images = np.concatenate([net.preprocess(picture, views) for picture in pictures])
    return np.asarray(jax.nn.log_softmax(net.model.apply({"params": net.params}, images)[0]))


def moved_away(trained, tmp_path):
    """A copy of the run that looks for its data where there is nothing."""
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["name"] = "folder:/nowhere"
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


def test_evaluations_numbers_without_the_data_set(trained, evaluated, pictures, tmp_path):
    net = open_pretrained(moved_away(trained, tmp_path))
    np.testing.assert_allclose(log_probs(net, pictures), evaluated[2], atol=1e-5)
    assert net.class_names == ("astronaut", "coffee", "gravel", "rocket")


def test_a_run_from_before_it_kept_the_recipe(trained, evaluated, pictures, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    (workdir / RECIPE).unlink()
    net = open_pretrained(workdir)
    np.testing.assert_allclose(log_probs(net, pictures), evaluated[2], atol=1e-5)
    assert net.class_names == ("astronaut", "coffee", "gravel", "rocket")


def test_load_from_the_package(trained, evaluated, pictures):
    net = alexnet_jax.load(trained.workdir)
    assert net.class_names == ("astronaut", "coffee", "gravel", "rocket")
    model, params, preprocess = net
    logits, activations = model.apply({"params": params}, preprocess(pictures[0]), train=False)
    np.testing.assert_allclose(jax.nn.log_softmax(logits)[0], evaluated[2][0], atol=1e-5)
    assert activations["conv1"].shape[0] == 1
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        alexnet_jax.laod  # noqa: B018


def test_a_chosen_step(trained):
    first, last = (open_pretrained(trained.workdir, step) for step in (5, 15))
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(first.params["fc8"]["kernel"], last.params["fc8"]["kernel"])
    with pytest.raises(UserError, match="step 7"):
        open_pretrained(trained.workdir, 7)


def test_what_the_package_shows():
    assert {"load", "create", "UserError", "__version__"} <= set(dir(alexnet_jax))
    for name in dir(alexnet_jax):
        assert getattr(alexnet_jax, name)
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]  # so that the package alone states it
    assert f"\nversion: {alexnet_jax.__version__}\n" in (tiny.ROOT / "CITATION.cff").read_text()


def test_importing_the_package_is_cheap():
    code = "import sys, alexnet_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT).returncode == 0


@pytest.mark.parametrize("views", [1, 9, 10])
@pytest.mark.parametrize("mean", ["channel", "image_centre", "image"])
def test_the_arithmetic_is_that_of_training(mean, views):
    """Bit for bit what `Preprocess` makes of the same crops on the device."""
    rng = np.random.default_rng(0)
    size = (12, 12, 3) if mean.startswith("image") else (3,)
    values = rng.uniform(0, 255, size).astype(np.float32)
    square = rng.integers(0, 256, (12, 12, 3), np.uint8)
    recipe = Recipe(8, 12, values, mean == "image", np.full(3, 1 / 64, np.float32))
    crops = np.array(data.views(views, 4), np.int32)
    cut = [square[y : y + 8, x : x + 8] for y, x, _ in crops]
    cut = [image[:, ::-1] if crop[2] else image for image, crop in zip(cut, crops, strict=True)]
    preprocess = Preprocess(mean=values, mean_under_crop=mean == "image", scale=1 / 64)
    expected = preprocess(jnp.asarray(np.stack(cut)), jnp.asarray(crops), None, 0)
    np.testing.assert_array_equal(recipe(square, views), expected)


def test_what_is_no_picture(trained):
    preprocess = open_pretrained(trained.workdir).preprocess
    for wrong in (
        np.zeros((9, 9, 3)),
        np.zeros((9, 9), np.uint8),
        "x.png",
        np.zeros((0, 9, 3), "u1"),
    ):
        with pytest.raises(UserError, match="a picture"):
            preprocess(wrong)
    with pytest.raises(UserError, match="not str; give the file's bytes"):
        preprocess("x.png")
    with pytest.raises(UserError, match="values cannot be read"):
        jax.jit(preprocess)(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match="views is 5"):
        preprocess(np.zeros((9, 9, 3), np.uint8), 5)


def test_arrays_of_other_libraries(trained):
    preprocess = open_pretrained(trained.workdir).preprocess
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    expected = preprocess(picture)

    class Tensor:  # PyTorch's, say
        def __array__(self, dtype=None, copy=None):
            return picture

    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG")
    for same in (
        jnp.asarray(picture),
        Tensor(),
        encoded.getbuffer(),
        bytearray(encoded.getvalue()),
    ):
        np.testing.assert_array_equal(preprocess(same), expected)


def test_where_nothing_is(trained, tmp_path):
    (tmp_path / "loose.safetensors").write_bytes(b"")
    (tmp_path / "alone.json").write_text("{}")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "weights.safetensors").write_bytes(b"")
    for path, said in (
        (tmp_path / "nothing", "no such file or directory"),
        ("~/no such run", "no such file or directory"),
        ("gs://bucket/run", "is a gs:// address: only local and shared"),
        (Path("s3://bucket/run"), "is a s3:// address"),
        ("~nobody-of-this-name/run", "no such user"),
        (tmp_path, r"no config\.json and no weights\.safetensors"),
        (tmp_path / "loose.safetensors", r"loose\.json beside it.*import_weights"),
        (
            tmp_path / "part",
            r"weights\.safetensors' has no weights\.json beside it.*import_weights",
        ),
        (tmp_path / "alone.json", r"alone\.safetensors is not there"),
    ):
        with pytest.raises(UserError, match=said):
            open_pretrained(path)


def test_weights_are_found_by_their_own_name_alone(trained, tmp_path):
    """And not those whose name has another ending or version."""
    export.export(trained.workdir, "safetensors", tmp_path / "net.safetensors")
    (tmp_path / "net.pth").write_bytes(b"")
    for path in ("net", "net.json", "net.safetensors"):
        assert pretrained.locate(tmp_path / path) == tmp_path / "net.safetensors"
    for path, said in (("net.pth", "net.pth' is no run and no net"), ("net.v2", "no such file")):
        with pytest.raises(UserError, match=said):
            pretrained.locate(tmp_path / path)
    export.export(trained.workdir, "safetensors", tmp_path / "net.v2.safetensors")
    assert pretrained.locate(tmp_path / "net.v2") == tmp_path / "net.v2.safetensors"


# As a beginning


def config_of(trained, **fields):
    """The run's configuration for one step that changes next to nothing."""
    one = {"num_train_steps": 1, "optim.learning_rate": 1e-12}
    return override(load_config(trained.config_file), one | fields)


def test_a_run_begins_from_another(trained, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(trained.workdir, source)
    config = config_of(trained, init_from=str(source))
    assert train(config, tmp_path / "run") == 0
    assert f"initial weights: 8 layers of {source}" in capsys.readouterr().out
    files = (trained.workdir / "result.json", tmp_path / "run" / "result.json")
    before, after = (json.loads(file.read_text()) for file in files)
    assert after["final"]["loss"] == pytest.approx(before["best"]["loss"], rel=1e-4)

    shutil.rmtree(source)
    assert train(config, tmp_path / "run") == 0  # resumed, it doesn't read it again


def test_all_layers_are_taken_to_where_the_run_has_them(trained):
    run = assemble(config_of(trained))
    fresh = run.fresh_state().params
    began = begin_from(trained.workdir, run, fresh, lambda line: None)
    for layer, arrays in open_pretrained(trained.workdir).params.items():
        for kind, values in arrays.items():
            np.testing.assert_array_equal(began[layer][kind], values)
            assert began[layer][kind].sharding == fresh[layer][kind].sharding


def test_other_classes_leave_the_last_layer(trained, tmp_path):
    two = tmp_path / "two"
    for split in ("train", "test"):
        for name in ("coffee", "gravel"):
            shutil.copytree(trained.images / split / name, two / split / name)
    config = config_of(trained, init_from=str(trained.workdir))
    config = override(config, {"data.name": f"folder:{two}"})
    run, said = assemble(config), []
    fresh = run.fresh_state().params
    began = begin_from(config.init_from, run, fresh, said.append)
    np.testing.assert_array_equal(began["fc8"]["kernel"], fresh["fc8"]["kernel"])
    kernel = open_pretrained(trained.workdir).params["fc7"]["kernel"]
    np.testing.assert_array_equal(began["fc7"]["kernel"], kernel)
    assert "7 layers" in said[0]
    assert "fc8 keeps its initial weights: 4 classes there, 2 here" in said[1]


def test_a_net_of_the_same_weights_that_computes_otherwise_is_said(trained):
    """Of the same shapes, so that nothing else would tell."""
    other = {"model.activation": "tanh", "model.lrn": False, "model.dropout": 0.0}
    run, said = assemble(override(config_of(trained), other | {"data.mean": "none"})), []
    begin_from(trained.workdir, run, run.fresh_state().params, said.append)
    told = "\n".join(said)
    assert "activation is relu in that net: here it is tanh" in told
    assert (
        "conv1 is conv1 5/2, act1, lrn1, pool1 2/2 in that net: here it is conv1 5/2, act1, pool1"
        in told
    )
    assert "the factor on fc6 and fc7 in testing is 0.5 in that net: here it is 1" in told
    assert "it was trained with a mean subtracted: here no mean is" in told
    # An activation gives the same before maximum pooling as after it.
    source = create("net145")
    paper = _differences(create("alexnet"), source, 224)
    assert not any("conv5" in line for line in paper)
    assert "the padding of conv1 is (2, 2) in that net: here it is (1, 1)" in _differences(
        source.clone(conv1_padding=2), source.clone(conv1_padding=1), 224
    )
    said.clear()
    same = assemble(config_of(trained))
    begin_from(trained.workdir, same, same.fresh_state().params, said.append)
    assert said == [f"initial weights: 8 layers of {trained.workdir}"]


def test_another_net_is_refused_and_leaves_nothing(trained, tmp_path):
    config = config_of(trained, init_from=str(trained.workdir))
    config = override(config, {"model.hidden_units": 16})
    with pytest.raises(
        UserError, match="fc6, fc7, fc8 of that net and of this one differ"
    ) as raised:
        train(config, tmp_path / "run")
    assert str(raised.value).count("conv1 5 x 5 x 3 x 6") == 2  # both nets' lists
    # So the same directory takes the run, put right.
    check_same_run(config_of(trained, init_from="elsewhere"), tmp_path / "run")


def test_runs_from_before_the_field_resume(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    old = json.loads((workdir / "config.json").read_text())
    del old["init_from"]
    (workdir / "config.json").write_text(json.dumps(old))
    assert read_config(workdir).init_from == ""
    assert train(load_config(trained.config_file), workdir) == 0
