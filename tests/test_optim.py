"""The update rule against hand computation, rates by step, the plateau, and what bad input gets."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.models.logged_runs import LOGGED_RUNS
from alexnet_jax.optim import (
    OptimSpec,
    check,
    init_plateau,
    make_optimizer,
    make_schedule,
    rate_change,
    unreached,
    update_plateau,
)
from alexnet_jax.records import saved_state
from alexnet_jax.step import TrainState

LAYERS = ("conv1", "conv2", "fc8")


def optimizer(steps_per_epoch=1, total_steps=100, **fields):
    return make_optimizer(
        OptimSpec(**fields), steps_per_epoch=steps_per_epoch, total_steps=total_steps
    )


def params_like(value, dtype=np.float32):
    return {
        layer: {"kernel": jnp.full((2, 3), value, dtype), "bias": jnp.full((3,), value, dtype)}
        for layer in LAYERS
    }


def train(tx, params, gradients, steps, **extra):
    """Params and optimizer state after each of `steps` jitted updates by the same gradients."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradients, state, params, **extra)
        return optax.apply_updates(params, updates), state

    history, state = [], tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
        history.append((params, state))
    return history


def kernels(history, layer="conv1", leaf="kernel"):
    return [float(params[layer][leaf].ravel()[0]) for params, _ in history]


# The fact sheet's check: w = 1, gradient 0.5, rates 0.01, 0.01, 0.001, 0.001.
PAPER = [0.994995000, 0.985485525, 0.976426505, 0.967772898]
OPTAX_SGD = [0.994995000, 0.985485525, 0.984129180, 0.982407977]


def test_the_papers_four_values_and_the_different_ones_of_optax_sgd():
    with jax.enable_x64(True):
        params, gradients = params_like(1.0, np.float64), params_like(0.5, np.float64)
        tx = optimizer(schedule="epochs", drop_epochs=(2,))
        ours = kernels(train(tx, params, gradients, 4))
        rate = optax.piecewise_constant_schedule(0.01, {2: 0.1})
        sgd = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))
        theirs = kernels(train(sgd, params, gradients, 4))
    assert np.round(ours, 9).tolist() == PAPER
    assert np.round(theirs, 9).tolist() == OPTAX_SGD


def test_equals_the_fact_sheets_optax_chain_on_random_gradients():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params, gradients = (
            jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params_like(0.0))
            for _ in range(2)
        )

        def named(name):
            return lambda tree: {layer: {k: k == name for k in tree[layer]} for layer in tree}

        rate = optax.piecewise_constant_schedule(0.01, {3: 0.1})
        chain = optax.chain(
            optax.add_decayed_weights(5e-4, mask=named("kernel")),
            optax.masked(optax.scale(2.0), named("bias")),
            optax.scale_by_learning_rate(rate),
            optax.trace(decay=0.9, nesterov=False),
        )
        ours = train(
            optimizer(bias_rate=2.0, schedule="epochs", drop_epochs=(3,)), params, gradients, 6
        )
        for (a, _), (b, _) in zip(ours, train(chain, params, gradients, 6), strict=True):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-13), a, b)


def test_float32_stays_float32():
    ((params, state),) = train(optimizer(), params_like(1.0), params_like(0.5), 1, lr_scale=1.0)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves((params, state))}
    assert dtypes == {"float32", "int32"}
    assert kernels([(params, state)]) == [pytest.approx(0.994995, rel=1e-7)]


def test_decay_is_on_kernels_only_and_by_layer():
    tx = optimizer(momentum=0.0, weight_decay=0.5, layer_decays=(("conv1", 0.0), ("fc8", 3.0)))
    history = train(tx, params_like(1.0), params_like(0.0), 1)
    assert [kernels(history, layer)[0] for layer in LAYERS] == pytest.approx([1, 0.995, 0.97])
    assert [kernels(history, layer, "bias")[0] for layer in LAYERS] == [1, 1, 1]


def test_bias_rate_multiplies_the_rate_of_biases():
    history = train(optimizer(bias_rate=2.0), params_like(0.0), params_like(1.0), 1)
    assert kernels(history)[0] == pytest.approx(-0.01)
    assert kernels(history, leaf="bias")[0] == pytest.approx(-0.02)


def applied_rates(leaf, layer="conv1", steps=8, lr_scale=1.0, **fields):
    """The rate of each step, read off plain gradient descent."""
    tx = optimizer(momentum=0.0, weight_decay=0.0, total_steps=steps, **fields)
    history = train(tx, params_like(0.0), params_like(1.0), steps, lr_scale=np.float32(lr_scale))
    return -np.diff([0.0, *kernels(history, layer, leaf)])


def test_biases_follow_the_kernels_or_their_own_drops():
    source = {"schedule": "dexp", "bias_rate": 2.0}
    dexp = np.repeat([0.01, 0.00158740, 0.000251984, 0.00004], 2)
    own = source | {"bias_schedule": "epochs", "bias_drop_epochs": (4,)}
    np.testing.assert_allclose(applied_rates("kernel", **own), dexp, rtol=1e-3)
    np.testing.assert_allclose(applied_rates("bias", **own), [0.02] * 4 + [0.002] * 4, rtol=1e-3)
    np.testing.assert_allclose(applied_rates("bias", **source), 2 * dexp, rtol=1e-3)


def test_the_plateaus_scale_reaches_kernels_and_the_biases_that_follow_them():
    scaled = {"steps": 1, "lr_scale": 0.1, "schedule": "plateau"}
    assert applied_rates("kernel", **scaled) == pytest.approx([0.001])
    assert applied_rates("bias", **scaled) == pytest.approx([0.001])
    assert applied_rates("bias", bias_schedule="epochs", **scaled) == pytest.approx([0.01])


def test_layer_rates_hold_from_their_epoch():
    fields = {"steps": 6, "steps_per_epoch": 2, "layer_rates": (("conv1", 4, 0), ("conv1", 0.5, 2))}
    for leaf in ("kernel", "bias"):
        rates = applied_rates(leaf, **fields)
        np.testing.assert_allclose(rates, [0.04] * 4 + [0.005] * 2, rtol=1e-4)
        np.testing.assert_allclose(applied_rates(leaf, "conv2", **fields), [0.01] * 6, rtol=1e-4)


def test_a_frozen_layer_keeps_every_bit_and_the_others_move():
    tx = optimizer(steps_per_epoch=2, layer_rates=(("conv1", 0.1, 1), ("conv1", 0.0, 2)))
    history = train(tx, params_like(1.0), params_like(0.5), 7)
    velocities = [optax.tree.get(state, "trace") for _, state in history]
    for (before, after), (v_before, v_after) in zip(
        itertools.pairwise(history),
        itertools.pairwise(velocities),
        strict=True,
    ):
        frozen = int(optax.tree.get(before[1], "count")) >= 4
        for leaf in ("kernel", "bias"):
            for old, new in ((before[0], after[0]), (v_before, v_after)):
                assert np.array_equal(old["conv1"][leaf], new["conv1"][leaf]) == frozen
                assert not np.array_equal(old["conv2"][leaf], new["conv2"][leaf])
    assert np.all(velocities[-1]["conv1"]["kernel"] != 0)


def test_a_frozen_layer_ignores_bad_gradients():
    tx = optimizer(layer_rates=(("conv1", 0.0, 0),))
    gradients = params_like(0.5) | {
        "conv1": jax.tree.map(lambda x: x * np.nan, params_like(1)["fc8"])
    }
    ((params, _),) = train(tx, params_like(1.0), gradients, 1)
    assert np.all(params["conv1"]["kernel"] == 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {0: 0.01, 99: 0.01}),
        ({"schedule": "plateau", "drop_epochs": (1,)}, {0: 0.01, 99: 0.01}),
        (
            {"schedule": "epochs", "drop_epochs": (2, 4.5)},
            {0: 0.01, 19: 0.01, 20: 0.001, 44: 0.001, 45: 0.0001, 99: 0.0001},
        ),
        (
            {"schedule": "epochs", "drop_epochs": (5,), "drop_factor": 4.0, "learning_rate": 1.0},
            {49: 1.0, 50: 0.25},
        ),
        (
            {"schedule": "dexp"},
            {
                0: 0.01,
                24: 0.01,
                25: 0.00158740,
                49: 0.00158740,
                50: 0.000251984,
                75: 4e-5,
                99: 4e-5,
            },
        ),
        (
            {"schedule": "dexp", "dexp_stages": 3, "dexp_factor": 100},
            {33: 0.01, 34: 0.001, 67: 1e-4},
        ),
        ({"warmup_epochs": 2}, {0: 0.0005, 9: 0.005, 19: 0.01, 20: 0.01}),
        (
            {"warmup_epochs": 0.5, "schedule": "epochs", "drop_epochs": (3,)},
            {0: 0.002, 4: 0.01, 29: 0.01, 30: 0.001},
        ),
    ],
)
def test_rate_by_step(fields, expected):
    schedule = make_schedule(OptimSpec(**fields), steps_per_epoch=10, total_steps=100)
    got = {step: float(schedule(step)) for step in expected}
    assert got == pytest.approx(expected, rel=3e-6)


def test_logged_runs_change_rates_where_the_source_logged_it():
    for run in LOGGED_RUNS.values():
        spec = OptimSpec(**run["optim"])
        check(spec, LAYERS)
        assert unreached(spec, run["num_epochs"]) == []
    run = LOGGED_RUNS["145"]
    assert (run["noise_until_epoch"], run["num_epochs"]) == (67, 91)
    stretches = [(25, 1e-2), (26, 1e-3), (16, 1e-4), (5, 1e-5), (19, 0.0)]
    conv1 = np.concatenate([[rate] * epochs for epochs, rate in stretches])
    stretches = [(25, 1e-2), (26, 1e-3), (28, 1e-4), (12, 1e-5)]
    rest = np.concatenate([[rate] * epochs for epochs, rate in stretches])
    rates = {"steps": 91, **run["optim"]}
    np.testing.assert_allclose(applied_rates("kernel", "conv1", **rates), conv1, rtol=1e-2)
    np.testing.assert_allclose(applied_rates("kernel", "fc8", **rates), rest, rtol=1e-2)
    np.testing.assert_allclose(applied_rates("bias", "fc8", **rates), 0.02, rtol=1e-2)


def test_lars_first_step_by_hand():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        params, gradients = (
            jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params_like(0.0))
            for _ in range(2)
        )
        tx = optimizer(optimizer="lars", learning_rate=2.0, weight_decay=0.1, bias_rate=2.0)
        ((after, _),) = train(tx, params, gradients, 1)
        w, g = (np.asarray(tree["conv2"]["kernel"]) for tree in (params, gradients))
        decayed = g + 0.1 * w
        trust = 0.001 * np.sqrt((w**2).sum()) / np.sqrt((decayed**2).sum())
        np.testing.assert_allclose(after["conv2"]["kernel"], w - 2.0 * trust * decayed, rtol=1e-12)
        b, g = (np.asarray(tree["conv2"]["bias"]) for tree in (params, gradients))
        np.testing.assert_allclose(after["conv2"]["bias"], b - 2.0 * 2.0 * g, rtol=1e-12)


def test_state_is_one_counter_and_a_velocity_that_takes_the_params_shardings():
    for name in ("momentum", "lars"):
        tx, params = optimizer(optimizer=name), params_like(1.0)
        state = jax.eval_shape(tx.init, params)
        assert len(jax.tree.leaves(state)) == 1 + len(jax.tree.leaves(params))
        specs = jax.tree.map(lambda x: jax.P(*[None] * (x.ndim - 1), "model"), params)
        placed = optax.tree.map_params(
            tx, lambda _, spec: spec, state, specs, transform_non_params=lambda _: jax.P()
        )
        assert optax.tree.get(placed, "trace") == specs
        assert optax.tree.get(placed, "count") == jax.P()


@pytest.mark.parametrize(("name", "place"), [("momentum", 1), ("lars", 2)])
def test_checkpoints_keep_the_state_by_the_names_that_it_always_had(name, place):
    tx, params = optimizer(optimizer=name), params_like(1.0)
    state = TrainState(1, params, tx.init(params), init_plateau(), 0, {}, {}, nonfinite=3)
    saved = saved_state.to_saved(state)
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(saved["opt_state"])[0]
    ]
    velocity = [
        f"{place}/velocity/{layer}/{leaf}" for layer in LAYERS for leaf in ("bias", "kernel")
    ]
    assert sorted(paths) == sorted([f"{place}/count", *velocity])
    assert saved["params"] == {}
    assert "nonfinite" not in saved


def run_plateau(errors, state=None, **fields):
    state = init_plateau() if state is None else state
    history = []
    for error in errors:
        state = update_plateau(state, error, OptimSpec(schedule="plateau", **fields))
        history.append(state)
    return history


@pytest.mark.parametrize(
    ("fields", "errors", "scales"),
    [
        ({"patience_epochs": 2}, [50, 40, 40, 40, 39, 39, 39], [1, 1, 1, 0.1, 0.1, 0.1, 0.01]),
        ({"patience_epochs": 2}, [50, 51, 49, 50, 48, 50, 47], [1] * 7),
        ({"patience_epochs": 2}, [50] * 6, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"patience_epochs": 1}, [41.7, 41.69, 41.68], [1, 1, 1]),
        ({"patience_epochs": 1}, [50] * 6, [1, 0.1, 0.01, 0.001, 0.001, 0.001]),
        ({"patience_epochs": 1, "max_drops": 1}, [50] * 4, [1, 0.1, 0.1, 0.1]),
        ({"patience_epochs": 2, "min_delta": 0.5}, [50, 49.8, 49.6, 49], [1, 1, 0.1, 0.1]),
        ({"patience_epochs": 1, "drop_factor": 2.0}, [50, float("nan"), 49], [1, 0.5, 0.5]),
    ],
)
def test_plateau(fields, errors, scales):
    got = [state.scale for state in run_plateau(errors, **fields)]
    assert got == [np.float32(scale) for scale in scales]


def test_plateau_goes_on_exactly_from_a_checkpoint(tmp_path):
    errors = [42.1, 41.7, 41.9, 41.8, 41.7, 41.70001, 40.3, 40.5, 40.4, 40.4, 41.0, 41.0]
    whole = run_plateau(errors, patience_epochs=2)
    assert whole[-1].drops == 3
    for i, state in enumerate(whole[:-1]):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / str(i), state)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / str(i), init_plateau())
        rest = run_plateau(errors[i + 1 :], restored, patience_epochs=2)
        assert rest == whole[i + 1 :]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"optimizer": "momentun"},
            "optim.optimizer 'momentun' is unknown: did you mean 'momentum'",
        ),
        ({"schedule": "plateu"}, "did you mean 'plateau'"),
        ({"schedule": "7"}, "known: constant, dexp, epochs, plateau"),
        ({"bias_schedule": "weight"}, "did you mean 'weights'"),
        ({"learning_rate": -0.1}, "optim.learning_rate is -0.1: it must be 0 or more"),
        ({"learning_rate": float("nan")}, "optim.learning_rate is nan"),
        ({"drop_factor": 0.1}, "optim.drop_factor is 0.1: it must be 1 or more"),
        ({"dexp_stages": 1}, "optim.dexp_stages is 1: it must be 2 or more"),
        ({"momentum": 1.0}, "optim.momentum is 1.0"),
        ({"schedule": "epochs"}, "epochs of its drops in drop_epochs"),
        ({"schedule": "epochs", "drop_epochs": (20, -1)}, "optim.drop_epochs: -1 is not an epoch"),
        ({"schedule": "epochs", "drop_epochs": (50, 20)}, "(50, 20): the epochs must increase"),
        ({"schedule": "epochs", "drop_epochs": ("20",)}, "'20' is not an epoch"),
        ({"bias_schedule": "epochs", "bias_drop_epochs": (math.nan,)}, "nan is not an epoch"),
        ({"warmup_epochs": math.inf}, "optim.warmup_epochs: inf is not an epoch"),
        ({"layer_rates": (("conv9", 0.1, 3),)}, "layer in optim.layer_rates 'conv9' is unknown"),
        ({"layer_rates": (("conf2", 0.1, 3),)}, "did you mean 'conv2'"),
        ({"layer_rates": (("conv1", -1, 3),)}, "multiplier must be 0 or more"),
        ({"layer_rates": ("conv1", 0.1, 3)}, "'conv1': write (layer, multiplier, from_epoch)"),
        ({"layer_rates": (("conv1", 0.1, -9),)}, "optim.layer_rates of conv1: -9 is not an epoch"),
        ({"layer_rates": (("conv1", 0.1, 9), ("conv1", 0, 8))}, "the epochs must increase"),
        ({"layer_decays": (("fc10", 3.0),)}, "layer in optim.layer_decays 'fc10' is unknown"),
        ({"layer_decays": (("fc8", "3"),)}, "weight_decay must be 0 or more"),
    ],
)
def test_bad_specs_get_one_line(fields, line):
    with pytest.raises(UserError) as error:
        check(OptimSpec(**fields), LAYERS)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_good_specs_pass_and_fields_of_other_schedules_do_not_matter():
    check(OptimSpec(), LAYERS)
    check(OptimSpec(schedule="plateau", drop_epochs=(95,)), LAYERS)
    rates = (("conv1", 0.1, 3), ("conv2", 0.1, 2), ("conv1", 0.0, 4))
    check(OptimSpec(layer_rates=rates, layer_decays=(("fc8", 3.0),)), LAYERS)


def test_what_lies_beyond_the_end_is_listed_and_changes_nothing():
    spec = OptimSpec(
        **{"schedule": "epochs", "drop_epochs": (1, 2, 1e300)},
        **{"bias_schedule": "epochs", "bias_drop_epochs": (1.5,)},
        layer_rates=(("conv1", 0.1, 1), ("conv1", 0.0, 7)),
    )
    assert unreached(spec, 2) == [
        "optim.drop_epochs at 2, 1e+300",
        "optim.layer_rates of conv1 at 7",
    ]
    schedule = make_schedule(spec, steps_per_epoch=10, total_steps=20)
    assert [round(float(schedule(step)), 6) for step in (9, 10, 19)] == [0.01, 0.001, 0.001]


def test_another_length_changes_the_rate_of_dexp_alone():
    spec = OptimSpec(schedule="dexp", dexp_factor=64, learning_rate=0.64, warmup_epochs=1)
    change = functools.partial(rate_change, spec, steps_per_epoch=10, total_steps=(40, 80))
    assert change(start=4) == (10, pytest.approx(0.16), pytest.approx(0.64))
    assert change(start=40) == (40, pytest.approx(0.01), pytest.approx(0.04))
    assert rate_change(spec, steps_per_epoch=10, total_steps=(40, 40), start=4) is None
    for other in ("constant", "plateau"):
        fields = dataclasses.replace(spec, schedule=other)
        assert rate_change(fields, steps_per_epoch=10, total_steps=(40, 80), start=4) is None
