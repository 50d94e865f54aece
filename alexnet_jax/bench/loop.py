"""What the training loop costs over the slower of the bare step and the bare input."""

import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

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
from alexnet_jax.train import train

ROUNDS = 3


def measure(config: ConfigDict, options: Options) -> dict:
    """Times the loop of main.py, whole but for evaluations and checkpoints before its end."""
    steps = options.steps
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.num_train_steps = config.eval_every_steps = config.checkpoint_every_steps = steps
        config.log_every_steps = max(1, min(config.log_every_steps, steps // 4))
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
        if turn >= 0:  # the first warms up
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
    """Lays out a step of the loop beside one of each of its parts."""
    rows = [(name, milliseconds(result, f"{name}_")) for name in ("step", "input", "loop")]
    overhead = 100 * result["overhead"]
    note = f"the loop takes {overhead:+.1f}% over the slower of step and input"
    return [Table(f"train, {result['steps']} steps", ("", "a step"), rows, note)]


def _loop_seconds(config: ConfigDict) -> float:
    """Seconds of one step of a run of its own, which prints nothing."""
    with tempfile.TemporaryDirectory() as workdir:
        with contextlib.redirect_stdout(io.StringIO()):
            train(config, workdir)
        result = json.loads((Path(workdir) / "result.json").read_text())
    return config.batch_size / result["images_per_second"]
