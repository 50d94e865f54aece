"""The nets that come with the package, and folders of nets that a run is made into."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import alexnet_jax
from alexnet_jax import classify, export
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import evaluate, load_run
from alexnet_jax.records import restore
from alexnet_jax.trained import shipped
from alexnet_jax.trained.pretrained import open_pretrained, read_description
from tests import tiny

DATA = tiny.ROOT.parent / "shared" / "data"
FINAL = 15  # the last step of the run of `trained`


@pytest.fixture
def folder(trained, tmp_path):
    """The net of a finished run in a folder of its own."""
    export.export(trained.workdir, "net", tmp_path / "net", step=FINAL)
    return tmp_path / "net"


def test_a_folder_of_a_run_has_its_error_and_half_its_bytes(trained, folder):
    run, params, step = load_run(folder)
    ended = json.loads((trained.workdir / "result.json").read_text())
    found = evaluate(run, params)
    assert step == FINAL
    assert found["top1_error"] == pytest.approx(ended["final"]["top1_error"], abs=0.1)
    assert found["loss"] == pytest.approx(ended["final"]["loss"], rel=1e-3)
    whole = open_pretrained(trained.workdir, FINAL)
    count = sum(x.size for arrays in whole.params.values() for x in arrays.values())
    size = (folder / "weights.safetensors").stat().st_size
    mean = whole.recipe.mean.nbytes  # stays as it is
    assert 2 * count < size - mean < 2 * count + 4096
    same = open_pretrained(folder)
    assert same.class_names == whole.class_names
    np.testing.assert_array_equal(same.recipe.mean, whole.recipe.mean)
    np.testing.assert_allclose(
        same.params["fc8"]["kernel"], whole.params["fc8"]["kernel"], rtol=1e-3, atol=1e-6
    )
    assert same.params["fc8"]["kernel"].dtype == np.float32


def test_it_says_what_it_was_and_not_where(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    result = json.loads((workdir / "result.json").read_text())
    command = "python -m alexnet_jax.main --config=mine.py {}--config.seed=0"
    result["command"] = command.format("--workdir=/home/me/run --config.data.data_dir /home/me ")
    (workdir / "result.json").write_text(json.dumps(result))
    export.export(workdir, "net", tmp_path / "net")
    run = read_description(tmp_path / "net" / "weights.safetensors")["run"]
    assert {"commit", "seed", "date", "hardware", "versions"} <= run.keys()
    assert run["command"] == command.format("")
    assert run["result"]["split"] == "test"
    assert run["data"]["train"]["num_examples"] == 80
    assert run["data"]["train"]["files"] == []  # their names are nobody's business
    assert run["config"]["num_epochs"] == 3


def test_what_no_folder_is_made_of(trained, folder, tmp_path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained.workdir, unfinished)
    (unfinished / "result.json").unlink()
    for path, step, said in (
        (unfinished, None, "has not ended"),
        (trained.workdir, 5, "no error of step 5, but of .*15"),
        (folder, None, "weights already"),
    ):
        with pytest.raises(UserError, match=said):
            export.export(path, "net", tmp_path / "other", step=step)
    assert not (tmp_path / "other").exists()


def test_the_error_is_that_of_the_weights(trained, tmp_path):
    """Of a run whose best step was not saved, they are those of the best step that was."""
    run = tmp_path / "run"
    shutil.copytree(trained.workdir, run)
    for step in restore.steps(run):
        if step != FINAL:
            shutil.rmtree(run / "checkpoints" / str(step))
    result = json.loads((run / "result.json").read_text())
    result["best"] |= {"step": 12, "top1_error": 0.125, "kept": False}
    (run / "result.json").write_text(json.dumps(result))
    export.export(run, "net", tmp_path / "net")
    told = read_description(tmp_path / "net" / "weights.safetensors")
    assert told["source"]["step"] == FINAL
    expected = {"step": FINAL, "top1_error": result["final"]["top1_error"]}
    assert told["run"]["result"].items() >= expected.items()
    result["final"]["step"] = 14
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="kept no error of step 15, nor of any that is saved"):
        export.export(run, "net", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_damaged_file_is_one_line(folder):
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read: it is not the file that") as raised:
        open_pretrained(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", shipped.names())
def test_a_shipped_net_is_whole_and_has_its_card(name):
    net = alexnet_jax.load(name)
    assert len(net.class_names) == net.model.num_classes
    assert all(np.isfinite(x).all() for layer in net.params.values() for x in layer.values())
    files = shipped.FOLDER / name
    run = read_description(files / "weights.safetensors")["run"]
    text = (files / f"{name}.md").read_text()
    assert f"{run['result']['top1_error']:.2f}%" in text
    assert run["commit"][:7] in text
    assert not run["commit"].endswith("-dirty")
    assert (files / "weights.safetensors").stat().st_size < 6e6


@pytest.mark.parametrize(
    "name",
    ["photos", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cifar10", "imagenette"))],
)
def test_a_shipped_net_has_the_error_of_its_run(name):
    if name != "photos" and not DATA.exists():
        pytest.skip(f"no data sets in {DATA}")
    run, params, step = load_run(name, data_dir="" if name == "photos" else str(DATA))
    told = read_description(shipped.FOLDER / name / "weights.safetensors")["run"]["result"]
    found = evaluate(run, params)
    assert (step, found["count"]) == (told["step"], told["count"])
    assert found["top1_error"] == pytest.approx(told["top1_error"], abs=0.1)


def test_nets_by_name(trained, tmp_path, capsys, monkeypatch):
    picture = str(trained.images / "test" / "coffee" / "00.png")
    assert {shipped.DEFAULT, "photos"} <= set(shipped.names())
    shipped.show()
    listed = capsys.readouterr().out
    for name in shipped.names():
        assert f"{name}: top-1 error " in listed
    assert "tench, English springer" in listed
    with pytest.raises(UserError, match="nor a net of that name; did you mean 'imagenette'"):
        classify.answer("imagenete", [picture])
    # A folder of the name that is no run doesn't hide the net; a run does.
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    assert len(alexnet_jax.load("photos").class_names) == 12
    shutil.rmtree("photos")
    shutil.copytree(trained.workdir, "photos")
    assert len(alexnet_jax.load("photos").class_names) == 4
