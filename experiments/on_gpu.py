"""Runs what is to be measured on a GPU: commands of at most ten minutes, the most useful first.

    python -m experiments.on_gpu --out=DIR [NAME …] [--rehearse]
    python -m experiments.on_gpu --out=DIR --record

The first runs the commands below, or those named, one after the other. What has ended well is noted
in DIR and not run again, so the same command goes on where it was stopped; one that fails is named,
and the next one runs. --rehearse shrinks the sizes so that all of it runs on a CPU in minutes, to
try the commands, in DIR/rehearsal: its figures are for nothing, and are never recorded. --record
appends the results in DIR to experiments/results, from where the tables and the ledger read them.

The machine needs this package with JAX for its GPU and pytest: neither a network, nor TensorFlow,
nor data, as pictures are cut from scikit-image's photographs. CIFAR-10's net takes `cifar10_jpeg`
where --data_dir has it. PyTorch is compared with where it is installed.
"""

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from alexnet_jax import cli, console
from alexnet_jax.data import photos
from alexnet_jax.errors import UserError, choose
from alexnet_jax.records import files, provenance
from experiments import record

SECONDS = 600  # that one command may take
TESTS = ("ops", "operations", "models", "step", "optim", "preprocess", "bfloat16", "checkpoint")
NETS = ("imagenet2012", "imagenet2012_owt", "imagenet2012_net145")
PAPER = "configs/imagenet2012.py"
DTYPES = ("bfloat16", "float32")
# CUDA's graphs would hide the operations' names from the profiler.
NO_GRAPHS = {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="}
# cuDNN multiplies float32 as TF32 otherwise, which the tests' tolerances don't allow for.
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
SMALL_NET = (
    "--config.batch_size=4",
    "--config.data.image_size=99",
    "--config.model.width=0.0625",
    "--config.model.hidden_units=32",
)


@dataclass(frozen=True)
class Command:
    """Describes a command `python -m MODULE ARGUMENTS`, and what a rehearsal adds to it.

    Attributes:
        name: What it is called, and its files in the folder of results.
        line: The module and its arguments.
        small: Arguments that a rehearsal adds.
        result: Whether it writes a result to keep: its `--json` is then added.
        environment: Variables that it is given.
        gpus: How many it needs.
    """

    name: str
    line: Sequence[str]
    small: Sequence[str] = ()
    result: bool = True
    environment: dict[str, str] | None = None
    gpus: int = 1


def commands(out: Path, data_dir: str) -> list[Command]:
    """Lists the commands, the most useful first; their files are written to `out`."""
    made = str(out / "data")
    pictures = _fields(
        **{
            "data.name": f"folder:{made}/pictures",
            "data.eval_split": "test",
            "data.resize_size": 256,
            "model.dtype": "bfloat16",
        }
    )
    small_input = [*SMALL_NET, "--repeats=1", "--seconds=1", "--steps=4"]
    cifar = _fields(**{"data.name": "cifar10_jpeg", "data.data_dir": data_dir})
    if not (Path(data_dir) / "cifar10_jpeg").is_dir():
        cifar = _fields(**{"data.name": f"folder:{made}/pictures", "data.resize_size": 32})
    return [
        Command(
            "tests",
            ("pytest", *(f"tests/test_{name}.py" for name in TESTS)),
            ("-k", "norm or pool"),
            result=False,
            environment=EXACT,
        ),
        *(_step(NETS[0], dtype) for dtype in DTYPES),
        Command(
            "estimates",
            ("experiments.estimates", f"--config={PAPER}", *_net("bfloat16")),
            (*SMALL_NET, "--steps=2"),
            environment=NO_GRAPHS,
        ),
        _step(NETS[0], "bfloat16", **{"model.fused_kernel": True}),
        _run("default", []),
        *(_step(net, dtype) for net in NETS[1:] for dtype in DTYPES),
        Command(
            "pictures",
            ("experiments.on_gpu", f"--pictures={made}/pictures"),
            ("--count=72",),
            result=False,
        ),
        Command(
            "copy",
            ("alexnet_jax.prepare", f"--config={PAPER}", "--raw", f"--out={made}", *pictures),
            result=False,
        ),
        *(
            Command(
                f"{mode}_{backend}",
                (
                    *("alexnet_jax.bench", mode, f"--config={PAPER}", *pictures),
                    *_fields(**{"data.backend": backend, "data.copies": made}),
                ),
                small_input,
            )
            for backend in ("mapped", "device")
            for mode in ("input", "train")
        ),
        _run("cifar10", cifar),
        *(_two_gpus(name, fields) for name, fields in TWO_GPUS.items()),
        Command(
            "suite",
            ("pytest", "-n", "8", "--dist", "loadfile", "-m", "not slow"),
            ("-k", "cut"),
            result=False,
            environment={"JAX_PLATFORMS": "cpu"},
        ),
    ]


# The records of which row 17 of the ledger is made.
TWO_GPUS = {
    "half": {"model.name": "alexnet_half"},
    "towers": {"mesh.layout": "towers", "mesh.model": 2},
}


def _fields(**values) -> list[str]:
    return [f"--config.{name}={value}" for name, value in values.items()]


def _net(dtype: str) -> list[str]:
    return _fields(**{"data.image_size": 227, "mesh.data": 1, "model.dtype": dtype})


def _step(net: str, dtype: str, **fields) -> Command:
    torch = ["--against=torch"] * (importlib.util.find_spec("torch") is not None)
    line = ("alexnet_jax.bench", "step", f"--config=configs/{net}.py", *_net(dtype), *torch)
    name = "_".join(["step", net, dtype, *(field.rpartition(".")[2] for field in fields)])
    return Command(name, (*line, *_fields(**fields)), (*SMALL_NET, "--repeats=1"))


def _two_gpus(name: str, fields: dict) -> Command:
    line = ("alexnet_jax.bench", "step", f"--config={PAPER}")
    both = _fields(**{"mesh.data": 1, **fields})
    return Command(f"step_{name}", (*line, *both), (*SMALL_NET, "--repeats=1"), gpus=2)


def _run(config: str, fields: Sequence[str]) -> Command:
    """Trains; `perform` adds the work directory."""
    line = ("alexnet_jax.main", f"--config=configs/{config}.py", *fields)
    return Command(f"run_{config}", line, ("--config.num_train_steps=4",), result=False)


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Writes `count` JPEGs for training, an eighth for testing, cut from photographs at random."""
    rng = random.Random(0)
    for name in photos.PHOTOGRAPHS:
        photograph = photos.load_photograph(name)
        for split, number in (("train", count), ("test", count // 8)):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(max(1, number // len(photos.PHOTOGRAPHS))):
                size = rng.randint(min(photograph.size) // 2, min(photograph.size))
                left, top = (rng.randint(0, whole - size) for whole in photograph.size)
                box = (left, top, left + size, top + size)
                photograph.crop(box).resize((side, side)).save(place / f"{i:04d}.jpg", quality=90)


def perform(command: Command, out: Path, *, rehearse: bool) -> bool:
    """Runs a command, unless it has ended well before; returns whether it has now."""
    done = out / f"{command.name}.done"
    if done.exists():
        console.say(f"{command.name}: done before")
        return True
    line = [sys.executable, "-m", *command.line, *(command.small if rehearse else ())]
    if command.result:
        line.append(f"--json={out / command.name}.json")
    if command.name.startswith("run_"):
        line.append(f"--workdir={out / command.name}")
    console.say(f"{command.name}: {' '.join(line[1:])}")
    start, log = time.monotonic(), out / f"{command.name}.log"
    with log.open("w") as file:
        try:
            ended = subprocess.run(
                line,
                cwd=provenance.ROOT,
                env=os.environ | (command.environment or {}),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            ended = f"not ended after {SECONDS} s"
    took = time.monotonic() - start
    if ended:
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        console.say(f"{command.name}: FAILED ({ended}) after {took:.0f} s: {last}; see {log}")
        return False
    files.replace(done, f"{took:.1f} s\n".encode())
    console.say(f"{command.name}: {took:.0f} s")
    return True


def keep(out: Path) -> list[str]:
    """Appends the results in `out` to experiments/results, each once; returns what was appended.

    Raises:
        UserError: They are of a rehearsal on a CPU.
    """
    kept = []
    for path in sorted(out.glob("*.json")):
        result = json.loads(path.read_text("utf-8"))
        _require_gpu(result, path)
        target = record.RESULTS / "bench" / f"{result['mode']}.jsonl"
        known = target.read_text("utf-8").splitlines() if target.exists() else []
        if result not in map(json.loads, known):
            files.append_json(target, result)
            kept.append(path.stem)
    for path in sorted(out.glob("run_*/result.json")):
        result = json.loads(path.read_text("utf-8"))
        _require_gpu(result, path)
        name = f"{path.parent.name.removeprefix('run_')}_gpu"
        if result["date"] not in [each["date"] for each in record.read_records(name)]:
            record.record(path.parent, name)
            kept.append(path.parent.name)
    return kept


def _require_gpu(result: dict, path: Path) -> None:
    if result["hardware"]["device_kind"] == "cpu":
        raise UserError(f"{path} is of a CPU, a rehearsal's: only a GPU's results are recorded")


def _devices() -> tuple[str, int]:
    """Returns the platform and the number of devices, asked in a process that frees them again."""
    code = "import jax; print(jax.default_backend(), jax.device_count())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if asked.returncode:
        raise UserError(f"JAX cannot use this machine: {asked.stderr.strip().splitlines()[-1]}")
    platform, count = asked.stdout.split()
    return platform, int(count)


def main(names: list[str]) -> int:
    """Runs the commands, or records what they gave; returns the exit status."""
    given = flags.FLAGS
    if given.pictures:
        make_pictures(Path(given.pictures), given.count, 256)
        return 0
    if given.out is None:
        raise UserError("say where the results go: --out=DIR")
    out = Path(given.out).resolve()
    if given.rehearse:
        if given.record:
            raise UserError("a rehearsal is never recorded: leave out --rehearse or --record")
        out /= "rehearsal"  # Nothing here counts as done, or as a result, for the real commands.
    out.mkdir(parents=True, exist_ok=True)
    if given.record:
        kept = keep(out)
        console.say(f"recorded: {', '.join(kept)}" if kept else "nothing new to record")
        return 0
    platform, count = _devices()
    if platform == "cpu" and not given.rehearse:
        raise UserError("there is no GPU here that JAX can use; --rehearse tries it all on a CPU")
    planned = commands(out, given.data_dir)
    for name in names:
        choose(name, [command.name for command in planned], "command")
    ended = []
    for command in planned:
        if names and command.name not in names:
            continue
        if command.gpus > count:
            console.say(f"{command.name}: needs {command.gpus} devices, {count} are here")
            continue
        ended.append(perform(command, out, rehearse=given.rehearse))
    console.say(f"{sum(ended)} of {len(ended)} done; results in {out}")
    return int(not all(ended))


if __name__ == "__main__":
    cli.define_path("out", None, "The folder of results, logs and made data.")
    cli.define_path("data_dir", "../shared/data", "Where cifar10_jpeg lies, if it is here.")
    cli.define_path("pictures", None, "Make pictures in this folder, and do nothing else.")
    flags.DEFINE_integer("count", 2040, "How many pictures to make for training.")
    flags.DEFINE_bool("rehearse", False, "Shrink all sizes, to try the commands on a CPU.")
    flags.DEFINE_bool("record", False, "Append the results in --out to experiments/results.")
    cli.run(main, takes_files=True)
