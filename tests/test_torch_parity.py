"""The same numbers as PyTorch: its records everywhere, and live where it is installed."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.models import create
from alexnet_jax.optim import OptimSpec, make_optimizer

GOLDEN = Path(__file__).parent / "golden"
SMALL = dict(width=1 / 16, hidden_units=32, num_classes=10)
MODELS = {
    "torchvision": ("torchvision", {}),
    "caffenet": ("caffenet", {}),
    "bvlc_alexnet": ("bvlc_alexnet", {}),
    "two_towers": ("alexnet", {}),
    "training": ("alexnet", dict(dropout=0.0)),
}
TORCHVISION_NAMES = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


def model(name, **fields):
    preset, more = MODELS[name]
    return create(preset, **SMALL, **more, **fields)


def tree(arrays, prefix):
    """PyTorch's arrays as our parameters: [O, I, H, W] and [O, I] to [H, W, I, O] and [I, O].

    fc6 reads pool5 as [C, 2, 2] there and as [2, 2, C] here.
    """
    params = {}
    for key, value in arrays.items():
        if key.startswith(prefix):
            layer, kind = key.removeprefix(prefix).rsplit(".", 1)
            layer = TORCHVISION_NAMES.get(layer, layer)
            if layer == "fc6" and kind == "weight":
                value = value.reshape(len(value), -1, 2, 2).transpose(0, 2, 3, 1)
                value = value.reshape(len(value), -1)
            axes = (2, 3, 1, 0) if value.ndim == 4 else tuple(reversed(range(value.ndim)))
            params.setdefault(layer, {})[{"weight": "kernel", "bias": "bias"}[kind]] = jnp.asarray(
                value.transpose(axes)
            )
    return params


def assert_parity(name, arrays, tolerance, dtype="float32"):
    """Logits, and for "training" the step, relative to the largest value of each array."""

    def close(ours, theirs, what):
        theirs = np.asarray(theirs)
        limit = tolerance * abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit, err_msg=f"{name}: {what}")

    net = model(name, dtype=dtype)
    params = tree(arrays, "w/")
    images = jnp.asarray(arrays["images"].astype(dtype) - 128)
    close(jax.jit(net.apply)({"params": params}, images)[0], arrays["logits"], "logits")
    if name != "training":
        return

    def loss_fn(params):
        logits, _ = net.apply({"params": params}, images, train=True)
        labels = jnp.asarray(arrays["labels"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(params)
    tx = make_optimizer(OptimSpec(bias_rate=2.0), steps_per_epoch=1, total_steps=1)
    updates, _ = tx.update(gradients, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    close(loss, arrays["loss"], "loss")
    expected = [("gradient", gradients, tree(arrays, "g/")), ("after", new, tree(arrays, "new/"))]
    if dtype == "float64":  # the change by itself, which float32 records would round away
        change = jax.tree.map(jnp.subtract, tree(arrays, "new/"), params)
        expected.append(("change", updates, change))
    for what, ours, theirs in expected:
        for path, leaf in jax.tree_util.tree_leaves_with_path(theirs):
            layer, kind = (key.key for key in path)
            close(ours[layer][kind], leaf, f"{what} of {layer} {kind}")


@pytest.mark.parametrize("name", MODELS)
def test_recorded(name):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        assert_parity(name, dict(arrays), tolerance=1e-4)


@pytest.fixture(scope="module")
def make_golden():
    pytest.importorskip("torch", reason="PyTorch is not installed: only its records are compared")
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", MODELS)
def test_live_in_double_precision(name, make_golden):
    """Other weights and images than the recorded ones."""
    with jax.enable_x64(True):
        assert_parity(name, make_golden.record(name, seed=100), tolerance=1e-10, dtype="float64")


@pytest.mark.parametrize("name", MODELS)
def test_records_are_what_the_script_makes(name, make_golden):
    arrays = make_golden.record(name, seed=list(make_golden.NETS).index(name))
    with np.load(GOLDEN / f"{name}.npz") as recorded:
        assert set(recorded) == set(arrays)
        for key, value in arrays.items():
            np.testing.assert_allclose(recorded[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
