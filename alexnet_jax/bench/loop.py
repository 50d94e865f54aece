"""Finds the time that the training loop adds to the slower of the step and the input."""

import contextlib
import dataclasses
import io
import json
import statistics
import tempfile
from pathlib import Path

from alexnet_jax.assemble import assemble
from alexnet_jax.bench import timing
from alexnet_jax.bench.common import (
    Options,
    Table,
    compile_step,
    first_batch,
    milliseconds,
    stepper,
)
from alexnet_jax.bench.input import pipeline
from alexnet_jax.config import NEVER, Config
from alexnet_jax.train import train

ROUNDS = 3


def measure(config: Config, options: Options) -> dict:
    """Times the loop of main.py without evaluations and checkpoints before its end."""
    steps = options.steps
    config = dataclasses.replace(
        config,
        num_train_steps=steps,
        log_every_steps=max(1, min(config.log_every_steps, steps // 4)),
        eval_every_steps=NEVER,
        checkpoint_every_steps=NEVER,
    )
    run = assemble(config)
    batch = first_batch(run)
    step = stepper(run, compile_step(run, batch), batch)
    batches = pipeline(run)

    times = {"step": [], "input": [], "loop": []}
    for turn in range(-1, min(options.repeats, ROUNDS)):
        took = (
            timing.elapsed(step, steps) / steps,
            timing.elapsed(batches, steps) / steps,
            _loop_seconds(config),
        )
        if turn >= 0:  # The first turn is a warm-up.
            for name, seconds in zip(times, took, strict=True):
                times[name].append(seconds)
    slower = [max(pair) for pair in zip(times["step"], times["input"], strict=True)]
    result = {
        "steps": steps,
        "log_every_steps": config.log_every_steps,
        "images_per_second": config.batch_size / statistics.median(times["loop"]),
        "overhead": timing.ratio(times["loop"], slower) - 1,
    }
    for name, values in times.items():
        result |= timing.spread(values, f"{name}_")
    return result


def tables(result: dict) -> list[Table]:
    """Makes a table of the times of a step of the loop and of its parts."""
    rows = [(name, milliseconds(result, f"{name}_")) for name in ("step", "input", "loop")]
    overhead = 100 * result["overhead"]
    note = f"the loop takes {overhead:+.1f}% over the slower of step and input"
    return [Table(f"train, {result['steps']} steps", ("", "a step"), rows, note)]


def _loop_seconds(config: Config) -> float:
    """Returns the seconds of one step of a separate run, which prints nothing."""
    with tempfile.TemporaryDirectory() as workdir:
        with contextlib.redirect_stdout(io.StringIO()):
            train(config, workdir)
        result = json.loads((Path(workdir) / "result.json").read_text())
    return config.batch_size / result["images_per_second"]
