"""What mistakes get: one clear line on stderr, a non-zero exit, no traceback."""

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    return tiny.make_config(folder / "tiny.py", tiny.make_folder(folder / "photographs", 8, 2))


def line_of(done):
    """The error line of a command that failed as it should."""
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr + done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


CASES = {
    "missing file": (["--config=configs/defualt.py"], "did you mean 'configs/default.py'"),
    "no configuration": ([], "--config=configs/default.py"),
    "unknown field": (["--config.data.nme=x"], "did you mean 'data.name'"),
    "unknown field in a flag file": (
        ["--flagfile=tests/data/misspelt.flags"],
        "unknown field --config.bacth_size; did you mean 'batch_size'",
    ),
    "field in the wrong section": (["--config.dropout=0"], "did you mean 'model.dropout'"),
    "ill-typed field": (["--config.batch_size=many"], "batch_size=many"),
    "unknown flag": (["--wrokdir=x"], "workdir"),
    "impossible number": (["--config.num_epochs=0"], "num_epochs=0: must be at least 1"),
    "unknown data set": (["--config.data.name=imagenete"], "imagenette"),
    "unknown net": (["--config.model.name=alexnett"], "alexnet"),
    "unknown activation": (["--config.model.activation=rely"], "model.activation"),
    "unknown schedule": (["--config.optim.schedule=epoch"], "did you mean 'epochs'"),
    "batch too large": (["--config.batch_size=320"], "more than the 32 training examples"),
    "batch that doesn't divide": (
        ["--config.batch_size=12", "--config.mesh.data=8"],
        "take a multiple of 8",
    ),
    "too many devices": (["--config.mesh.data=16"], "needs 16 devices and 8 are here"),
    "towers of one": (["--config.mesh.layout=towers", "--config.model.towers=1"], "one tower"),
    "towers over four": (["--config.mesh.layout=towers", "--config.mesh.model=4"], "over 1 or 2"),
    "empty folder": (["--config.data.name=folder:/tmp"], "/tmp"),
    "too few classes": (["--config.model.num_classes=2"], "has 4 classes"),
    "images too small": (
        ["--config.data.image_size=8", "--config.model.pool_overhang=false"],
        "too small",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line(case, config_file, tmp_path):
    arguments, expected = CASES[case]
    if arguments and not arguments[0].startswith("--config="):
        arguments = [f"--config={config_file}", *arguments]
    done = tiny.command("alexnet_jax.main", f"--workdir={tmp_path / 'run'}", *arguments)
    assert expected in line_of(done)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_imagenet_says_how_to_get_it(tmp_path):
    done = tiny.command(
        "alexnet_jax.main",
        "--config=configs/imagenet2012.py",
        f"--config.data.data_dir={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    line = line_of(done)
    assert "ILSVRC2012_img_train.tar" in line
    assert str(tmp_path) in line


def test_evaluating_where_no_run_is(tmp_path):
    done = tiny.command("alexnet_jax.evaluate", f"--workdir={tmp_path}")
    assert "no run in" in line_of(done)


def test_a_configuration_with_an_error_in_it(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    done = tiny.command("alexnet_jax.main", f"--config={tmp_path / 'broken.py'}")
    assert "ZeroDivisionError" in line_of(done)
