"""Garbage in flags, records and caches works or gets one line, executes nothing, touches nothing.

Images are fuzzed in test_data_decode.py, the bytes of checkpoints in test_checkpoint.py.
"""

import contextlib
import io
import os
import pickle
import shutil
import sys
from unittest import mock

import numpy as np
import pytest
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_jax import cli, data
from alexnet_jax.assemble import assemble, resolve
from alexnet_jax.config import check_same_run, flatten, load_config, override
from alexnet_jax.data import cache
from alexnet_jax.errors import UserError
from alexnet_jax.records import checkpoint, metrics
from alexnet_jax.train import train
from tests import tiny
from tests.test_checkpoint import reseal

FLAGS_TRIED, FLAGS_TRIED_SLOWLY, RECORDS_TRIED = 40, 400, 200


def fuzz(cases):
    """The same cases in every run of the tests."""
    return settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return tiny.make_config(folder / "tiny.py", tiny.make_folder(folder / "photographs"))


@pytest.fixture(scope="module")
def short_run(config_file, tmp_path_factory):
    """A run of two steps, saved after both; copy it before changing anything."""
    workdir = tmp_path_factory.mktemp("short") / "run"
    config = override(load_config(config_file), {"num_train_steps": 2, "log_every_steps": 1})
    assert train(config, workdir) == 0
    return workdir


@contextlib.contextmanager
def one_line():
    """What is done here works, or is a UserError of one line."""
    message = ""
    try:
        yield
    except UserError as error:
        message = str(error)
    assert "\n" not in message, message


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# Flags


def parse(argv):
    """The configuration that the command line `argv` gives, as `cli.run` would parse it."""
    parsed = flags.FlagValues()
    with mock.patch.object(flags, "FLAGS", parsed), mock.patch.object(sys, "argv", argv):
        cli.define_config()
        cli._parse(argv, takes_files=False, required=(), instead_of_config=())
    return parsed["config"].value


NUMBERS = ("-1", "0", "1", "2", "3", "5", "8", "32", "1000000", "2147483648", "1" + 30 * "0")
REALS = (*NUMBERS, "nan", "inf", "-inf", "1e400", "0.5", "-0.5", "1.5", "1e-30")
TRUTHS = ("True", "False", "true", "no", "2")
TUPLES = (
    *("()", "(0,)", "(1, 2)", "(-1, 5)", "('conv4',)", "('conv1', 0.5, 1)", "(('fc8', 0, 1),)"),
    *("('conv4', 'conv3')", "(('conv1', 0.1),)", "((1, 2), 3)", "(1.5, nan)", "(0.5, 1)"),
)
WORDS = (
    *("", "none", "data", "towers", "hybrid", "image", "channel", "skip", "tanh", "avg", "lars"),
    *("epochs", "dexp", "plateau", "train", "test", "tfdata", "bfloat16", "int8", "source", "he"),
    *("folder:", "folder:/dev/null", "folder:/", "folder:\x7f", "../..", "a/b:1", "no-such-set"),
)
ANY = (*REALS, *TRUTHS, *TUPLES, *WORDS)
OF_TYPE = {bool: TRUTHS, int: NUMBERS, float: REALS, tuple: TUPLES, str: WORDS}


def draw_overrides(drawn, fields):
    """One to three flags, mostly with values of their field's type, so that many are taken."""
    names = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3, unique=True)
    return [
        f"--config.{name}="
        + drawn.draw(
            st.sampled_from(OF_TYPE.get(type(fields[name]), ANY))
            | st.sampled_from(OF_TYPE.get(type(fields[name]), ANY))
            | st.text(max_size=12)
        )
        for name in drawn.draw(names)
    ]


@fuzz(FLAGS_TRIED)
@given(drawn=st.data())
def test_any_override_works_or_gets_one_line(config_file, drawn):
    check_overrides(config_file, drawn)


@pytest.mark.slow
@fuzz(FLAGS_TRIED_SLOWLY)
@given(drawn=st.data())
def test_many_overrides_work_or_get_one_line(config_file, drawn):
    check_overrides(config_file, drawn)


def check_overrides(config_file, drawn):
    """Parses and assembles some overrides, loads a batch and traces a step."""
    overrides = draw_overrides(drawn, flatten(load_config(config_file)))
    before = contents(config_file.parent)
    with one_line():
        config = parse(["main", f"--config={config_file}", *overrides])
        run = assemble(config)
        resolve(config, run.model)
        state = run.abstract_state()
        shardings = run.layout.batch_shardings()
        batches = data.train_batches(
            run.data, seed=config.seed, batch_size=config.batch_size, shardings=shardings
        )
        run.train_step.lower(state, next(batches))
    assert contents(config_file.parent) == before


# Records of a run


damage = st.tuples(
    st.sampled_from(["replace", "cut", "flip", "insert"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(max_size=40) | st.sampled_from([b"\xff\xfe", b"[" * 50_000, b'{"step": "x"}\n']),
)


def damaged(content, kind, where, garbage):
    place = int(where * len(content))
    if kind == "replace":
        return garbage
    if kind == "cut":
        return content[:place]
    if kind == "insert":
        return content[:place] + garbage + content[place:]
    return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


@fuzz(RECORDS_TRIED)
@given(name=st.sampled_from(["config.json", "metrics.jsonl", "events"]), damage=damage)
def test_garbage_in_the_records_of_a_run_is_one_line_or_no_matter(
    config_file, short_run, tmp_path_factory, name, damage
):
    folder = tmp_path_factory.mktemp("records")
    workdir = folder / "run"
    shutil.copytree(short_run, workdir, ignore=shutil.ignore_patterns("checkpoints"))
    (path,) = workdir.glob(f"{name}*")
    path.write_bytes(damaged(path.read_bytes(), *damage))
    config = load_config(config_file)
    with one_line():
        check_same_run(config, workdir)
    with one_line():
        metrics.open_writer(workdir, resume_step=2).close()
    assert {each.name for each in folder.iterdir()} == {"run"}
    shutil.rmtree(folder)


# Bombs


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def bomb(tmp_path):
    """The pickle as bytes, and in an npz file with the names of the arrays in `like`."""
    mark = tmp_path / "it went off"

    def npz(like):
        with np.load(like, allow_pickle=False) as file:
            names = file.files
        content = io.BytesIO()
        np.savez(content, **{name: np.array([Bomb(mark)], dtype=object) for name in names})
        return content.getvalue()

    yield pickle.dumps(Bomb(mark)), npz
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb is a bomb"


@pytest.mark.parametrize("backend", ["device", "tfdata"])
def test_pickles_in_the_cache_folder_are_not_loaded(
    config_file, tmp_path, monkeypatch, bomb, backend
):
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "cache"))
    config = override(load_config(config_file), {"data.backend": backend})
    expected = data.statistics(data.open_data(config.data))
    files = list(cache.folder().rglob("*.npz"))
    assert len(files) == {"device": 3, "tfdata": 1}[backend]
    for make in (bomb[1], lambda like: bomb[0]):
        for file in files:
            whole = file.read_bytes()
            content = make(file)
            assert content != whole
            file.write_bytes(content)
            found = data.statistics(data.open_data(config.data))
            np.testing.assert_array_equal(found.mean_image, expected.mean_image)
            file.write_bytes(whole)


def test_a_pickle_for_a_configuration_or_records_is_one_line(
    config_file, short_run, tmp_path, bomb
):
    for name in ("config.json", "metrics.jsonl"):
        workdir = tmp_path / name
        shutil.copytree(short_run, workdir)
        (workdir / name).write_bytes(bomb[0] + b"\n" + bomb[0])
        with pytest.raises(UserError):
            train(load_config(config_file), workdir)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_pickle_in_a_checkpoint_is_damage(short_run, tmp_path, bomb, sealed):
    """Also where the digest agrees with it."""
    step = short_run / "checkpoints/2"
    names = [path.relative_to(step) for path in sorted(step.rglob("*")) if path.is_file()]
    names = [name for name in names if name.name != "SHA256SUMS"]
    assert len(names) > 10
    for i, name in enumerate(names):
        workdir = tmp_path / str(i)
        shutil.copytree(short_run, workdir)
        (workdir / "checkpoints/2" / name).write_bytes(bomb[0])
        if sealed:
            reseal(workdir / "checkpoints/2")
        opened = checkpoint.open_checkpoints(workdir, keep=1)
        with one_line():
            checkpoint.restore_latest(opened, {}, {}, lambda line: None)
        shutil.rmtree(workdir)


def test_a_pickle_for_an_image_is_a_bad_image(config_file, tmp_path, bomb):
    shutil.copytree(config_file.parent / "photographs", tmp_path / "photographs")
    (tmp_path / "photographs/train/coffee/03.png").write_bytes(bomb[0])
    config = load_config(tiny.make_config(tmp_path / "tiny.py", tmp_path / "photographs"))
    with pytest.raises(UserError, match="not an image in a known format"):
        assemble(config)
