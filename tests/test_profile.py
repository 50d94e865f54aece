"""--profile: which steps are traced, and where the trace lies."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.records import profile


@pytest.mark.parametrize("text", ["10", "5:3", "0:3", "a:b", "1:2:3", ":", "-1:2"])
def test_what_is_no_range_of_steps_is_refused(text):
    with pytest.raises(UserError, match=f"--profile={text}: write the first and the last step"):
        profile.parse(text)


def test_steps_that_the_run_does_not_make_are_refused():
    steps = profile.parse("10:20")
    profile.check(steps, done=9, total=20)
    profile.check(None, done=9, total=20)
    for done, total in ((10, 30), (0, 19)):
        with pytest.raises(UserError, match=f"makes steps {done + 1} to {total} only"):
            profile.check(steps, done=done, total=total)


@pytest.mark.parametrize("last", [3, 5])
def test_the_trace_holds_these_steps(tmp_path, capsys, last):
    with profile.tracing((2, last), tmp_path / "profile") as begun:
        begun(0, {})
        for step in range(1, 5):  # the run is stopped before step 5

            def work(x, step=step):
                return x * step

            work.__name__ = f"step_{step}"
            begun(step, {"x": jax.jit(work)(jnp.ones(8))})
    assert f"trace of steps 2 to {last}: {tmp_path / 'profile'}" in capsys.readouterr().out
    (file,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    names = json.dumps(json.loads(gzip.decompress(file.read_bytes())))
    traced = {step for step in range(1, 5) if f"step_{step}" in names}
    assert traced == set(range(2, min(last, 4) + 1))
