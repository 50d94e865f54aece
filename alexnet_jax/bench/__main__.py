"""Measures speed, prints the result, and writes it to a file if asked.

python -m alexnet_jax.bench step|layers|input|train|comms|compile --config=FILE
    [--config.FIELD=VALUE] [--against=torch] [--repeats=N] [--steps=N] [--seconds=S] [--cold]
    [--target=CARD] [--devices=N] [--hlo=FILE] [--json=FILE] [--record]

step     times the compiled training step and the forward pass, and finds the step's compilation
         time, memory and share of the matmul peak
layers   times the forward pass and the two gradients of each layer separately
input    times the training pipeline without the net, and the least that it has to do: plain
         decoding, copying or reading of the same images (see input.py)
train    finds the time that the loop adds to the slower of the step and the input
comms    counts the collectives of the compiled step and their bytes, in each layout
compile  compiles the step for GPUs that need not be present, and estimates its time and bytes
         (see docs/speed.md)

All modes but `input` and `train` use made-up images and need no data set. If the data set is
missing and model.num_classes is not set, they assume 1000 classes. Contenders are timed in turn,
after a warm-up (see timing.py). `--against=torch` also runs the same in PyTorch (see
torch_step.py). `--record` appends a line to experiments/results/bench/MODE.jsonl.
"""

import os

from absl import flags
from ml_collections.config_flags import get_config_filename

from alexnet_jax import cli, console
from alexnet_jax.bench import comms, compile, input, layers, loop, step
from alexnet_jax.bench.common import Options, require_torch
from alexnet_jax.config import Config, flatten, load_config
from alexnet_jax.errors import UserError, choose
from alexnet_jax.records import files, provenance
from alexnet_jax.runtime import settings

RESULTS = provenance.ROOT / "experiments" / "results" / "bench"
MODES = {
    **{"step": step, "layers": layers, "input": input},
    **{"train": loop, "comms": comms, "compile": compile},
}


def overrides(config: Config, path: str) -> dict:
    """Returns the fields of `config` that differ from its file."""
    own, given = flatten(load_config(path)), flatten(config)
    return {name: value for name, value in given.items() if value != own.get(name)}


def main(names):
    """Measures, prints and writes what the flags ask for."""
    if len(names) != 1:
        raise UserError(f"name what to measure, one of {', '.join(MODES)}")
    mode = choose(names[0], MODES, "benchmark")
    values = flags.FLAGS
    if values.repeats < 1 or values.steps < 4:
        raise UserError("--repeats must be at least 1, and --steps at least 4")
    if values.config.batch_size is None:
        raise UserError("a benchmark needs a batch of a known size: set --config.batch_size")
    options = Options(
        repeats=values.repeats,
        steps=values.steps,
        seconds=values.seconds,
        torch=values.against == "torch",
        cold=values.cold,
        target=values.target,
        devices=values.devices,
        hlo=values.hlo,
    )
    if options.torch:
        require_torch()
        os.environ.setdefault(
            "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
        )  # PyTorch needs a part of the memory.
    if mode == "comms" and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        settings.split_cpu(8)
    if mode == "compile":  # The CPU traces the program, even if there is a GPU.
        settings.compute_on_cpu()
    path = get_config_filename(values["config"])
    measured = MODES[mode].measure(values.config, options)
    for table in MODES[mode].tables(measured):
        console.table(table.title, table.header, table.rows)
        console.say(table.note, enabled=bool(table.note))
    produced_by = provenance.collect()
    hardware = produced_by["hardware"]
    kind = hardware["device_kind"]
    result = {
        "mode": mode,
        "config": path,
        "overrides": overrides(values.config, path),
        "batch_size": values.config.batch_size,
        "image_size": values.config.data.image_size,
        "device": hardware["cpu"] if kind == "cpu" else kind,
        **measured,
        **produced_by,
    }
    if values.json:
        files.write_json(values.json, result)
    if values.record:
        files.append_json(RESULTS / f"{mode}.jsonl", result)


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_enum("against", None, ["torch"], "Measure PyTorch as well, in turn (step, input).")
    flags.DEFINE_integer("repeats", 10, "The number of turns over which a median is taken.")
    flags.DEFINE_integer("steps", 200, "The number of steps of a loop (train).")
    flags.DEFINE_float("seconds", 20.0, "The length of a sample of a pipeline (input).")
    flags.DEFINE_bool("cold", False, "Read a mapped copy from its disk each time (input).")
    flags.DEFINE_string("target", "h100", "The card to compile for (compile).")
    flags.DEFINE_integer("devices", 1, "The number of such cards in one host (compile).")
    cli.define_path("hlo", None, "A file to write the optimised program to (compile).", result=True)
    cli.define_path("json", None, "A file to write the result to.", result=True)
    flags.DEFINE_bool("record", False, "Append the result to experiments/results/bench.")
    cli.run(main, takes_files=True)
