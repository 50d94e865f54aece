"""--help of every command, and arguments that were meant as flags."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from absl import flags

from alexnet_jax import cli, evaluate
from alexnet_jax.__main__ import COMMANDS
from alexnet_jax.errors import UserError, missing
from alexnet_jax.records import files
from alexnet_jax.trained import plots
from tests import tiny

HELP = {
    **{f"alexnet_jax.{module}": ["python -m alexnet_jax."] for module, _ in COMMANDS.values()},
    "alexnet_jax.main": ["--config=FILE", "--config.FIELD=VALUE", "--workdir=", "--process_id="],
    "alexnet_jax.evaluate": ["--workdir=", "Required."],
    "alexnet_jax.classify": ["--workdir=", "--weights=", "--[no]list", "Default: 5."],
    "alexnet_jax.bench": ["step|layers|input|train|comms", "\ncomms ", "--[no]record"],
    "alexnet_jax.export": ["--to=stablehlo|safetensors|torchvision"],
    **{
        f"experiments.{name}": ["--[no]write", "--[no]check"]
        for name in ("scale", "tables", "ledger")
    },
    "experiments.figures": ["--[no]write"],
}

DEFAULT = "--config=configs/default.py"
MEANT = {
    ("alexnet_jax.main", "configs/default.py"): "write --config=configs/default.py",
    ("alexnet_jax.main", DEFAULT, "batch_size=3"): "write --config.batch_size=3",
    ("alexnet_jax.main", DEFAULT, "runs/a"): "write --workdir=runs/a",
    ("alexnet_jax.main", DEFAULT, "profile"): "write --profile=VALUE",
    ("alexnet_jax.evaluate", "runs/a"): "write --workdir=runs/a",
    ("alexnet_jax.evaluate",): "--workdir is missing: The run to evaluate",
    ("alexnet_jax.export", "net.safetensors"): "write --weights=net.safetensors",
    ("alexnet_jax.classify", "--weights=imagenete", "README.md"): "did you mean 'imagenette'",
    ("alexnet_jax.summary",): "no configuration: give one",
    ("alexnet_jax.summary", DEFAULT, "--weights=photos"): "which net?",
    ("alexnet_jax", "train", "--config=imagenete"): "no configuration 'imagenete'; did you mean",
    ("alexnet_jax", "trian"): "did you mean 'train'?",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """{(module, *arguments): (exit status, what it printed)} of all command lines of this file."""
    lines = [*((module, "--help") for module in HELP), *MEANT, ("alexnet_jax", "--help")]
    done = tiny.commands(lines, tmp_path_factory.mktemp("said"))
    return {
        line: (each.returncode, each.stdout + each.stderr)
        for line, each in zip(lines, done, strict=True)
    }


@pytest.mark.parametrize("module", HELP)
def test_help_lists_the_commands_own_flags(said, module):
    status, text = said[module, "--help"]
    assert status == 0
    for part in HELP[module]:
        assert part in text
    assert "--verbosity" not in text  # one of a library's
    options = text.partition("\nOptions:\n")[2].splitlines()
    assert max(map(len, options)) <= 80


@pytest.mark.parametrize("line", MEANT)
def test_an_argument_that_was_meant_as_a_flag(said, line):
    status, text = said[line]
    assert status == 1
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert MEANT[line] in text


def test_alexnet_lists_its_commands(said):
    status, text = said["alexnet_jax", "--help"]
    assert status == 0
    for name, (module, about) in COMMANDS.items():
        assert f"  {name} " in text
        assert about in text
        assert importlib.util.find_spec(f"alexnet_jax.{module}")


def test_paths_are_of_this_machine(monkeypatch, tmp_path):
    """~ is expanded where the shell leaves it, as in --workdir=~/x; addresses are refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    values = flags.FlagValues()
    cli.define_path("workdir", None, "A run.", values)
    values(["command", "--workdir=~/runs/a"])
    assert values.workdir == str(tmp_path / "runs" / "a")
    for address in ("gs://bucket/run", "s3://bucket/run", "hdfs://host/run"):
        with pytest.raises(UserError, match="only local and shared file systems"):
            values(["command", f"--workdir={address}"])


def test_a_result_has_its_folder_before_it_is_computed(tmp_path):
    """A misspelt name is told at the start, and not after the hours that the result took."""
    values = flags.FlagValues()
    cli.define_path("json", None, "A result.", values, result=True)
    values(["command", f"--json={tmp_path}/new.json"])
    assert values.json == f"{tmp_path}/new.json"
    (tmp_path / "file").touch()
    for folder, why in (("gone", "there is no folder"), ("file", "is no folder")):
        with pytest.raises(UserError, match=f"^--json=.*could not be written at the end: .*{why}"):
            values(["command", f"--json={tmp_path}/{folder}/new.json"])
    with pytest.raises(UserError, match="--json needs a value, and --hlo=x follows it"):
        values(["command", "--json", "--hlo=x"])
    with pytest.raises(UserError, match=r"^--json=\S* is a folder: name a file in it$"):
        values(["command", f"--json={tmp_path}"])


def test_a_picture_has_a_suffix(tmp_path):
    """matplotlib would add one, and write over another file than the one that is named."""
    values = flags.FlagValues()
    cli.define_path("plot", None, "A picture.", values, result=True, suffixes=plots.SUFFIXES)
    for name in ("answers", "answers.pgn"):
        with pytest.raises(UserError, match=f"^--plot=.*{name}: name a file that ends in one of"):
            values(["command", f"--plot={tmp_path}/{name}"])
    values(["command", f"--plot={tmp_path}/answers.PNG"])


def test_a_result_for_a_device_or_a_pipe_leaves_it_there(tmp_path, monkeypatch):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    with monkeypatch.context() as patch:  # as /dev is for most users
        patch.setattr(files, "obstacle", lambda folder, **_: f"{folder} is not writable")
        values = flags.FlagValues()
        cli.define_path("json", None, "A result.", values, result=True)
        values(["command", f"--json={pipe}"])
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    files.write_json(pipe, {"error": 12.5})
    reader.join(timeout=60)
    assert [json.loads(text) for text in read] == [{"error": 12.5}]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


PRINTING = """
import sys
from alexnet_jax.records import files
print("before")
files.write_json(sys.argv[1], {"error": 12.5})
print("after")
"""


def test_a_result_for_standard_output_stands_among_what_is_printed(tmp_path):
    """As --json=/dev/stdout > file gives it; the link is another, so that no test replaces it."""
    link, out = tmp_path / "stdout", tmp_path / "out.txt"
    link.symlink_to("/proc/self/fd/1")
    with out.open("w") as file:
        subprocess.run([sys.executable, "-c", PRINTING, str(link)], cwd=tiny.ROOT, stdout=file)
    assert link.is_symlink()
    assert out.read_text().split() == ["before", "{", '"error":', "12.5", "}", "after"]


def test_what_is_not_there_is_told_apart(tmp_path):
    (tmp_path / "net.pth").symlink_to("gone.pth")
    assert str(missing(tmp_path)) == f"'{tmp_path}' is a folder: name a file in it"
    broken = f"'{tmp_path}/net.pth' is a link to 'gone.pth', which is not there"
    assert str(missing(tmp_path / "net.pth")) == broken
    assert "did you mean 'net.pth'" in str(missing(tmp_path / "net.pht"))


def test_names_of_runs_may_have_commas(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b,c", "b"):
        Path(name).mkdir()
    assert evaluate.named_runs("a,b,c") == [Path("a"), Path("b,c")]
    assert evaluate.named_runs("b,a,") == [Path("b"), Path("a")]
    assert evaluate.named_runs("gone,b,c") == [Path("gone"), Path("b,c")]
    with pytest.raises(UserError, match="names no run"):
        evaluate.named_runs(",")
