"""What happens to a run when a step, an image, the disk or a path is not as it should be."""

import json
import shutil
import subprocess
import tarfile

import jax
import numpy as np
import pytest

from alexnet_jax import data
from alexnet_jax import evaluate as evaluation
from alexnet_jax import train as training
from alexnet_jax.data.plan import epoch_plan
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import load_run
from alexnet_jax.records import restore
from alexnet_jax.train import train
from tests import tiny
from tests.test_mistakes import line_of
from tests.test_train import assert_same_run, final_params, load

BACKENDS = ("device", "tfdata")


@pytest.fixture(scope="module")
def config_file(trained):
    return trained.config_file


@pytest.fixture(scope="module")
def whole_run(trained):
    """A run that nothing disturbs: 15 steps, a checkpoint after each 5."""
    return trained.workdir


def main(config_file, workdir, *flags):
    return tiny.command(
        "alexnet_jax.main", f"--config={config_file}", f"--workdir={workdir}", *flags
    )


def saved_steps(workdir):
    return restore.steps(workdir) if workdir.exists() else []


# Steps that are not finite


@pytest.fixture
def spoil(monkeypatch):
    """spoil(8, 9): the batches of these steps get an infinite weight."""
    whole = data.train_batches

    def spoil(*steps):
        def train_batches(*args, start_step, **kwargs):
            batches = whole(*args, start_step=start_step, **kwargs)
            for step, batch in enumerate(batches, start=start_step + 1):
                mask = batch["mask"]
                yield batch | {"mask": mask.at[3].set(np.inf)} if step in steps else batch

        monkeypatch.setattr(data, "train_batches", train_batches)

    return spoil


@pytest.mark.parametrize("bad_step", [1, 8, 10, 15])
def test_a_step_that_is_not_finite_stops_the_run_and_is_saved_nowhere(
    config_file, tmp_path, spoil, bad_step
):
    """Checkpoints are due after 5, 10 and 15."""
    workdir = tmp_path / "run"
    spoil(bad_step)
    last = (bad_step - 1) // 5 * 5
    with pytest.raises(UserError, match=f"step {bad_step} is not finite.*from step {last}") as line:
        train(load(config_file), workdir)
    assert "\n" not in str(line.value)
    assert saved_steps(workdir) == list(range(5, last + 1, 5))
    assert not (workdir / "result.json").exists()
    for step in saved_steps(workdir):
        _, params, _ = load_run(workdir, step)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params)))

    with np.load(workdir / "nonfinite" / f"{bad_step}.npz", allow_pickle=False) as kept:
        order, crops = epoch_plan(0, (bad_step - 1) // 5, 80, 4, crop=True, flip=True)
        start = (bad_step - 1) % 5 * 16
        np.testing.assert_array_equal(kept["ids"], order[start : start + 16])
        np.testing.assert_array_equal(kept["crops"], crops[kept["ids"]])
        np.testing.assert_array_equal(kept["labels"], kept["ids"] // 20)  # 20 of each class
        assert not np.isfinite(kept["loss"])
        assert kept["key"].shape == (2,)
        assert json.loads(kept["meta"].item()) == {"step": bad_step, "replay_from": last}


def test_stopped_by_a_step_and_started_again_without_it_equals_one_run(
    config_file, whole_run, tmp_path, spoil, monkeypatch
):
    spoil(8)
    with pytest.raises(UserError, match="step 8"):
        train(load(config_file), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "nonfinite")
    (tmp_path / "run" / "nonfinite").touch()
    with pytest.raises(UserError, match=r"step 8.*its batch could not be written"):  # it replays
        train(load(config_file), tmp_path / "run")
    monkeypatch.undo()
    assert train(load(config_file), tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", whole_run)


def test_skipped_steps_are_counted_and_survive_a_restart(config_file, tmp_path, spoil):
    """Step 12 is the last of its two logged steps, 13 and 14 are both of theirs."""
    spoil(3, 12, 13, 14)
    config = load(config_file, on_nonfinite="skip")
    assert train(config, tmp_path / "whole") == 0
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["skipped_steps"] == 4
    lines = {line["step"]: line for line in tiny.lines(tmp_path / "whole", split="train")}
    skipped = {step: line.get("skipped") for step, line in lines.items()}
    assert skipped == {2: None, 4: 1, 6: 1, 8: 1, 10: 1, 12: 2, 14: 4, 15: 4}
    assert lines[14]["loss"] is None  # no step to average over
    assert all(line["loss"] > 0 for step, line in lines.items() if step != 14)
    params = final_params(tmp_path / "whole")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))

    half = load(config_file, on_nonfinite="skip", num_train_steps=13)
    assert train(half, tmp_path / "halves") == 0
    assert train(config, tmp_path / "halves") == 0
    resumed = [line for line in tiny.lines(tmp_path / "halves") if line["step"] != 13]
    assert resumed == tiny.lines(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, final_params(tmp_path / "halves"), params)


def test_a_run_that_was_stopped_goes_on_with_skip(config_file, tmp_path, spoil):
    spoil(8)
    with pytest.raises(UserError, match="on_nonfinite=skip"):
        train(load(config_file), tmp_path / "stopped")
    for workdir in (tmp_path / "stopped", tmp_path / "skipping"):
        assert train(load(config_file, on_nonfinite="skip"), workdir) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "skipping")


@tiny.unoptimised()  # Each learning rate is another program.
def test_a_learning_rate_that_blows_up(config_file, tmp_path):
    done = main(config_file, tmp_path / "a", "--config.optim.learning_rate=1e12")
    assert "step 2 is not finite" in line_of(done)
    assert (tmp_path / "a" / "nonfinite" / "2.npz").exists()
    assert saved_steps(tmp_path / "a") == []

    # So large that the first step's update overflows, though its loss and gradient are finite.
    done = main(config_file, tmp_path / "b", "--config.optim.learning_rate=1e38")
    assert "step 1 is not finite" in line_of(done)


@tiny.unoptimised()
def test_a_run_of_nothing_but_skipped_steps_ends(config_file, tmp_path):
    flags = ("--config.optim.learning_rate=1e38", "--config.on_nonfinite=skip")
    done = main(config_file, tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    assert "as not finite: 15" in done.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped_steps"] == 15


def test_a_run_of_an_earlier_commit_goes_on(config_file, whole_run, tmp_path):
    """tests/data/run_v1.tar.gz: this test's run at commit 4188a50, stopped after step 5."""
    with tarfile.open(tiny.ROOT / "tests/data/run_v1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    workdir = tmp_path / "run"
    path = workdir / "config.json"
    path.write_text(path.read_text().replace("FOLDER", str(config_file.parent / "photographs")))
    done = main(config_file, workdir)
    assert done.returncode == 0, done.stderr
    assert "goes on from step 5" in done.stdout
    last, expected = tiny.lines(workdir)[-1], tiny.lines(whole_run)[-1]
    assert last["loss"] == pytest.approx(expected["loss"], rel=1e-2)


# Images that are not


@pytest.fixture
def spoilt(config_file, tmp_path):
    """A configuration on the same photographs, three broken, and a file of no known kind."""
    folder = tmp_path / "spoilt"
    shutil.copytree(config_file.parent / "photographs", folder)
    (folder / "train/astronaut/03.png").write_bytes(b"")
    cut = folder / "train/gravel/07.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "test/coffee/02.png").write_text("no image")
    (folder / "train/rocket/photo.heic").touch()
    return tiny.make_config(tmp_path / "spoilt.py", folder)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_image_stops_the_run_with_its_name_and_why(spoilt, tmp_path, backend):
    done = main(spoilt, tmp_path / "run", f"--config.data.backend={backend}")
    line = line_of(done)
    assert "train/astronaut/03.png: the file is empty" in line
    assert "data.bad_images" in line
    assert saved_steps(tmp_path / "run") == []


def test_bad_images_are_left_out_counted_and_listed_the_same_in_every_run(
    spoilt, tmp_path, capsys, monkeypatch
):
    def run(workdir, **changes):
        monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / f"cache {changes['data__backend']}"))
        assert train(load(spoilt, data__bad_images="skip", **changes), tmp_path / workdir) == 0
        left_out = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
        result = json.loads((tmp_path / workdir / "result.json").read_text())
        assert result["bad_images"] == {"test": 1, "train": 2}
        assert result["final"]["count"] == 35
        return left_out

    first = run("first", data__backend="tfdata")
    names = ("rocket/photo.heic", "coffee/02.png", "astronaut/03.png", "gravel/07.png")
    for line, name in zip(first, names, strict=True):
        assert name in line
    # From the cache, where no image need be read, and in a run of the last steps alone.
    opened = data.open_data(load(spoilt, data__bad_images="skip", data__backend="tfdata").data)
    data.statistics(opened)
    assert len(opened.bad["train"]) == 2
    assert run("first", data__backend="tfdata", num_train_steps=17) == first
    assert run("device", data__backend="device") == first
    assert tiny.lines(tmp_path / "device") == [
        line for line in tiny.lines(tmp_path / "first") if line["step"] <= 15
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_image_is_an_error_again_where_an_earlier_run_left_it_out(spoilt, tmp_path, backend):
    config = load(spoilt, data__bad_images="skip", data__backend=backend, num_train_steps=1)
    assert train(config, tmp_path / "run") == 0
    with pytest.raises(UserError, match=r"03\.png: the file is empty"):
        train(load(spoilt, data__backend=backend), tmp_path / "other")


def test_an_evaluation_that_fails_costs_no_epoch(
    config_file, whole_run, tmp_path, capsys, monkeypatch
):
    """The first one as with a broken image that tfdata meets, the last one for want of memory."""
    workdir, failures = tmp_path / "run", [UserError("an image"), None, None, MemoryError()]

    def evaluate(run, params, **options):
        if failures and (failure := failures.pop(0)):
            raise failure
        return evaluation.evaluate(run, params, **options)

    monkeypatch.setattr(training, "evaluate", evaluate)
    with pytest.raises(UserError, match="an image"):
        train(load(config_file), workdir)
    assert saved_steps(workdir) == [5]
    with pytest.raises(MemoryError):
        train(load(config_file), workdir)
    assert saved_steps(workdir) == [5, 10, 15]
    assert train(load(config_file), workdir) == 0
    assert_same_run(workdir, whole_run)
    said = capsys.readouterr().out
    assert [said.count(f"epoch {n}/3") for n in (1, 2, 3)] == [1, 1, 1]
    assert "nan" not in said


# Disks that are full


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of so many KiB, or makes it larger or smaller."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = False

    def mount(kib):
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={kib}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        try:
            mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            pytest.skip("mounting a tmpfs is not allowed here (it takes root)")
        return disk

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


ONE_CHECKPOINT = 400  # KiB: one, of 220 to 280, fits beside the records; two do not


def test_a_full_disk_stops_the_run_in_one_line_and_costs_no_checkpoint(
    config_file, whole_run, small_disk
):
    workdir = small_disk(ONE_CHECKPOINT) / "run"
    line = line_of(main(config_file, workdir))
    assert "No space left on device" in line
    assert saved_steps(workdir) == [5]

    small_disk(10_000)
    done = main(config_file, workdir)
    assert done.returncode == 0, done.stderr
    assert "goes on from step 5" in done.stdout
    assert_same_run(workdir, whole_run)


def test_a_run_goes_on_without_saving_if_asked_to(config_file, whole_run, small_disk):
    workdir = small_disk(ONE_CHECKPOINT) / "run"
    done = main(config_file, workdir, "--config.on_save_error=continue")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: saving checkpoint") == 2
    assert saved_steps(workdir) == [5]
    assert tiny.lines(workdir) == tiny.lines(whole_run)
    final = json.loads((workdir / "result.json").read_text())["final"]
    assert final == json.loads((whole_run / "result.json").read_text())["final"]


@pytest.mark.parametrize("kib", range(4, 84, 20))
def test_a_disk_full_from_the_start_is_one_line(config_file, small_disk, kib):
    """At the lock, the configuration, the events, the metrics or the first checkpoint."""
    assert "No space left on device" in line_of(main(config_file, small_disk(kib) / "run"))


# Places


def test_paths_with_spaces_unicode_and_symbolic_links(config_file, whole_run, tmp_path):
    place = tmp_path / "größte Bilder – 画像"
    place.mkdir()
    shutil.copytree(config_file.parent / "photographs", place / "alle Photos")
    (tmp_path / "link to photos").symlink_to(place / "alle Photos")
    config = tiny.make_config(place / "konfig ü.py", tmp_path / "link to photos")
    (tmp_path / "link.py").symlink_to(config)
    (place / "läufe").mkdir()
    (tmp_path / "runs link").symlink_to(place / "läufe")

    workdir = tmp_path / "runs link" / "erster Lauf 1 %s {x}"
    done = main(tmp_path / "link.py", workdir)
    assert done.returncode == 0, done.stderr
    assert tiny.lines(workdir) == tiny.lines(whole_run)
    assert saved_steps(place / "läufe" / workdir.name) == [5, 10, 15]
    done = tiny.command("alexnet_jax.evaluate", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert str(workdir) in done.stdout
