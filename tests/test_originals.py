"""Presets and configurations against what the original files say, as copied into originals.toml."""

import re
import tomllib

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax import models
from alexnet_jax.config import load_config
from tests.tiny import ROOT

ORIGINALS = tomllib.loads((ROOT / "tests/originals.toml").read_text("utf-8"))
OPERATIONS = {"relu": "act", "cmrnorm": "lrn", "LRN": "lrn", "rnorm": "norm"}
DROPOUTS = {"hs": False, "dropout2": False, "dropout": True}  # whether it rescales in training
# conv1's padding: the last window of the 2012 code hangs over the border by 3 pixels; one weird
# trick's net has torchvision's padding instead (see presets.py).
CONV1_PADDING = {"net145": (0, 3), "net145_half": (0, 3), "net147": (0, 3), "alexnet_owt": 2}


def operations(then):
    """The names that our tables have for what follows a layer, and the file's details of each."""
    words = [word.split(":") for word in then.split()]
    pooled = {"max": "pool", "avg": "avg_pool"}
    named = [pooled[word[1]] if word[0] == "pool" else OPERATIONS.get(word[0]) for word in words]
    return tuple(name or "drop" for name in named), words


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_preset_has_the_layers_of_the_original_file(name):
    original, model = ORIGINALS[name], models.create(name)
    towers = original["towers"]
    assert model.towers == towers
    assert len(model.layers) == len(original["layers"])
    places = zip(original["layers"], model.layers, strict=True)
    for number, (said, row) in enumerate(places):
        _, title, units, kernel, stride, padding, std, bias, then = said
        ours = getattr(row, "maps", None) or getattr(row, "units", None)
        assert ours in (units * towers, None), title  # the last layer has as many as the classes
        assert row.std == pytest.approx(std), title
        assert (model.bias_one if row.bias == 1 else row.bias) == pytest.approx(bias), title
        expected, _ = operations(then)
        if title.startswith(("conv", "local")):
            if number == 0:
                padding = CONV1_PADDING.get(name, padding)
            assert (row.kernel, row.stride, row.padding) == (kernel, stride, padding), title
            if towers == 2:
                assert row.joins == (title in original["reads_both_towers"]), title
            assert row.local == title.startswith("local")
            # A ReLU after a max pool is that ReLU before it.
            assert _relu_first(row.then) == _relu_first(expected), title
        else:
            assert row.then == expected, title


def _relu_first(then):
    text = " ".join(then)
    return re.sub(r"\bpool act\b", "act pool", text)


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_preset_has_the_numbers_of_its_operations(name):
    original, model = ORIGINALS[name], models.create(name)
    details = [word for layer in original["layers"] for word in operations(layer[-1])[1]]
    for word in details:
        if word[0] == "pool":
            assert (model.pool_window, model.pool_stride) == (int(word[2]), int(word[3]))
        elif word[0] in ("cmrnorm", "LRN"):
            assert model.lrn_size == int(word[1])
        elif word[0] == "rnorm":
            assert model.norm_size == int(word[1])
        elif word[0] in DROPOUTS:
            assert model.dropout == pytest.approx(1 - float(word[1]))
            assert model.inverted_dropout == DROPOUTS[word[0]]
    if across := original.get("cmrnorm"):
        # The code divides the scale by the window's size, or its area (cuda-convnet, layer.py).
        alpha = across["scale"] / model.lrn_size
        assert (model.lrn_alpha, model.lrn_beta) == pytest.approx((alpha, across["pow"]))
        assert model.lrn_k == across["minDiv"]
    if within := original.get("rnorm"):
        assert model.norm_alpha == pytest.approx(within["scale"] / model.norm_size**2)
    if caffe := original.get("LRN"):
        assert model.lrn_alpha == pytest.approx(caffe["alpha"] / model.lrn_size)
        assert (model.lrn_beta, model.lrn_k) == (caffe["beta"], caffe["k"])
        assert model.lrn_joins  # Caffe's LRN sums over all maps, whatever the groups


def test_net147_has_the_maps_of_its_file():
    """The sizes, pixels on a side, that 2x2 pooling with overhang and the other paddings give."""
    model = models.create("net147", width=1 / 48, hidden_units=8)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    (_, activations), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert [activations[each].shape[1] for each in names] == ORIGINALS["net147"]["maps"]


@pytest.mark.parametrize("name", [name for name in ORIGINALS if "config" in ORIGINALS[name]])
def test_the_configuration_has_the_rates_of_the_original_file(name):
    original = ORIGINALS[name]
    config = load_config(ROOT / "configs" / f"{original['config']}.py")
    rates, optim = original["rates"], config.optim
    assert config.model.name == name
    assert config.batch_size == 128
    assert optim.momentum == rates["momW"]
    assert optim.weight_decay == rates["wc"]
    layers = [row.name for row in models.create(name).layers]
    assert dict(optim.layer_decays) == {layer: rates[layer] for layer in layers if layer in rates}
    if "epsW" in rates:
        assert optim.learning_rate == rates["epsW"]
        assert optim.learning_rate * optim.bias_rate == pytest.approx(rates["epsB"])
    if "biases_drop" in rates:
        follow = optim.bias_schedule == "weights"
        assert follow == rates["biases_drop"]
        assert follow or optim.bias_drop_epochs == ()
    if "drops" in rates:
        assert tuple(optim.drop_epochs)[: len(rates["drops"])] == tuple(rates["drops"])
    if dexp := original.get("dexp"):
        assert (optim.schedule, optim.learning_rate) == ("dexp", dexp["base"])
        assert (optim.dexp_factor, optim.dexp_stages) == (dexp["tgtFactor"], dexp["numSteps"])
        assert optim.learning_rate * optim.bias_rate == pytest.approx(dexp["epsB_base"])
        assert (optim.bias_schedule, optim.drop_factor) == ("epochs", dexp["epsB_tgtFactor"])
        assert optim.bias_drop_epochs == (config.num_epochs / dexp["epsB_numSteps"],)
    if log := original.get("log"):
        assert optim.drop_epochs == (log["1e-3"], log["1e-4"], log["1e-5"])
        cut, frozen = log["conv1_cut"], log["conv1_frozen"]
        assert optim.layer_rates == (("conv1", 0.1, cut), ("conv1", 0.0, frozen))
        assert config.num_epochs == log["stop"]
        assert config.preprocess.colour_noise_until_epoch == cut
        assert optim.learning_rate * optim.bias_rate == pytest.approx(0.02)
        assert optim.bias_drop_epochs == ()
