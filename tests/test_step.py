"""One training step is the same on every mesh and in every layout, dropout on."""

import jax
import numpy as np
import pytest

from alexnet_jax import models, optim
from alexnet_jax.parallel import MeshSpec, make_layout
from alexnet_jax.preprocess import Preprocess
from alexnet_jax.step import classification_sums, init_state, make_predict, make_train_step
from tests import tiny

SIZE, BATCH, CLASSES = 32, 16, 10
# Float64 for the exact comparison: images split over all, two towers in pairs, dense layers in
# fours. Every other mesh is one of these with fewer devices.
LAYOUTS = [("data", 4, 2), ("towers", 4, 2), ("hybrid", 2, 4)]


def small_net(classes=CLASSES, dtype="float32"):
    return models.create(
        "alexnet",
        num_classes=classes,
        width=1 / 16,
        conv1_kernel=5,
        conv1_stride=1,
        conv1_padding=(2, 2),
        kernel_init="he",
        dtype=dtype,
    )


def batches(layout, steps, classes=CLASSES):
    for step in range(steps):
        rng = np.random.default_rng(step)
        crops = np.stack(
            [rng.integers(0, 5, BATCH), rng.integers(0, 5, BATCH), rng.integers(0, 2, BATCH)], 1
        )
        batch = {
            "images": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
            "labels": rng.integers(0, classes, BATCH).astype(np.int32),
            "crops": crops.astype(np.int32),
            "mask": (np.arange(BATCH) < BATCH - step).astype(np.float32),
            "ids": np.arange(BATCH, dtype=np.int32),
        }
        yield jax.device_put(batch, layout.batch_shardings())


def train(
    name, data, model_axis, *, steps=3, classes=CLASSES, dtype="float32", predict=True, **mesh
):
    """Losses, final parameters and, with `predict`, the last batch's probabilities of a few steps.

    With colour noise, mean image and dropout.
    """
    model = small_net(classes, dtype)
    layout = make_layout(MeshSpec(name, data, model_axis, **mesh), towers=2, batch_size=BATCH)
    length = {"steps_per_epoch": 10, "total_steps": 100}
    tx = optim.make_optimizer(optim.OptimSpec(learning_rate=0.01, bias_rate=2.0), **length)
    mean = np.random.default_rng(9).uniform(80, 140, (SIZE + 4, SIZE + 4, 3))
    prep = Preprocess(mean, mean_under_crop=True, scale=1 / 64, noise_axes=np.diag([3.0, 5.0, 7.0]))
    state = fresh_state(model, tx)
    state = jax.device_put(state, layout.state_shardings(state))
    step = tiny.jit(make_train_step(model, tx, layout, prep))
    losses = []
    for batch in batches(layout, steps, classes):
        state, sums = step(state, batch)
        losses.append(float(sums["loss"] / sums["count"]))
    if not predict:
        return losses, jax.device_get(state.params), None
    batch["images"], batch["crops"] = batch["images"][:, None], batch["crops"][:, None]
    probs = tiny.jit(make_predict(model, layout, prep))(state.params, batch)
    return losses, jax.device_get(state.params), np.exp(np.asarray(probs))


def fresh_state(model, tx):
    """A first state; only what isn't a parameter is compiled."""
    params = jax.eval_shape(lambda: init_state(model, tx, 0, SIZE)).params
    rest = jax.jit(lambda: init_state(model, tx, 0, SIZE).replace(params=None))()
    return rest.replace(params=tiny.he_weights(params))


def assert_close(params, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), params, expected
    )


@pytest.fixture(scope="module")
def on_one_device():
    return train("data", 1, 1)


def test_a_layout_agrees_with_one_device_in_float32(on_one_device):
    """The others train whole runs in test_train.py and test_processes.py."""
    losses, _, probs = train("hybrid", 4, 2)
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-4)
    np.testing.assert_allclose(probs, on_one_device[2], atol=1e-3)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)


def test_gradients_summed_in_bfloat16_are_the_same_to_its_precision(on_one_device):
    fields = {"shard_dense": True, "reduce_dtype": "bfloat16"}
    losses, params, _ = train("data", 8, 1, predict=False, **fields)
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-2)
    moved, expected = (params["fc8"]["kernel"], on_one_device[1]["fc8"]["kernel"])
    assert np.abs(moved - expected).max() > 0
    np.testing.assert_allclose(moved, expected, atol=0.02 * np.abs(expected).max())


@pytest.fixture(scope="module")
def on_one_device_in_float64():
    with jax.enable_x64(True):
        return train("data", 1, 1, dtype="float64")


@pytest.mark.parametrize(
    ("name", "data", "model_axis", "shard_dense"),
    [*((*layout, False) for layout in LAYOUTS), ("data", 8, 1, True), ("hybrid", 2, 4, True)],
)
def test_layouts_agree_in_float64(on_one_device_in_float64, name, data, model_axis, shard_dense):
    alone = on_one_device_in_float64
    with jax.enable_x64(True):
        found = train(name, data, model_axis, dtype="float64", shard_dense=shard_dense)
    losses, params, probs = found
    np.testing.assert_allclose(losses, alone[0], rtol=1e-10)
    assert_close(params, alone[1])
    np.testing.assert_allclose(probs, alone[2], rtol=0, atol=1e-9)


def test_an_odd_number_of_classes_is_no_obstacle():
    """fc8 can't be split then, and is computed whole on each device."""
    with jax.enable_x64(True):
        options = {"classes": 7, "dtype": "float64", "steps": 2, "predict": False}
        alone = train("data", 1, 1, **options)
        for name in ("towers", "hybrid"):
            losses, params, _ = train(name, 2, 2, **options)
            np.testing.assert_allclose(losses, alone[0], rtol=1e-10)
            assert_close(params, alone[1])


def test_sums_count_ranks_and_leave_padding_out():
    logits = np.float32(
        [
            [9, 1, 2, 3, 4, 5, 6],  # label first: in both
            [9, 8, 7, 6, 5, 4, 3],  # label fifth: in top 5
            [9, 8, 7, 6, 5, 4, 3],  # label sixth: in neither
            [9, 1, 2, 3, 4, 5, 6],  # padding
        ]
    )
    sums = classification_sums(logits, np.int32([0, 4, 5, 0]), np.float32([1, 1, 1, 0]))
    assert {name: float(value) for name, value in sums.items() if name != "loss"} == {
        "top1": 1,
        "top5": 2,
        "count": 3,
    }
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert float(sums["loss"]) == pytest.approx(
        -(log_probs[0, 0] + log_probs[1, 4] + log_probs[2, 5]), rel=1e-6
    )


def test_equal_logits_are_right_no_more_often_than_chance():
    sums = classification_sums(np.zeros((10, 10), np.float32), np.arange(10), np.ones(10))
    assert float(sums["top1"]) == 1
    assert float(sums["top5"]) == 5


def test_a_net_that_answers_nan_is_wrong():
    sums = classification_sums(np.full((3, 10), np.nan, np.float32), np.arange(3), np.ones(3))
    assert float(sums["top1"]) == float(sums["top5"]) == 0


def test_a_step_is_dropped_for_a_gradient_that_overflows_in_one_row():
    """The row's feature is huge and its weights are zero: the loss and the rest are finite."""
    huge = models.Stateless("huge", lambda x: x.at[:, 1, 1, 0].set(1e30))
    layers = (models.Conv("conv1", 2, 3, then=(huge,)), models.Dense("fc2"))
    model = models.create("alexnet", layers=layers, num_classes=CLASSES, towers=1)
    layout = make_layout(MeshSpec("data", 1, 1), towers=1, batch_size=BATCH)
    length = {"steps_per_epoch": 10, "total_steps": 100}
    tx = optim.make_optimizer(optim.OptimSpec(weight_decay=0.0), **length)
    state = fresh_state(model, tx)
    kernel = state.params["fc2"]["kernel"]
    row = (SIZE - 2 + 1) * 2
    state.params["fc2"]["kernel"] = kernel.at[row].set(0)
    step = jax.jit(make_train_step(model, tx, layout, Preprocess(np.zeros(3), scale=1 / 64)))
    after, sums = step(state, next(batches(layout, 1)))
    assert np.isfinite(sums["loss"])
    assert not sums["finite"]
    assert int(after.nonfinite) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
