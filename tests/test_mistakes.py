"""What mistakes get: one clear line on stderr, a non-zero exit, no traceback."""

import pytest

from tests import tiny

MAIN, EVALUATE = "alexnet_jax.main", "alexnet_jax.evaluate"
BROKEN = "def get_config():\n    return 1 / 0\n"


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
    "unknown dtype of sums": (["--config.mesh.reduce_dtype=bf16"], "mesh.reduce_dtype 'bf16'"),
    "empty folder": (["--config.data.name=folder:/tmp"], "/tmp"),
    "too few classes": (["--config.model.num_classes=2"], "has 4 classes"),
    "images too small": (
        ["--config.data.image_size=8", "--config.model.pool_overhang=false"],
        "too small",
    ),
    "ImageNet without its archives": (
        ["--config=configs/imagenet2012.py", "--config.data.data_dir=FOLDER/empty"],
        "ILSVRC2012_img_train.tar",
    ),
    "a configuration with an error in it": (["--config=FOLDER/broken.py"], "ZeroDivisionError"),
    "an empty work directory": (["--workdir="], "--workdir is empty"),
    "a name too long": (["--workdir=" + "n" * 300], "cannot be used: File name too long"),
    "a file for a work directory": (["--workdir=FOLDER/tiny.py/run"], "tiny.py is no folder"),
    "evaluation where no run is": ([EVALUATE], "no run and no weights in"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """{case: (what its command said, its work directory)}."""
    folder = tmp_path_factory.mktemp("mistakes")
    config = tiny.make_config(folder / "tiny.py", tiny.make_folder(folder / "photographs", 8, 2))
    (folder / "broken.py").write_text(BROKEN)
    lines, workdirs = [], {name: folder / f"run{i}" for i, name in enumerate(CASES)}
    for name, (arguments, _) in CASES.items():
        given = [each.replace("FOLDER", str(folder)) for each in arguments]
        module = EVALUATE if given == [EVALUATE] else MAIN
        if module == EVALUATE:
            given = []
        elif given and not given[0].startswith("--config="):
            given = [f"--config={config}", *given]
        lines.append((module, f"--workdir={workdirs[name]}", *given))
    (folder / "outputs").mkdir()
    done = tiny.commands(lines, folder / "outputs")
    return {name: (each, workdirs[name]) for name, each in zip(CASES, done, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_one_line(case, told):
    done, workdir = told[case]
    assert CASES[case][1] in line_of(done)
    assert not (workdir / "checkpoints").exists()


def test_imagenet_says_where_it_looked(told):
    done, workdir = told["ImageNet without its archives"]
    assert str(workdir.parent / "empty") in done.stderr
