"""What is handed out gives the same logits where it goes: without this package, or in another."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax import export, models
from alexnet_jax.errors import UserError
from alexnet_jax.import_weights import import_weights
from alexnet_jax.trained.pretrained import Pretrained, open_pretrained
from tests import tiny
from tests.test_import_weights import GOLDEN, SIZE, assert_close, golden


@pytest.fixture
def imported(small, tmp_path):
    """A small net of torchvision's, imported, and its file's tensors."""
    _, _, weights = golden("torchvision")
    safetensors.numpy.save_file(weights, tmp_path / "x.safetensors")
    import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "net")
    return tmp_path / "net", weights


def images_and_logits(path, count=3):
    net = open_pretrained(path)
    size = net.recipe.image_size
    images = np.random.default_rng(0).normal(0, 2, (count, size, size, 3)).astype(np.float32)
    return images, np.asarray(net.model.apply({"params": net.params}, images)[0])


CALLER = """
import sys
import numpy as np
from jax import export

with open(sys.argv[1], "rb") as file:
    function = export.deserialize(bytearray(file.read()))
images = np.load(sys.argv[2])
np.savez(sys.argv[3], whole=function.call(images), first=function.call(images[:1]))
assert not any(name.startswith("alexnet_jax") for name in sys.modules)
print(*function.platforms)
"""


def test_stablehlo_without_this_package(trained, tmp_path):
    net = open_pretrained(trained.workdir)
    size = net.recipe.resize_size
    assert size > net.recipe.image_size
    said = export.export(trained.workdir, "stablehlo", tmp_path / "net.bin")
    assert f"uint8 [N, {size}, {size}, 3]" in said
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    inputs = np.concatenate([net.preprocess(image) for image in images])
    expected = np.asarray(net.model.apply({"params": net.params}, inputs)[0])
    np.save(tmp_path / "images.npy", images)
    files = [tmp_path / name for name in ("net.bin", "images.npy", "logits.npz")]
    run = subprocess.run(
        [sys.executable, "-c", CALLER, *map(str, files)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["cpu", "cuda"]
    with np.load(files[-1]) as found:
        assert_close(found["whole"], expected, 1e-5)
        assert_close(found["first"], expected[:1], 1e-5)


def test_stablehlo_of_prepared_images(trained, tmp_path):
    said = export.export(trained.workdir, "stablehlo", tmp_path / "net.bin", "float32")
    assert "float32 [N, 32, 32, 3]" in said
    images, expected = images_and_logits(trained.workdir)
    function = jax.export.deserialize(bytearray((tmp_path / "net.bin").read_bytes()))
    assert_close(np.asarray(function.call(images)), expected, 1e-5)


def test_stablehlo_of_a_net_with_the_fused_kernel(trained):
    """It trained with Pallas' kernel, which knows no batch of any size, and is the same net."""
    model = models.create("alexnet", width=1 / 16, hidden_units=16, num_classes=4)
    images = np.random.default_rng(0).normal(0, 50, (2, 67, 67, 3)).astype(np.float32)
    params = tiny.he_weights(jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    expected = model.apply({"params": params}, images)[0]
    recipe = dataclasses.replace(open_pretrained(trained.workdir).recipe, image_size=67)
    net = Pretrained(model.clone(fused_kernel=True), params, recipe, (), recipe)
    function = jax.export.deserialize(bytearray(export.stablehlo(net, "float32")))
    assert_close(np.asarray(function.call(images)), expected, 1e-5)


def test_safetensors_come_back(trained, tmp_path):
    out = tmp_path / "mine.safetensors"
    export.export(trained.workdir, "safetensors", out)
    _, expected = images_and_logits(trained.workdir)
    for path in (out, out.with_suffix(".json")):
        _, found = images_and_logits(path)
        np.testing.assert_array_equal(found, expected)
    net, again = open_pretrained(trained.workdir), open_pretrained(out)
    assert again.class_names == net.class_names
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    np.testing.assert_array_equal(again.preprocess(picture, 10), net.preprocess(picture, 10))


def test_torchvisions_tensors_are_those_that_came(imported, tmp_path):
    path, weights = imported
    out = tmp_path / "out.safetensors"
    export.export(path, "torchvision", out)
    found = safetensors.numpy.load_file(out)
    assert set(found) == set(weights)
    for name, tensor in weights.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_torchvisions_net_loads_it(imported, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    sys.path.insert(0, str(GOLDEN))
    try:
        import make_golden
    finally:
        sys.path.remove(str(GOLDEN))
    path, _ = imported
    export.export(path, "torchvision", tmp_path / "out.pth")
    net = make_golden.torchvision_layout().eval()
    net.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))
    images, ours = images_and_logits(path)
    with torch.no_grad():
        theirs = make_golden.run_torchvision(net, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert_close(ours, theirs.numpy())
    import_weights("torchvision", tmp_path / "out.pth", tmp_path / "again")
    np.testing.assert_array_equal(images_and_logits(tmp_path / "again")[1], ours)


def test_pth_without_pytorch(imported, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install torch, or .*\.safetensors"):
        export.export(imported[0], "torchvision", tmp_path / "out.pth")


def test_nets_that_torchvision_cannot_hold(trained, imported, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="layers, towers, lrn"):
        export.export(trained.workdir, "torchvision", tmp_path / "out.safetensors")
    monkeypatch.setattr(export.torchvision, "POOLED", 6)
    with pytest.raises(UserError, match=f"reads 6 x 6 .* not {SIZE}"):
        export.export(imported[0], "torchvision", tmp_path / "out.safetensors")


def test_where_it_goes(trained, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        export.export(trained.workdir, "safetensors", tmp_path / "net.bin")
    with pytest.raises(UserError, match="--input=uint8 is for --to=stablehlo"):
        export.export(trained.workdir, "safetensors", tmp_path / "net.safetensors", "uint8")
    with pytest.raises(UserError, match="cannot write"):
        export.export(trained.workdir, "stablehlo", tmp_path / "no" / "net.bin")
    with pytest.raises(UserError, match="did you mean 'stablehlo'"):
        export.export(trained.workdir, "stable", tmp_path / "net.bin")


def test_what_is_there_is_not_replaced(trained, tmp_path):
    """Neither another's .json, nor the reading of a run by that of a net in its folder."""
    package = tmp_path / "package.json"
    for text in ('{"name": "mine"}', "[]", "no JSON"):
        package.write_text(text)
        with pytest.raises(UserError, match=r"package\.json' is there and describes no net"):
            export.export(trained.workdir, "safetensors", tmp_path / "package.safetensors")
        assert package.read_text() == text
    assert list(tmp_path.iterdir()) == [package]
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"--out=\S*run holds a run's config\.json"):
        export.export(trained.workdir, "net", run)
    assert [each.name for each in run.iterdir()] == ["config.json"]
    for _ in range(2):  # an export of the net again is no harm
        export.export(trained.workdir, "safetensors", tmp_path / "net.safetensors")


OWN_PRESET = """
from alexnet_jax import models
from alexnet_jax.config import load_config_dict

layers = (models.Conv("conv1", 8, kernel=5, stride=4, then=("act", "pool")), models.Dense("fc2"))
models.PRESETS["ownnet"] = models.Preset("a net of this test", {{"layers": layers}})

def get_config():
    config = load_config_dict("{base}").unlock()
    config.num_train_steps = 2
    config.model.name = config.model.module = "ownnet"
    return config
"""


def test_a_preset_of_ones_own_comes_back(trained, tmp_path, monkeypatch):
    """The file names the module that adds the preset, for processes that have not imported it."""
    own, run = tmp_path / "ownnet.py", tmp_path / "run"
    own.write_text(OWN_PRESET.format(base=trained.config_file))
    once, again = tmp_path / "once.safetensors", tmp_path / "again.safetensors"
    picture = next(trained.images.rglob("*.png"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines = [
        ("alexnet_jax.main", f"--config={own}", f"--workdir={run}"),
        ("alexnet_jax.export", f"--workdir={run}", "--to=safetensors", f"--out={once}"),
        ("alexnet_jax.export", f"--weights={once}", "--to=safetensors", f"--out={again}"),
        ("alexnet_jax.export", f"--workdir={run}", "--to=net", f"--out={tmp_path / 'net'}"),
        ("alexnet_jax.classify", f"--weights={again}", picture),
        ("alexnet_jax.classify", f"--weights={tmp_path / 'net'}", picture),
    ]
    (tmp_path / "outputs").mkdir()
    done = tiny.commands(lines, tmp_path / "outputs")
    assert [each.returncode for each in done] == [0] * 6, done
    assert "coffee" in done[-2].stdout
    with pytest.raises(UserError, match=r"model\.module 'ownnet' cannot be imported"):
        open_pretrained(again)  # The folder of the module is not on this process' path.


def test_the_command(trained, tmp_path):
    out = tmp_path / "net.safetensors"
    options = (f"--workdir={trained.workdir}", "--to=safetensors")
    run = tiny.command("alexnet_jax.export", *options, f"--out={out}")
    assert run.returncode == 0, run.stderr
    assert f"exported: {out}" in run.stdout
    jax.block_until_ready(open_pretrained(out).params)
