"""The records of a run: rewound, whole, each step once."""

import errno
import json
import math
import os
import re
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import layout_pb2
from tensorboardX.proto.event_pb2 import Event

from alexnet_jax.data import tfrecord
from alexnet_jax.errors import UserError
from alexnet_jax.records import files, metrics, provenance


def read_lines(workdir):
    return [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_events(workdir):
    """(step, tag, simple value) of all values in all event files but the layout of plots."""
    return [
        (event.step, value.tag, value.simple_value)
        for path in workdir.glob("*tfevents*")
        for event in map(Event.FromString, tfrecord.records(path))
        for value in event.summary.value
        if not is_layout(value)
    ]


def is_layout(value):
    return value.metadata.plugin_data.plugin_name == "custom_scalars"


def train(writer, first, last, loss=1.0):
    """Writes what a run of ten steps an epoch would, logging each step."""
    for step in range(first, last + 1):
        writer.write(step, step / 10, "train", {"loss": loss / step, "learning_rate": 0.01})
        if step % 10 == 0:
            writer.write(step, step / 10, "validation", {"loss": 2 * loss / step})
            writer.image("conv1", np.full((4, 5, 3), step, np.uint8), step)


def test_lines_hold_step_epoch_split_and_values(tmp_path):
    writer = metrics.open_writer(tmp_path / "new run é", resume_step=0)
    values = {"loss": jnp.float32(0.1), "top1_error": np.float64(12.5), "count": np.int32(7)}
    writer.write(3, 0.5, "test", values)
    writer.close()
    (line,) = read_lines(tmp_path / "new run é")
    assert line == {
        **{"step": 3, "epoch": 0.5, "split": "test"},
        **{"loss": float(np.float32(0.1)), "top1_error": 12.5, "count": 7},
    }
    assert isinstance(line["count"], int)


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    writer = metrics.open_writer(tmp_path, resume_step=0)
    train(writer, 1, 3)
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3]
    writer.close()


def test_what_is_not_finite_is_null_in_json(tmp_path):
    writer = metrics.open_writer(tmp_path, resume_step=0)
    writer.write(1, 0, "train", {"loss": jnp.nan, "norm": np.float32(np.inf)})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None
    assert json.loads(text)["norm"] is None
    assert any(math.isnan(value) for _, tag, value in read_events(tmp_path))


def test_restarts_leave_the_records_of_an_uninterrupted_run(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    writer = metrics.open_writer(whole, resume_step=0)
    writer.text("config", "seed 1")
    train(writer, 1, 40)
    writer.close()

    resume = 0
    for last, checkpoint in ((4, 0), (13, 10), (13, 10), (29, 20), (20, 20), (35, 30), (40, None)):
        writer = metrics.open_writer(stopped, resume_step=resume)
        writer.text("config", "seed 1")
        if resume:  # it evaluates again where it resumes
            train(writer, resume, resume)
        train(writer, resume + 1, last)
        writer.close()
        resume = checkpoint
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert sorted(read_events(stopped)) == sorted(read_events(whole))
    # One of 40 steps: two scalars; every tenth also a validation loss and an image; one text.
    assert len(read_events(stopped)) == 40 * 2 + 4 * 2 + 1
    assert len({(step, tag) for step, tag, _ in read_events(stopped)}) == 40 * 2 + 4 * 2 + 1


def test_the_step_resumed_at_is_kept_and_the_next_is_not(tmp_path):
    writer = metrics.open_writer(tmp_path, resume_step=0)
    train(writer, 1, 12)
    writer.close()
    metrics.open_writer(tmp_path, resume_step=10).close()
    lines = [(line["step"], line["split"]) for line in read_lines(tmp_path)]
    assert lines == [(step, "train") for step in range(1, 11)] + [(10, "validation")]
    assert max(step for step, _, _ in read_events(tmp_path)) == 10
    assert (10, "conv1", 0.0) in read_events(tmp_path)


def test_a_fresh_start_keeps_nothing_and_says_where_it_is(tmp_path, capsys):
    writer = metrics.open_writer(tmp_path, resume_step=0)
    writer.write(0, 0, "validation", {"loss": 7.0})
    train(writer, 1, 3)
    writer.close()
    metrics.open_writer(tmp_path, resume_step=0).close()
    assert read_lines(tmp_path) == []
    assert read_events(tmp_path) == []
    aside = tmp_path / "earlier-3"
    assert [line["step"] for line in read_lines(aside)] == [0, 1, 2, 3]
    assert {step for step, _, _ in read_events(aside)} == {0, 1, 2, 3}
    assert f"the records of the 3 steps it had made are in {aside}" in capsys.readouterr().out
    metrics.open_writer(tmp_path, resume_step=0).close()  # of no steps
    assert capsys.readouterr().out == ""


def test_a_resumed_run_shows_its_own_text(tmp_path):
    for start, text in ((0, "10 epochs"), (5, "20 epochs")):
        writer = metrics.open_writer(tmp_path, resume_step=start)
        writer.text("config", text)
        train(writer, start + 1, start + 5)
        writer.close()
    (path,) = tmp_path.glob("*tfevents*")
    assert b"20 epochs" in path.read_bytes()
    assert b"10 epochs" not in path.read_bytes()


def test_training_and_evaluation_stand_in_one_plot(tmp_path):
    for start in (0, 10):
        writer = metrics.open_writer(tmp_path, resume_step=start)
        train(writer, start + 1, start + 10)
        writer.close()
    (path,) = tmp_path.glob("*tfevents*")
    events = map(Event.FromString, tfrecord.records(path))
    (layout,) = (value for event in events for value in event.summary.value if is_layout(value))
    plots = layout_pb2.Layout.FromString(layout.tensor.string_val[0]).category[0].chart
    tags = {tag for _, tag, _ in read_events(tmp_path)}
    (loss,) = (plot for plot in plots if plot.title == "loss")
    (pattern,) = loss.multiline.tag
    assert {tag for tag in tags if re.match(pattern, tag)} == {"train/loss", "validation/loss"}


def test_records_cut_anywhere_by_a_kill_are_read_up_to_there(tmp_path):
    writer = metrics.open_writer(tmp_path, resume_step=0)
    train(writer, 1, 5)
    writer.close()
    (path,) = tmp_path.glob("*tfevents*")
    lines, events = (tmp_path / "metrics.jsonl").read_bytes(), path.read_bytes()
    last = min(len(lines.splitlines()[-1]), len(list(tfrecord.records(path))[-1]))
    for cut in range(2, last, 7):  # within the last line and within the last event
        (tmp_path / "metrics.jsonl").write_bytes(lines[:-cut])
        path.write_bytes(events[:-cut])
        writer = metrics.open_writer(tmp_path, resume_step=5)
        train(writer, 5, 6)
        writer.close()
        assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
        losses = sorted(step for step, tag, _ in read_events(tmp_path) if tag == "train/loss")
        assert losses == [1, 2, 3, 4, 5, 6]
        (path,) = tmp_path.glob("*tfevents*")


def test_a_damaged_record_ends_the_reading(tmp_path):
    writer = metrics.open_writer(tmp_path, resume_step=0)
    train(writer, 1, 5)
    writer.close()
    (path,) = tmp_path.glob("*tfevents*")
    data = bytearray(path.read_bytes())
    before = list(tfrecord.records(path))
    data[-10] ^= 1
    path.write_bytes(data)
    assert list(tfrecord.records(path)) == [*before[:-1], None]
    metrics.open_writer(tmp_path, resume_step=5).close()
    losses = [step for step, tag, _ in read_events(tmp_path) if tag == "train/loss"]
    assert losses == [1, 2, 3, 4]


def test_a_kill_between_new_and_old_event_file_is_healed(tmp_path):
    writer = metrics.open_writer(tmp_path, resume_step=0)
    train(writer, 1, 5)
    writer.close()
    (old,) = tmp_path.glob("*tfevents*")
    data = old.read_bytes()
    writer = metrics.open_writer(tmp_path, resume_step=4)
    train(writer, 5, 6, loss=12.0)
    writer.close()
    old.write_bytes(data)  # as if it had not been removed yet
    (tmp_path / "events.tmp").write_bytes(b"half")
    metrics.open_writer(tmp_path, resume_step=6).close()
    losses = sorted(event for event in read_events(tmp_path) if event[1] == "train/loss")
    assert [step for step, *_ in losses] == [1, 2, 3, 4, 5, 6]
    assert losses[-1][2] == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "events.out.tfevents.0000000003",
        "metrics.jsonl",
    ]


def test_killed_process_loses_nothing_before_its_sync(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from alexnet_jax.records import metrics\n"
        "writer = metrics.open_writer(sys.argv[1], resume_step=0)\n"
        "for step in range(1, 8):\n"
        "    writer.write(step, 0, 'train', {'loss': 1 / step})\n"
        "    step == 5 and writer.sync()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=provenance.ROOT)
    metrics.open_writer(tmp_path, resume_step=5).close()
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3, 4, 5]
    assert sorted(step for step, _, _ in read_events(tmp_path)) == [1, 2, 3, 4, 5]


def test_foreign_line_is_named_and_nothing_touched(tmp_path):
    text = '{"step": 1, "split": "train"}\nhello\n{"step": 2, "split": "train"}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match="line 2"):
        metrics.open_writer(tmp_path, resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_foreign_event_files_stay(tmp_path):
    (tmp_path / "events.out.tfevents.1732480000.host").write_bytes(b"theirs")
    metrics.open_writer(tmp_path, resume_step=0).close()
    assert (tmp_path / "events.out.tfevents.1732480000.host").read_bytes() == b"theirs"


def test_unwritable_workdir_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        metrics.open_writer(tmp_path / "file", resume_step=0)
    with pytest.raises(UserError, match="cannot write"):
        files.write_json(tmp_path / "file" / "result.json", {})


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    writer = metrics.open_writer(tmp_path, resume_step=0)
    train(writer, 1, 1)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            writer.sync()
    writer.close()


def test_events_after_a_full_disk_can_be_read(tmp_path):
    """The event file ends in half a record, as with on_save_error=continue on a full disk."""
    writer = metrics.open_writer(tmp_path, resume_step=0)
    writer.text("config", "seed 1")
    train(writer, 1, 20)
    writer.sync()
    (path,) = tmp_path.glob("*tfevents*")
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, before[1]))
    try:
        for step in (21, 22):  # at the second a new file has no room either
            writer.scalars(step, {"weight_norm/conv1": 1.0})
            with pytest.raises(UserError, match="cannot write"):
                writer.image("conv1", noise, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train(writer, 23, 30)
    writer.close()
    steps = {step for step, tag, _ in read_events(tmp_path) if tag == "train/loss"}
    assert steps == {*range(1, 21), *range(23, 31)}
    (path,) = tmp_path.glob("*tfevents*")
    assert b"seed 1" in path.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, "metrics.jsonl"]


def test_other_processes_write_nothing(tmp_path):
    writer = metrics.open_writer(tmp_path / "run", resume_step=0, enabled=False)
    train(writer, 1, 10)
    writer.text("config", "")
    writer.sync()
    writer.close()
    assert not (tmp_path / "run").exists()


def test_write_json_replaces_whole_files(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_json(path, {"final": {"loss": 1.5}, "nan": float("nan")})
    assert json.loads(path.read_text()) == {"final": {"loss": 1.5}, "nan": None}

    def killed(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"final": None})
    assert json.loads(path.read_text())["final"] == {"loss": 1.5}


def test_sums_are_divided_once():
    parts = [
        {"loss": jnp.float32(6), "top1": jnp.float32(1), "top5": jnp.float32(3), "count": 3},
        {"loss": jnp.float32(2), "top1": jnp.float32(0), "top5": jnp.float32(1), "count": 1},
    ]
    sums = metrics.total(parts)
    assert sums == {"loss": 8.0, "top1": 1.0, "top5": 4.0, "count": 4.0}
    assert metrics.summarize(sums) == {"loss": 2.0, "top1_error": 75.0, "top5_error": 0.0}
    with pytest.raises(ValueError, match="no examples"):
        metrics.summarize({"loss": 0.0, "top1": 0, "top5": 0, "count": 0})
    with pytest.raises(ValueError, match="nothing"):
        metrics.total([])


def test_total_does_not_round():
    parts = [{"loss": np.float32(2**24)}] + 3 * [{"loss": np.float32(1)}]
    assert metrics.total(parts)["loss"] == 2**24 + 3


def test_provenance_says_what_produced_a_result():
    found = provenance.collect()
    json.dumps(found)
    assert {"commit", "date", "command", "hardware", "versions"} <= found.keys()
    assert found["hardware"]["device_kind"] == "cpu"
    assert found["hardware"]["device_count"] == 8  # conftest's fake devices
    assert found["hardware"]["cpu"]
    assert found["hardware"]["cpu_cores"] >= 1
    assert found["versions"]["jax"] == jax.__version__
    assert {"python", "jaxlib", "flax", "optax", "numpy"} <= found["versions"].keys()
    assert os.uname().nodename not in found["hardware"].values()


def test_provenance_names_the_commit(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", *identity, *arguments]
        run = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return run.stdout.strip()

    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    assert provenance.collect()["commit"] is None
    git("init")
    assert provenance.collect()["commit"] is None
    (tmp_path / "file").write_text("one")
    records = tmp_path / "experiments" / "results" / "runs.jsonl"
    records.parent.mkdir(parents=True)
    records.write_text("one\n")
    git("add", ".")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("")
    records.write_text("one\ntwo\n")
    assert provenance.collect()["commit"] == head
    (tmp_path / "file").write_text("two")
    assert provenance.collect()["commit"] == head + "-dirty"
    # Installed inside somebody else's checkout: their commit is not ours.
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve() / "site-packages")
    assert provenance.collect()["commit"] is None


def test_importing_does_not_import_tensorflow():
    script = (
        "import sys\n"
        "from alexnet_jax import console\nfrom alexnet_jax.records import metrics, provenance\n"
        "provenance.collect()\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=provenance.ROOT)
