"""The commands for a GPU: that they exist, go on, and leave what tables and ledger read.

A rehearsal of them all is `python -m experiments.on_gpu --out=DIR --rehearse`, minutes long.
"""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from alexnet_jax.config import SCHEMA, load_config
from alexnet_jax.errors import UserError
from experiments import bench_table, net_claims, on_gpu, record
from tests.tiny import ROOT


def split(line):
    """The fields of a configuration among arguments, and the other flags."""
    pairs = [each.removeprefix("--").partition("=")[::2] for each in line if each[:2] == "--"]
    fields = {name.removeprefix("config."): value for name, value in pairs if name[:7] == "config."}
    return fields, dict(pairs)


def test_every_command_names_what_is_there(tmp_path):
    planned = on_gpu.commands(tmp_path, str(tmp_path))
    assert len({command.name for command in planned}) == len(planned)
    for command in planned:
        module, *arguments = command.line
        folder = ROOT / module.replace(".", "/")
        assert module == "pytest" or folder.is_dir() or folder.with_suffix(".py").exists()
        for argument in arguments:
            assert (ROOT / argument).exists() or not argument.startswith("tests/")
        fields, others = split([*arguments, *command.small])
        assert fields.keys() <= SCHEMA.keys()
        if "config" in others:
            assert load_config(others["config"])


def test_it_goes_on_where_it_stopped_and_names_what_fails(tmp_path, capsys, monkeypatch):
    good = on_gpu.Command("good", ("json.tool", "--help"), result=False)
    bad = on_gpu.Command("bad", ("json.tool", "--no_such_flag"), result=False)
    slow = on_gpu.Command("slow", ("timeit", "-n1", "-r1", "import time; time.sleep(9)"), (), False)
    assert on_gpu.perform(good, tmp_path, rehearse=False)
    assert on_gpu.perform(good, tmp_path, rehearse=False)
    assert not on_gpu.perform(bad, tmp_path, rehearse=False)
    monkeypatch.setattr(on_gpu, "SECONDS", 0.2)
    assert not on_gpu.perform(slow, tmp_path, rehearse=False)
    said = capsys.readouterr().out
    assert "good: done before" in said
    assert "bad: FAILED (2)" in said
    assert "slow: FAILED (not ended after 0.2 s)" in said


def test_a_rehearsal_leaves_the_real_commands_to_do(tmp_path, capsys, monkeypatch):
    """It ran all of them in the folder of the results, where they then counted as done before."""
    one = on_gpu.Command("one", ("json.tool", "--help"), result=False)
    monkeypatch.setattr(on_gpu, "commands", lambda out, data_dir: [one])
    monkeypatch.setattr(on_gpu, "_devices", lambda: ("cuda", 1))
    given = SimpleNamespace(pictures=None, out=str(tmp_path), data_dir="", record=False)
    monkeypatch.setattr(on_gpu, "flags", SimpleNamespace(FLAGS=given))
    for given.rehearse in (True, False):
        assert on_gpu.main([]) == 0
    assert "done before" not in capsys.readouterr().out
    (tmp_path / "rehearsal" / "one.json").write_text(json.dumps(result("step", {})))
    given.record = True
    assert on_gpu.main([]) == 0
    assert "nothing new to record" in capsys.readouterr().out
    given.rehearse = True
    with pytest.raises(UserError, match="a rehearsal is never recorded"):
        on_gpu.main([])


def result(mode, overrides, kind="NVIDIA H100", **fields):
    return {
        "mode": mode,
        "config": "configs/imagenet2012.py",
        "overrides": overrides,
        "device": kind,
        "hardware": {"device_kind": kind},
        "date": "2026-01-01",
        **fields,
    }


def test_tables_and_ledger_read_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    out = tmp_path / "out"
    out.mkdir()
    fields = {command.name: split(command.line)[0] for command in on_gpu.commands(out, "")}
    paper = {"data.image_size": 227, "mesh.data": 1, "model.dtype": "bfloat16"}
    assert {name: str(value) for name, value in paper.items()} == fields[
        "step_imagenet2012_bfloat16"
    ]
    assert fields["step_half"].keys() == on_gpu.TWO_GPUS["half"].keys() | {"mesh.data"}
    lines = {
        "paper": result("step", paper, images_per_second=40_000.0),
        "half": result("step", {"mesh.data": 1, **on_gpu.TWO_GPUS["half"]}, step_seconds=0.02),
        "towers": result("step", {"mesh.data": 1, **on_gpu.TWO_GPUS["towers"]}, step_seconds=0.018),
    }
    for name, line in lines.items():
        (out / f"{name}.json").write_text(json.dumps(line))
    assert on_gpu.keep(out) == ["half", "paper", "towers"]
    assert on_gpu.keep(out) == []
    row = "| the paper's step on a GPU, bfloat16 | none | 40,000 images/s | NVIDIA H100 |"
    assert row in bench_table.table(tmp_path / "results" / "bench")
    assert net_claims.times() == ("0.90× the time of half the net on one NVIDIA H100", "agrees")
    (out / "paper.json").write_text(json.dumps(result("step", paper, kind="cpu")))
    with pytest.raises(UserError, match="a rehearsal's"):
        on_gpu.keep(out)


def test_pictures_are_made_from_photographs(tmp_path):
    on_gpu.make_pictures(tmp_path, 24, 40)
    made = sorted(tmp_path.rglob("*.jpg"))
    assert len(made) == 24 + 12  # one at least of each class to test on
    with Image.open(made[0]) as image:
        assert image.size == (40, 40)
