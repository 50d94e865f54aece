"""Whole runs: training, resuming, evaluating, and what mistakes get."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax.assemble import assemble
from alexnet_jax.config import load_config, override
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import evaluate, load_run
from alexnet_jax.records import restore
from alexnet_jax.step import init_state
from alexnet_jax.train import train
from tests import tiny

STEPS = 15  # of 80 images in batches of 16, three epochs


@pytest.fixture(scope="module")
def config_file(trained):
    return trained.config_file


def load(config_file, **changes):
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    return override(load_config(config_file), fields)


@pytest.fixture(scope="module")
def whole_run(trained):
    """A run that nothing disturbs."""
    return trained.workdir


def final_params(workdir):
    path = workdir / "checkpoints"
    step = max(int(each.name) for each in path.iterdir() if each.name.isdigit())
    _, params, _ = load_run(workdir, step)
    return jax.device_get(params)


def assert_same_run(workdir, whole_run):
    assert tiny.lines(workdir) == tiny.lines(whole_run)
    jax.tree.map(np.testing.assert_array_equal, final_params(workdir), final_params(whole_run))
    results = [json.loads((each / "result.json").read_text()) for each in (workdir, whole_run)]
    assert results[0]["final"] == results[1]["final"]
    assert results[0]["best"] == results[1]["best"]


def test_the_initial_state_is_that_of_the_seed(config_file):
    """One program, compiled less than others, makes it for all seeds."""
    run = assemble(load(config_file, seed=7))
    size = run.config.data.image_size
    want = tiny.jit(lambda: init_state(run.model, run.tx, 7, size))()
    got = run.fresh_state()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got.params, want.params)
    assert got.key == want.key


def test_what_a_work_directory_holds(whole_run):
    assert {"config.json", "checkpoints", "metrics.jsonl", "result.json"} <= {
        path.name for path in whole_run.iterdir()
    }
    assert list(whole_run.glob("events.out.tfevents*"))
    steps = sorted(int(p.name) for p in (whole_run / "checkpoints").iterdir() if p.name.isdigit())
    assert steps == [5, 10, 15]

    result = json.loads((whole_run / "result.json").read_text())
    for name in ("final", "best"):
        assert {"step", "loss", "top1_error", "top5_error"} <= result[name].keys()
    assert result["final"]["step"] == STEPS
    assert result["epochs"] == 3
    assert result["seed"] == 0
    assert result["images_per_second"] > 0
    assert result["hardware"]["device_count"] >= 1
    assert "jax" in result["versions"]

    config = json.loads((whole_run / "config.json").read_text())
    assert config["model"]["towers"] == 2  # the preset's, resolved
    assert config["model"]["num_classes"] == 4


def test_metrics_have_each_step_and_split_once(whole_run):
    lines = tiny.lines(whole_run)
    keys = [(line["step"], line["split"]) for line in lines]
    assert sorted(keys) == sorted(
        [(step, "train") for step in (2, 4, 6, 8, 10, 12, 14, 15)]
        + [(step, "test") for step in (5, 10, 15)]
    )
    for line in lines:
        assert {"epoch", "loss", "top1_error", "top5_error"} <= line.keys()
        assert 0 <= line["top5_error"] <= line["top1_error"] <= 100


def test_it_learns(whole_run):
    """Four photographs: chance is 75%."""
    result = json.loads((whole_run / "result.json").read_text())
    assert result["best"]["top1_error"] < 50


def test_a_run_in_two_halves_equals_one(config_file, whole_run, tmp_path):
    """The first half ends in the middle of an epoch, between two logged steps."""
    assert train(load(config_file, num_train_steps=7), tmp_path / "run") == 0
    assert train(load(config_file), tmp_path / "run") == 0
    halves = [line for line in tiny.lines(tmp_path / "run") if line["step"] != 7]
    whole = tiny.lines(whole_run)
    assert [line for line in halves if line["step"] > 8] == [
        line for line in whole if line["step"] > 8
    ]
    jax.tree.map(
        np.testing.assert_array_equal, final_params(tmp_path / "run"), final_params(whole_run)
    )


def test_only_ends_of_epochs_count_for_the_plateau(config_file, whole_run, tmp_path):
    """Stopped in the middle of an epoch, with evaluations at other steps before and none after."""
    plateau = {"optim__patience_epochs": 1, "optim__min_delta": 100.0}  # none is good enough
    often = load(config_file, **plateau, eval_every_steps=1, num_train_steps=7)
    assert train(often, tmp_path / "run") == 0
    assert train(load(config_file, **plateau, eval_every_steps=-1), tmp_path / "run") == 0
    assert [line["step"] for line in tiny.lines(tmp_path / "run", split="test")] == [
        *range(1, 8),
        *(10, 15),
    ]
    logged = tiny.lines(tmp_path / "run", split="train")
    for line in logged:
        assert line["learning_rate"] == pytest.approx(0.01 if line["step"] <= 10 else 0.001)
    until = [line for line in logged if line["step"] <= 10 and line["step"] != 7]
    assert until == [line for line in tiny.lines(whole_run, split="train") if line["step"] <= 10]


def test_the_best_is_saved_when_it_is_found(config_file, tmp_path, capsys):
    """Between the saves, which keep one; the error of this net is not lowest at the end."""
    cadences = {"eval_every_steps": 2, "checkpoint_every_steps": 100, "keep_checkpoints": 1}
    assert train(load(config_file, **cadences), tmp_path / "kept") == 0
    best = json.loads((tmp_path / "kept/result.json").read_text())["best"]
    assert best["kept"]
    assert best["step"] < STEPS
    run, params, step = load_run(tmp_path / "kept")
    assert step == best["step"]
    assert evaluate(run, params)["top1_error"] == pytest.approx(best["top1_error"])

    never = load(config_file, **cadences | {"checkpoint_every_steps": -1})
    assert train(never, tmp_path / "last") == 0
    unkept = json.loads((tmp_path / "last/result.json").read_text())["best"]
    assert unkept == best | {"kept": False}
    said = f"no checkpoint of step {best['step']} is kept as the best: evaluate and classify take"
    assert f"{said} step {STEPS}" in capsys.readouterr().out


def test_a_finished_run_started_again_stays_as_it_is(config_file, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    before = contents(tmp_path / "run")
    assert train(load(config_file), tmp_path / "run") == 0
    assert contents(tmp_path / "run") == before
    with pytest.raises(UserError, match="has made 15 steps, and was asked to end after 10: raise"):
        train(load(config_file, num_epochs=2), tmp_path / "run")
    assert contents(tmp_path / "run") == before
    # Nor is it made anew, and overwritten, where its checkpoints were removed.
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "checkpoints")
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match="holds the result of a run but no checkpoint"):
        train(load(config_file), tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_short_run_says_what_it_does_not_reach_and_a_longer_one_what_changes(
    config_file, tmp_path, capsys
):
    config = load(
        config_file,
        num_epochs=1,
        log_every_steps=100,
        optim__layer_rates=(("conv1", 0.1, 2.0),),
        optim__schedule="dexp",
        optim__dexp_factor=64.0,
        optim__drop_epochs=(1.0,),
    )
    assert train(config, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "after 1 epoch: what is set for later is left out (optim.layer_rates of conv1 at 2)" in (
        said
    )
    assert "optim.drop_epochs has no effect, because optim.schedule is 'dexp'" in said
    assert " 0 images/s" not in said
    assert "top-5" not in said  # of four classes
    assert [line["step"] for line in tiny.lines(tmp_path / "run", split="train")] == [5]

    config = override(config, {"num_epochs": 4, "num_train_steps": 10})
    first = (tmp_path / "run" / "result.json").read_bytes()
    assert train(config, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "the learning rate of optim.schedule='dexp' changes: from step 6 on it is" in said
    assert "instead of 0.0001562" in said
    assert "; drops of optim.schedule='dexp' after steps 10, 15)" in said
    # The first result isn't that of the longer run, of which there was none until its end.
    assert (tmp_path / "run" / "result-5.json").read_bytes() == first
    assert json.loads((tmp_path / "run" / "result.json").read_text())["final"]["step"] == 10


def test_both_backends_give_the_same_run(config_file, whole_run, tmp_path):
    assert train(load(config_file, data__backend="tfdata"), tmp_path / "run") == 0
    assert tiny.lines(tmp_path / "run") == tiny.lines(whole_run)


def test_on_eight_devices_and_resumed_on_others_in_another_layout(config_file, whole_run, tmp_path):
    """The whole run has one device."""
    assert train(load(config_file, mesh__data=8, num_train_steps=10), tmp_path / "run") == 0
    changes = {"mesh__layout": "towers", "mesh__data": 2, "mesh__model": 2}
    assert train(load(config_file, **changes), tmp_path / "run") == 0
    ours, whole = tiny.lines(tmp_path / "run"), tiny.lines(whole_run)
    assert ours[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-4)
    assert ours[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-3)


def test_evaluation_counts_every_example_once_at_any_batch_size(whole_run):
    """36 test images: the last batch of 16 is mostly padding."""
    run, params, _ = load_run(whole_run, STEPS)
    result = evaluate(run, params)
    assert result["count"] == 36
    recorded = json.loads((whole_run / "result.json").read_text())["final"]
    assert result["loss"] == pytest.approx(recorded["loss"], rel=1e-5)
    assert result["top1_error"] == pytest.approx(recorded["top1_error"])


def test_evaluate_command_takes_the_best_checkpoint(whole_run, tmp_path):
    done = tiny.command(
        *("alexnet_jax.evaluate", f"--workdir={whole_run}", "--per_class"),
        f"--json={tmp_path / 'out.json'}",
    )
    assert done.returncode == 0, done.stderr
    best = json.loads((whole_run / "result.json").read_text())["best"]
    assert f"top-1 error {best['top1_error']:.2f}%" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())[0]["count"] == 36
    table = whole_run / "per_class" / f"test-step{best['step']}-1views.csv"
    assert f"{table} and {table.with_suffix('.png')}" in done.stdout
    with Image.open(table.with_suffix(".png")) as picture:
        assert min(picture.size) > 300
    rows = list(csv.DictReader(table.open()))
    assert [row["class"] for row in rows] == ["astronaut", "coffee", "gravel", "rocket"]
    errors = [float(row["top1_error"]) for row in rows]
    assert np.mean(errors) == pytest.approx(best["top1_error"], abs=1e-3)  # nine of each class
    for row, error in zip(rows, errors, strict=True):
        right = int(row[f"taken for {row['class']}"])
        assert error == pytest.approx(100 * (1 - right / 9), abs=1e-3)
        assert f"{error:.2f}%" in next(x for x in done.stdout.splitlines() if row["class"] in x)


def test_evaluation_that_misses_examples_is_an_error(whole_run, monkeypatch):
    from alexnet_jax import data

    run, params, _ = load_run(whole_run, STEPS)
    whole = data.eval_batches
    monkeypatch.setattr(data, "eval_batches", lambda *a, **k: list(whole(*a, **k))[:-1])
    with pytest.raises(RuntimeError, match="evaluated 32 of 36"):
        evaluate(run, params)
    monkeypatch.undo()
    run.data.bad["test"] = dict.fromkeys(range(36), "rocket/08.png: truncated")
    with pytest.raises(UserError, match=r"no image of split 'test' can be decoded.*08\.png"):
        evaluate(run, params)


def contents(workdir):
    return {
        path: path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_another_configuration_is_refused_and_nothing_touched(config_file, whole_run):
    before = contents(whole_run)
    with pytest.raises(UserError, match=r"batch_size \(was 16, now 8\).*model.dropout"):
        train(load(config_file, batch_size=8, model__dropout=0.25), whole_run)
    assert contents(whole_run) == before


def start(config_file, workdir, **env):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "alexnet_jax.main",
            f"--config={config_file}",
            f"--workdir={workdir}",
        ],
        cwd=tiny.ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_line(workdir, count, process):
    """Until metrics.jsonl has `count` lines."""
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)


def test_killed_and_started_again_equals_one_run(config_file, whole_run, tmp_path):
    """SIGKILL at three instants, which fall into steps, evaluations and saves alike."""
    workdir = tmp_path / "run"
    for count, delay in ((3, 0.0), (6, 0.02), (9, 0.1)):
        process = start(config_file, workdir)
        wait_for_line(workdir, count, process)
        time.sleep(delay)
        process.kill()
        process.communicate()
    process = start(config_file, workdir)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_same_run(workdir, whole_run)


@pytest.mark.slow
def test_killed_at_thirty_random_instants(config_file, whole_run, tmp_path):
    rng = random.Random(0)
    for trial in range(30):
        workdir = tmp_path / f"run{trial}"
        process = start(config_file, workdir)
        wait_for_line(workdir, 1, process)
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
        process.communicate()
        process = start(config_file, workdir)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert_same_run(workdir, whole_run)


def test_sigterm_saves_and_exits_with_75(config_file, whole_run, tmp_path):
    workdir = tmp_path / "run"
    process = start(config_file, workdir)
    wait_for_line(workdir, 4, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    if process.returncode != 0:  # it had not ended before
        assert process.returncode == 75, output
        assert "stopped by SIGTERM" in output
        step = int(output.split("at step ")[1].split()[0])
        assert step in restore.steps(workdir)
    process = start(config_file, workdir)
    process.stdout.close()  # nobody reads on: the run goes on all the same
    assert process.wait() == 0
    assert_same_run(workdir, whole_run)


def test_a_second_run_in_one_work_directory_is_refused(config_file, tmp_path):
    from alexnet_jax.records import lock

    with lock.acquire(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"):
        train(load(config_file), tmp_path)


def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_taken(
    config_file, whole_run, tmp_path, capsys
):
    workdir = tmp_path / "run"
    assert train(load(config_file, num_train_steps=10), workdir) == 0
    victim = max(
        (workdir / "checkpoints/10/params").rglob("*"), key=lambda path: path.stat().st_size
    )
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert train(load(config_file), workdir) == 0
    output = capsys.readouterr().out
    assert "10.corrupt-1" in output
    assert "goes on from step 5" in output
    assert (workdir / "checkpoints/10.corrupt-1").is_dir()
    jax.tree.map(np.testing.assert_array_equal, final_params(workdir), final_params(whole_run))
