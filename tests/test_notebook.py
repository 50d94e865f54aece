"""The example notebook: every cell runs, and shows what it says.

Its cells run in this process, in order and one namespace, which needs no Jupyter.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from alexnet_jax.records import provenance

NOTEBOOK = provenance.ROOT / "examples" / "alexnet.ipynb"


def cells():
    parsed = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in parsed if cell["cell_type"] == "code"]


def test_the_notebook_on_a_run(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("ALEXNET_RUN", str(trained.workdir))
    monkeypatch.setenv("ALEXNET_SCRATCH", str(tmp_path))
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.syspath_prepend(str(provenance.ROOT))
    namespace = {}
    for cell in cells():
        exec(cell, namespace)
    out = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r"([\d.]+)%", out)]
    assert sum(shares) == pytest.approx(100, abs=0.3)  # four classes
    assert out.count("is nearest to") == 12
    assert namespace["logits"].shape == (10, 4)
    assert namespace["activations"]["fc7"].shape == (10, 32)


@pytest.mark.slow
def test_the_notebook_trains_its_own_net(tmp_path):
    """In a process of its own, on one device, as a reader has it."""
    env = os.environ | {"MPLBACKEND": "Agg", "ALEXNET_SCRATCH": str(tmp_path), "XLA_FLAGS": ""}
    env.pop("ALEXNET_RUN", None)
    command = [sys.executable, "-c", "\n".join(cells())]
    done = subprocess.run(command, cwd=NOTEBOOK.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is nearest to") == 12
    assert (tmp_path / "notebook" / "result.json").exists()


def test_no_outputs_are_kept():
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
