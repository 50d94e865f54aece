"""How far loops run ahead of the devices."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.assemble import assemble
from alexnet_jax.config import load_config, override
from alexnet_jax.evaluate import evaluate_together
from alexnet_jax.runtime.ahead import PROGRAMS_AHEAD, Ahead


def test_what_was_waited_for_comes_back_in_order():
    ahead = Ahead(limit=2)
    assert [ahead.add(number) for number in range(4)] == [[], [], [0], [1]]
    assert ahead.finish() == [2, 3]


def test_each_hands_on_all_results():
    assert list(Ahead().each(iter(range(9)))) == list(range(9))


@pytest.mark.parametrize("together", [1, 3])
def test_an_evaluation_waits_for_its_devices(trained, together):
    """Each batch takes 10 ms, so that a loop that never waits would be all of them ahead."""

    def slowly(log_probs):
        time.sleep(0.01)
        return np.asarray(log_probs)

    config = override(load_config(trained.config_file), {"batch_size": 3})
    run, results, running = assemble(config), [], []

    @jax.jit
    def predict(params, batch):
        log_probs = run.predict(params, batch)
        return jax.pure_callback(slowly, log_probs, log_probs)

    def watched(params, batch):
        running.append(sum(not each.is_ready() for each in results))
        results.append(predict(params, batch))
        return results[-1]

    slow = dataclasses.replace(run, predict=watched)
    params = run.fresh_state().params
    evaluate_together([slow] * together, [params] * together)
    assert len(running) == 12 * together
    assert max(running) <= PROGRAMS_AHEAD
    assert jnp.isfinite(results[-1]).all()
