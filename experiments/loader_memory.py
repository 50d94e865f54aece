"""Checks that the loader's memory does not grow: reads batches and records the memory.

    python -m experiments.loader_memory --config=configs/default.py --config.data.backend=tfdata

Each batch is waited for on the device and dropped; no net is trained. The memory is the process's
own: pages of mapped files belong to the kernel, which takes them back when it needs them. The
command prints it now and then, and --record appends one line to
experiments/results/loader_memory/results.jsonl: provenance, the data's fields, [step, MiB] of 100
instants, and the growth in the run's last nine tenths, as the first tenth fills caches and buffers.
"""

import dataclasses
import time
from pathlib import Path

import jax
from absl import flags

from alexnet_jax import cli, data
from alexnet_jax.parallel import MeshSpec, make_layout
from alexnet_jax.records import files, provenance

RESULTS = Path(__file__).parent / "results" / "loader_memory" / "results.jsonl"
SAMPLES = 100

_CONFIG = cli.define_config()
_STEPS = flags.DEFINE_integer("steps", 10_000, "Batches to read.", lower_bound=SAMPLES)


def own_mib() -> float:
    """Returns this process's resident memory without the pages of mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 2**10


def main(_) -> None:
    """Reads batches, and prints and records the memory."""
    config, steps = _CONFIG.value, _STEPS.value
    produced = provenance.collect()
    layout = make_layout(MeshSpec(data=1), towers=1, batch_size=config.batch_size)
    opened = data.open_data(config.data)
    batches = data.train_batches(
        opened,
        seed=config.seed,
        batch_size=config.batch_size,
        shardings=layout.batch_shardings(),
    )
    samples, start = [], time.monotonic()
    for step in range(1, steps + 1):
        jax.block_until_ready(next(batches))
        if step % (steps // SAMPLES) == 0:
            samples.append([step, round(own_mib(), 1)])
        if step % (steps // 10) == 0:
            print(f"step {step}  {samples[-1][1]:,.1f} MiB")
    seconds = time.monotonic() - start
    warm = [mib for step, mib in samples if step > steps / 10]
    growth = warm[-1] - warm[0]
    print(f"{opened.spec.backend}: {growth:+.1f} MiB from step {steps // 10} to {steps}")
    record = {
        **produced,
        "data": dataclasses.asdict(opened.spec),
        "batch_size": config.batch_size,
        "steps": steps,
        "images_per_second": steps * config.batch_size / seconds,
        "growth_mib": round(growth, 1),
        "largest_mib": max(mib for _, mib in samples),
        "own_mib": samples,
    }
    if flags.FLAGS.record:
        files.append_json(RESULTS, record)
        print(f"recorded in {RESULTS.relative_to(provenance.ROOT)}")


if __name__ == "__main__":
    flags.DEFINE_boolean("record", False, "Append the result to experiments/results/loader_memory.")
    cli.run(main)
