"""Compares the speed of N seeds in one program, under `vmap`, with that of N steps in turn.

    python -m experiments.seeds_together --config=configs/bench_imagenette.py [--seeds=3]

The seeds share made-up batches; each has its own parameters, velocities and random key. The command
prints the ratio of both speeds, and appends one line to
experiments/results/seeds_together/results.jsonl with --record.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from alexnet_jax import bench, cli
from alexnet_jax.assemble import Run
from alexnet_jax.bench import timing
from alexnet_jax.config import to_dict
from alexnet_jax.records import files, provenance
from alexnet_jax.runtime.ahead import Ahead
from alexnet_jax.step import TrainState, init_state

RESULTS = Path(__file__).parent / "results" / "seeds_together" / "results.jsonl"


def states(run: Run, seeds: int) -> list[TrainState]:
    """Makes a new state for each seed."""
    return [
        init_state(run.model, run.tx, seed, run.config.data.image_size) for seed in range(seeds)
    ]


def stacked(every: list[TrainState]) -> TrainState:
    """Returns one state whose arrays have the seeds on their first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)


def step_together(run: Run) -> Callable:
    """Returns `step(stacked states, batch)`, which makes a training step for each seed."""
    return jax.jit(jax.vmap(run.train_step, in_axes=(0, None)), donate_argnums=0)


def main(_) -> None:
    """Times both, prints the ratio, and records it with --record."""
    config, seeds = flags.FLAGS.config, flags.FLAGS.seeds
    produced = provenance.collect()
    run = bench.synthetic_run(config)
    batch, step = next(bench.batches(run)), step_together(run)
    separate, together = states(run, seeds), stacked(states(run, seeds))

    def in_turn(count):
        ahead = Ahead()
        for _ in range(count):
            for seed in range(seeds):
                separate[seed], sums = run.train_step(separate[seed], batch)
                ahead.add(sums)
        jax.block_until_ready(separate)

    def at_once(count):
        nonlocal together
        ahead = Ahead()
        for _ in range(count):
            together, sums = step(together, batch)
            ahead.add(sums)
        jax.block_until_ready(together)

    times = timing.take_turns({"in turn": in_turn, "together": at_once}, repeats=5, seconds=2.0)
    ratios = timing.ratios(times["in turn"], times["together"])
    for name, each in times.items():
        print(f"{seeds} seeds {name}: {1e3 * statistics.median(each):.1f} ms a step")
    print(f"together {ratios['ratio']:.2f} times as fast")
    record = {
        **produced,
        "config": to_dict(config),
        "seeds": seeds,
        "in_turn": timing.spread(times["in turn"]),
        "together": timing.spread(times["together"]),
        **ratios,
    }
    if flags.FLAGS.record:
        files.append_json(RESULTS, record)
        print(f"recorded in {RESULTS.relative_to(provenance.ROOT)}")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_integer("seeds", 3, "Seeds to train together.", lower_bound=2)
    flags.DEFINE_boolean(
        "record", False, "Append the result to experiments/results/seeds_together."
    )
    cli.run(main)
