"""Estimates of `bench compile` beside what the card takes: the operations that cost most.

    python -m experiments.estimates --config=FILE [--config.FIELD=VALUE …] [--target=CARD]
        [--steps=N] [--json=FILE]

The train step is compiled for the device that is here, as `bench compile` compiles it for one that
isn't, and run on made-up images under JAX's profiler. Each of its operations has its own name in
the program and in the trace, so both times of it stand in one row. On a GPU the operations must be
launched one by one: XLA_FLAGS=--xla_gpu_enable_command_buffer= switches CUDA's graphs off, in which
they lose their names.
"""

import statistics
import tempfile
from collections import Counter
from pathlib import Path

import jax
from absl import flags
from ml_collections.config_flags import get_config_filename

from alexnet_jax import cli, console
from alexnet_jax.bench import estimate, hlo, target
from alexnet_jax.bench.__main__ import overrides
from alexnet_jax.bench.common import Table, first_batch, synthetic_run
from alexnet_jax.bench.compile import FLAGS
from alexnet_jax.config import Config
from alexnet_jax.errors import UserError
from alexnet_jax.records import files, provenance
from alexnet_jax.runtime import jax_versions

LARGEST = 10
WARM_UP = 3  # steps before the trace


def measure(config: Config, card: target.Target, steps: int) -> dict:
    """Compiles the step, runs it `steps` times under the profiler, and matches the times.

    Returns:
        'estimated_us' and 'measured_us' of all operations, 'step_us' from one step's first
        operation to its last, and 'largest', a dict each.

    Raises:
        UserError: The trace has none of the program's operations.
    """
    run = synthetic_run(config)
    batch = first_batch(run)
    on_gpu = jax.default_backend() == "gpu"
    lowered = run.train_step.lower(run.abstract_state(), batch)
    with jax_versions.without_cache():
        compiled = lowered.compile(FLAGS if on_gpu else None)
    costs = estimate.costs(hlo.operations(compiled.as_text()), card, run.model.dtype)
    state = run.fresh_state()
    with tempfile.TemporaryDirectory() as folder:
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                jax.block_until_ready(state)
                jax.profiler.start_trace(folder)
            state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        took = traced(Path(folder))
    rows = [_row(cost, took, steps) for cost in sorted(costs, key=lambda cost: -cost.us)]
    if not any(row["measured_us"] for row in rows):
        raise UserError("the profiler's trace has none of the program's operations")
    return {
        "target": card.name,
        "steps": steps,
        "estimated_us": sum(row["us"] for row in rows),
        "measured_us": sum(row["measured_us"] for row in rows),
        "largest": rows[:LARGEST],
    }


def traced(folder: Path) -> Counter:
    """Returns the microseconds of each operation, by its name, in all of a trace of one device."""
    (path,) = folder.rglob("*.xplane.pb")
    took = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and event.duration_ns:
                    took[stats["hlo_op"]] += event.duration_ns / 1e3
    return took


def _row(cost: estimate.Cost, took: Counter, steps: int) -> dict:
    each = cost.operation
    return {
        "name": each.name,
        "layer": cost.layer,
        "kind": cost.kind,
        "us": cost.us,
        "bytes": cost.moved,
        "measured_us": took[each.name] / steps,
    }


def table(result: dict) -> Table:
    """Lays out the estimate and the measurement of the operations that were to cost most."""
    rows = [
        (
            row["name"],
            row["layer"] or row["kind"],
            f"{row['us']:,.0f}",
            f"{row['measured_us']:,.0f}",
            f"{row['measured_us'] / row['us']:.2f}" if row["us"] else "",
        )
        for row in result["largest"]
    ]
    ratios = [row["measured_us"] / row["us"] for row in result["largest"] if row["us"]]
    rows.append(("all", "", f"{result['estimated_us']:,.0f}", f"{result['measured_us']:,.0f}", ""))
    note = f"measured over estimated, the median of these: {statistics.median(ratios):.2f}"
    header = ("", "layer", "estimated us", "measured us", "ratio")
    return Table(f"one step, estimated for the {result['target']}", header, rows, note)


def main(_) -> None:
    """Measures, prints, and writes the result where asked."""
    given = flags.FLAGS
    path = get_config_filename(given["config"])
    result = measure(given.config, target.load(given.target), given.steps)
    shown = table(result)
    console.table(shown.title, shown.header, shown.rows)
    console.say(shown.note)
    if given.json:
        found = {"mode": "estimates", "config": path, "overrides": overrides(given.config, path)}
        files.write_json(given.json, found | result | provenance.collect())


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("target", "h100", "The card whose estimates to compare with.")
    flags.DEFINE_integer("steps", 20, "Steps under the profiler.")
    cli.define_path("json", None, "A file to write the result to.", result=True)
    cli.run(main)
