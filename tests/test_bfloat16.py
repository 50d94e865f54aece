"""A run in bfloat16, which is one field: what stays float32, resumed, evaluated and handed out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import export
from alexnet_jax.assemble import assemble
from alexnet_jax.bench.common import first_batch
from alexnet_jax.config import load_config, override
from alexnet_jax.evaluate import evaluate, load_run
from alexnet_jax.train import train
from alexnet_jax.trained.pretrained import open_pretrained
from tests import tiny


def config(trained, **fields):
    return override(load_config(trained.config_file), {"model.dtype": "bfloat16", **fields})


@pytest.fixture(scope="module")
def run_in_bfloat16(trained, tmp_path_factory):
    """Stopped in mid-epoch, gone on, and ended."""
    workdir = tmp_path_factory.mktemp("bfloat16") / "run"
    assert train(config(trained, num_train_steps=7), workdir) == 0
    assert train(config(trained), workdir) == 0
    return workdir


def test_a_run_that_goes_on_equals_one_that_was_not_stopped(trained, run_in_bfloat16, tmp_path):
    assert train(config(trained), tmp_path / "whole") == 0
    ended = [
        [line for line in tiny.lines(workdir) if line["step"] > 8]
        for workdir in (run_in_bfloat16, tmp_path / "whole")
    ]
    assert ended[0] == ended[1]
    (_, params, _), (_, whole, _) = (
        load_run(workdir, 15) for workdir in (run_in_bfloat16, tmp_path / "whole")
    )
    jax.tree.map(np.testing.assert_array_equal, params, whole)


def test_it_learns_as_in_float32(trained, run_in_bfloat16):
    ours, theirs = (tiny.lines(each) for each in (run_in_bfloat16, trained.workdir))
    assert ours != theirs
    losses = {line["step"]: line["loss"] for line in theirs if line["split"] == "train"}
    for line in ours:
        if line["split"] == "train" and line["step"] in losses:
            assert line["loss"] == pytest.approx(losses[line["step"]], rel=0.05)


def test_the_convolutions_alone_are_narrow(trained):
    """Parameters, velocities, loss, gradients and the update are float32; the maps bfloat16."""
    run = assemble(config(trained))
    state, batch = run.abstract_state(), first_batch(run)
    narrow = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.bfloat16]
    assert not narrow
    program = run.train_step.lower(state, batch).as_text()
    convolutions = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("bf16>" in line for line in convolutions)
    exponentials = [line for line in program.splitlines() if "stablehlo.exponential" in line]
    assert exponentials  # the loss
    assert not [line for line in exponentials if "bf16" in line]
    updated = jax.eval_shape(run.train_step, state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} & {jnp.dtype(jnp.bfloat16)} == set()


def test_evaluated_it_has_its_errors(run_in_bfloat16):
    run, params, _ = load_run(run_in_bfloat16, 15)
    recorded = json.loads((run_in_bfloat16 / "result.json").read_text())["final"]
    found = evaluate(run, params)
    assert found["top1_error"] == pytest.approx(recorded["top1_error"])
    assert found["loss"] == pytest.approx(recorded["loss"], rel=1e-3)


def test_handed_out_it_gives_the_same_logits(run_in_bfloat16, tmp_path):
    net = open_pretrained(run_in_bfloat16)
    size = net.recipe.image_size
    images = np.random.default_rng(0).normal(0, 2, (3, size, size, 3)).astype(np.float32)
    expected = np.asarray(net.model.apply({"params": net.params}, images)[0])
    export.export(run_in_bfloat16, "stablehlo", tmp_path / "net.bin", "float32")
    function = jax.export.deserialize(bytearray((tmp_path / "net.bin").read_bytes()))
    logits = np.asarray(function.call(images))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-2 * np.abs(expected).max())
    export.export(run_in_bfloat16, "safetensors", tmp_path / "net.safetensors")
    again = open_pretrained(tmp_path / "net.safetensors")
    assert again.model.dtype == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, again.params, net.params)
