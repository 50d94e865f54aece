"""The example notebook: every cell runs, and shows what it says.

Its cells run in this process, in order and one namespace, which needs no Jupyter.
"""

import json
import re
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


def test_the_first_cell_runs_outside_of_a_checkout(tmp_path, monkeypatch):
    """As where the package is installed and the notebook was copied."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    namespace = {}
    exec(cells()[0], namespace)
    assert namespace["root"] == tmp_path


def test_it_is_kept_as_it_ran():
    """In order, by the net that comes with the package: a reader sees it without running it."""
    text = NOTEBOOK.read_text("utf-8")
    kept = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in kept] == list(range(1, len(kept) + 1))
    outputs = [output for cell in kept for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    printed = "".join("".join(output.get("text", ())) for output in outputs)
    assert "coffee" in printed
    assert printed.count("is nearest to") == 12
    assert str(provenance.ROOT) not in text
    assert len(text) < 1_000_000
