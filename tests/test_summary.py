"""The layer table against numbers known from the paper and from counting."""

import jax
import numpy as np
import pytest

from alexnet_jax import models, summary
from alexnet_jax.bench.layers import layer_flops
from alexnet_jax.config import load_config, override
from alexnet_jax.errors import UserError
from tests import tiny


def rows(text):
    """{first word: the other words} of the table's lines."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}


def test_the_papers_net(capsys):
    config = load_config("configs/imagenet2012.py")
    summary.show(config)
    out = capsys.readouterr().out
    assert "two towers, one image of 224 x 224" in out
    found = rows(out.replace(" x ", "x"))
    # 96 kernels of 11x11x3; 55x55 outputs (section 3.5).
    assert found["conv1"] == ["55x55x96", "34,944", "105,415,200", "11", "image"]
    assert found["conv2"] == ["27x27x256", "307,456", "223,948,800", "51", "its", "own"]
    assert found["conv3"] == ["13x13x384", "885,120", "149,520,384", "99", "both"]
    assert found["pool5"] == ["6x6x256", "195"]
    assert found["fc6"] == ["4096", "37,752,832", "37,748,736", "both"]
    assert found["fc8"] == ["1000", "4,097,000", "4,096,000", "both"]
    assert found["total"] == ["60,965,224", "724,406,816"]


def test_one_tower_has_no_column_for_them(capsys):
    summary.show(load_config("configs/imagenet2012_owt.py"))
    assert "tower reads" not in capsys.readouterr().out


@pytest.mark.parametrize("name", list(models.PRESETS))
def test_every_preset_has_its_table(name, capsys):
    config = override(load_config("imagenet2012"), {"model.name": name})
    summary.show(config)
    found = rows(capsys.readouterr().out.replace(" x ", "x"))
    model = models.create(name, num_classes=1000)
    for row in model.layers:
        assert row.name in found
    total = sum(layer_flops(model, 224).values()) // 2
    assert found["total"][-1] == f"{total:,}"


@pytest.mark.parametrize(
    ("preset", "layers"),
    [("cifar_13pct", ("pool1", "conv2", "local3")), ("cifar_18pct", ("norm1", "conv2"))],
)
def test_receptive_fields_by_trying(preset, layers):
    """What a pixel's change reaches, in a net where it can."""
    model = models.create(preset, width=1 / 16, pooling="avg", activation="tanh")
    fields = summary.receptive_fields(models.operations(model, 48))
    images = jax.random.normal(jax.random.key(0), (1, 48, 48, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(1), images)["params"]
    params = jax.tree.map(lambda w: np.full(w.shape, 0.01, w.dtype), shapes)

    def centre(images, name):
        maps = model.apply({"params": params}, images)[1][name]
        return maps[0, maps.shape[1] // 2, maps.shape[2] // 2].sum()

    gradients = jax.jit(lambda x: {name: jax.grad(centre)(x, name) for name in layers})(images)
    for name in layers:
        reached = np.abs(gradients[name][0]).sum(axis=-1) > 0
        assert reached.any(axis=0).sum() == fields[name], name


def test_left_out_layers(capsys):
    fields = {"model.skip": ("conv3",), "model.lrn": False}
    config = override(load_config("imagenet2012"), fields)
    summary.show(config)
    found = rows(capsys.readouterr().out.replace(" x ", "x"))
    assert not {"conv3", "act3", "lrn1"} & set(found)
    assert found["conv4"][-2:] == ["99", "both"]  # it joins the towers in conv3's place


def test_how_many_classes(tmp_path):
    config = load_config("configs/imagenette.py")
    assert summary.num_classes(config) == 10
    assert summary.num_classes(override(config, {"model.num_classes": 7})) == 7
    folder = tiny.make_folder(tmp_path / "photographs", 1, 1)
    assert summary.num_classes(load_config(tiny.make_config(tmp_path / "c.py", folder))) == 4
    config = override(config, {"data.name": "folder:/no/such"})
    with pytest.raises(UserError, match=r"--config\.model\.num_classes"):
        summary.num_classes(config)


def test_the_command():
    done = tiny.command("alexnet_jax.summary", "--config=configs/default.py")
    assert done.returncode == 0, done.stderr
    assert "453,756" in done.stdout
