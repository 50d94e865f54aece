"""A run keeps what it needs of its data, and goes on with no others."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from alexnet_jax import evaluate as evaluating
from alexnet_jax.assemble import assemble
from alexnet_jax.config import load_config, override
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import evaluate, evaluate_together, load_run
from alexnet_jax.train import train
from alexnet_jax.trained.begin import begin_from
from alexnet_jax.trained.kept import read_recipe, write_recipe
from alexnet_jax.trained.pretrained import open_pretrained
from tests import tiny


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the run whose pictures may be changed: its directory, and their folder."""
    shutil.copytree(trained.workdir, tmp_path / "run")
    shutil.copytree(trained.images, tmp_path / "pictures")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["name"] = f"folder:{tmp_path / 'pictures'}"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path / "run", tmp_path / "pictures"


def config_of(trained, pictures, **fields):
    changed = {"data.name": f"folder:{pictures}", "num_epochs": 3}
    changed |= {name.replace("__", "."): value for name, value in fields.items()}
    return override(load_config(trained.config_file), changed)


def without_identity(workdir):
    """Makes the recipe that of an earlier commit."""
    kept = read_recipe(workdir)
    write_recipe(workdir, dataclasses.replace(kept, train=None, evaluation=None))


def lost(pictures):
    (pictures / "train" / "coffee" / "03.png").unlink()
    (pictures / "test" / "gravel" / "04.png").unlink()


def grown(pictures):
    for i in range(4):
        name = pictures / "train" / "coffee" / f"{i:02d}.png"
        shutil.copy(name, name.with_name(f"copy{name.name}"))


def renamed(pictures):
    for split in ("train", "test"):
        (pictures / split / "rocket").rename(pictures / split / "zebra")


def repainted(pictures):
    """One picture has another last byte."""
    file = pictures / "train" / "coffee" / "00.png"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lost, "80 examples then, 79 now; files only then: coffee/03.png.*36 .* 35 now.*gravel/04"),
        (grown, "84 now; files only now: coffee/copy00.png, .* and 1 more"),
        (renamed, "'zebra', which isn't among the classes of training: astronaut, coffee"),
    ],
)
def test_other_data_are_refused_by_what_differs(trained, copy, change, said, identity):
    workdir, pictures = copy
    if not identity:
        without_identity(workdir)
        said = said if change is renamed else "mean of its training images differs"
    change(pictures)
    before = {path: path.read_bytes() for path in workdir.glob("*.*")}
    with pytest.raises(
        UserError, match=f"'{workdir}' holds a run on other data: .*{said}"
    ) as raised:
        train(config_of(trained, pictures), workdir)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in workdir.glob("*.*")} == before


def test_more_pictures_are_no_other_batch_size(trained, copy):
    """The number of pictures chooses the batch size, here 8 and with 100 more 16."""
    workdir, pictures = copy
    path = workdir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"batch_size": 8}))
    for i in range(100):
        name = pictures / "train" / "coffee" / f"{i % 20:02d}.png"
        shutil.copy(name, name.with_name(f"copy{i}.png"))
    config = dataclasses.replace(config_of(trained, pictures), batch_size=None)
    with pytest.raises(UserError, match="80 examples then, 180 now"):
        train(config, workdir)
    with pytest.raises(UserError, match=r"batch_size \(was 8, now 16\)"):
        train(config_of(trained, pictures, batch_size=16), workdir)


def test_contents_of_the_same_names_and_sizes_are_compared(trained, copy):
    workdir, pictures = copy
    repainted(pictures)
    with pytest.raises(UserError, match="same names and sizes have other contents"):
        train(config_of(trained, pictures), workdir)


@pytest.mark.parametrize("identity", [True, False])
def test_a_run_goes_on_where_its_folder_moved(trained, copy, tmp_path, identity):
    """To a path with a slash, with other times, on the other backend."""
    workdir, pictures = copy
    if not identity:
        without_identity(workdir)
    moved = pictures.rename(tmp_path / "moved")
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    config = config_of(trained, f"{moved}/", data__backend="tfdata", num_train_steps=16)
    assert train(config, workdir) == 0
    assert [line["step"] for line in tiny.lines(workdir)][-1] == 16
    assert read_recipe(workdir).train.num_examples == 80
    assert read_recipe(workdir).train.contents


def test_evaluation_needs_no_training_split_and_keeps_its_mean(trained, copy, capsys):
    workdir, pictures = copy
    best = json.loads((workdir / "result.json").read_text())["best"]
    lost_split = pictures / "train"
    shutil.rmtree(lost_split)
    run, params, _ = load_run(workdir)
    assert evaluate(run, params)["loss"] == pytest.approx(best["loss"], rel=1e-6)
    assert run.steps_per_epoch == 5

    without_identity(workdir)
    run, params, _ = load_run(workdir)
    assert evaluate(run, params)["loss"] == pytest.approx(best["loss"], rel=1e-6)

    moved = pictures.rename(pictures.with_name("moved"))
    run, params, _ = load_run(workdir, data_dir=str(moved))
    assert evaluate(run, params)["count"] == 36


def test_evaluation_matches_classes_by_name_and_says_what_changed(trained, copy, capsys):
    workdir, pictures = copy
    shutil.rmtree(pictures / "test" / "astronaut")
    run, params, _ = load_run(workdir)
    whole = load_run(trained.workdir)
    result = evaluate(run, params)
    assert result["count"] == 27
    net, right = open_pretrained(workdir), 0
    for path in sorted((pictures / "test").glob("*/*.png")):
        logits, _ = net.model.apply({"params": net.params}, net.preprocess(path.read_bytes()))
        right += net.class_names[int(logits[0].argmax())] == path.parent.name
    assert result["top1_error"] == pytest.approx(100 * (27 - right) / 27)
    evaluating.say_changes(workdir, evaluating.with_split(run, "test"), "test")
    said = " ".join(capsys.readouterr().out.split())
    assert "split 'test' has changed since its training: 36 examples then, 27 now" in said

    with pytest.raises(UserError, match=r"averaged.*36 examples in the first, 27 in run 2"):
        evaluate_together([whole[0], run], [params, params])
    (pictures / "test" / "coffee").rename(pictures / "test" / "zebra")
    run, params, _ = load_run(workdir)
    with pytest.raises(UserError, match="'zebra', which isn't among the classes of training"):
        evaluate(run, params)


def test_nets_of_other_batches_sizes_and_places_are_averaged(trained, copy):
    """Over the same examples, on the other backend."""
    workdir, _ = copy
    run, params, _ = load_run(trained.workdir)
    alone = evaluate(run, params)
    config = json.loads((workdir / "config.json").read_text())
    config["batch_size"], config["data"]["backend"] = 5, "tfdata"
    (workdir / "config.json").write_text(json.dumps(config))
    other, same, _ = load_run(workdir)
    first, second, both = evaluate_together([run, other], [params, same])
    for result in (first, second, both):
        assert result["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert result["top1_error"] == alone["top1_error"]


def test_the_evaluation_never_has_the_name_of_training(trained):
    def name(train_split, eval_split):
        run = load_run(trained.workdir)[0]
        config, spec = override(run.config, {"data.eval_split": eval_split}), run.data.spec
        opened = dataclasses.replace(
            run.data, spec=dataclasses.replace(spec, train_split=train_split)
        )
        return dataclasses.replace(run, config=config, data=opened).eval_split_name

    assert name("train", "test") == "test"
    assert name("train[:90%]", "validation[:50%]") == "validation"
    assert name("train", "test[:1]+validation") == "test+validation"
    assert name("train[:90%]", "train[90%:]") == "eval"
    assert name("train", "train") == "eval"
    assert name("training", "training[:5]") == "eval"
    assert name("training", "train") == "eval"  # as the lines of training are called


def test_the_last_layer_is_matched_to_other_classes_by_name(trained, copy):
    _, pictures = copy
    for split in ("train", "test"):
        (pictures / split / "astronaut").rename(pictures / split / "Zebra")
    run, said = assemble(config_of(trained, pictures)), []
    fresh = run.fresh_state().params
    began = begin_from(trained.workdir, run, fresh, said.append)
    np.testing.assert_array_equal(began["fc8"]["kernel"], fresh["fc8"]["kernel"])
    assert "7 layers" in said[0]
    assert "fc8 keeps its initial weights: the classes there are astronaut" in said[1]

    run = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, class_names=("rocket", "coffee", "gravel", "astronaut")),
    )
    began = begin_from(trained.workdir, run, fresh, said.append)
    kernel = open_pretrained(trained.workdir).params["fc8"]["kernel"]
    np.testing.assert_array_equal(began["fc8"]["kernel"], np.asarray(kernel)[:, [3, 1, 2, 0]])
    assert "by the names of the classes" in said[-1]


def test_a_damaged_recipe_is_said(trained, copy, capsys):
    workdir, _ = copy
    (workdir / "recipe.npz").write_bytes(b"half")
    assert open_pretrained(workdir).class_names[0] == "astronaut"
    assert "recipe.npz' is damaged" in capsys.readouterr().err
