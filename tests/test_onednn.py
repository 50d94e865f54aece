"""Which jaxlib's oneDNN is called: known ones, others after a trial; what a run says of it."""

import dataclasses
import subprocess

import jax
import jaxlib
import pytest

from alexnet_jax.bench.common import synthetic_run
from alexnet_jax.config import load_config
from alexnet_jax.models import conv, onednn_trial
from alexnet_jax.records import notes
from alexnet_jax.records.notes import opening_lines
from alexnet_jax.runtime import jax_versions
from tests import tiny

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="oneDNN is for CPUs")


@pytest.fixture
def unknown(monkeypatch, tmp_path):
    """A jaxlib that is not among the known ones, and an empty cache; counts the trials."""
    started = []

    def run(*arguments, **options):
        started.append(arguments)
        return original(*arguments, **options)

    original = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(jax_versions, "ONEDNN_JAXLIBS", ())
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path))
    onednn_trial.has_onednn.cache_clear()
    yield started
    onednn_trial.has_onednn.cache_clear()


def known_again():
    """As in a process that starts anew."""
    onednn_trial.has_onednn.cache_clear()
    return onednn_trial.has_onednn()


def test_this_jaxlib_is_known():
    """A new one is tried (tests/test_ops.py on it), and listed."""
    assert jaxlib.__version__ in jax_versions.ONEDNN_JAXLIBS


def test_an_unknown_jaxlib_is_tried_once(unknown):
    found = [known_again(), known_again()]
    assert found == [onednn_trial.agrees()] * 2
    assert len(unknown) == 1


@pytest.mark.parametrize(
    ("answer", "starts"),
    [
        (subprocess.CompletedProcess([], -6), 1),  # abort(), as by a field that is not known
        (subprocess.TimeoutExpired([], 120), 2),  # which says nothing of jaxlib
        (OSError("no process can be started"), 2),
    ],
)
def test_where_the_trial_fails_xlas_are_used(unknown, monkeypatch, answer, starts):
    def end(*arguments, **_):
        unknown.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", end)
    assert [known_again(), known_again()] == [False, False]
    assert len(unknown) == starts


def test_a_run_says_which_convolutions_it_uses(monkeypatch, tmp_path):
    config = load_config(tiny.make_config(tmp_path / "tiny.py", tmp_path))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, towers=1))
    run = synthetic_run(config)

    def said() -> str:
        """The one line; the synthetic images are fewer than their classes, which another says."""
        (line,) = (line for line in opening_lines(run) if "convolutions" in line)
        return line

    assert said() == "convolutions: 5 by XLA"  # all are too small
    images = jax.ShapeDtypeStruct((16, 32, 32, 3), "float32")
    net = jax.jit(lambda params, images: run.model.apply({"params": params}, images)[0])
    for least, calls in ((0, 5), (2**20, 3)):
        monkeypatch.setattr(conv, "LEAST_WORK", least)
        program = net.lower(run.abstract_state().params, images).as_text()
        assert program.count(jax_versions.ONEDNN_CALL) == calls * onednn_trial.has_onednn()
        jax.clear_caches()
        if onednn_trial.has_onednn():
            counts = [f"{calls} by oneDNN", *[f"{5 - calls} by XLA"] * (calls < 5)]
            assert said() == f"convolutions: {', '.join(counts)}"
    monkeypatch.setattr(notes, "has_onednn", lambda: False)
    assert "cannot be called in jaxlib" in said()
