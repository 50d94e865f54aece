"""Reproduces the findings for a claim: prints or runs their commands, with their cost.

    python -m experiments.reproduce CLAIM [--run] [--jobs=N] [--data_dir=DIR] [--out=runs/sweeps]

CLAIM is a number of experiments/ledger.md. Without --run nothing is computed. Runs that are
finished in --out are not trained again.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.console import duration, say
from alexnet_jax.errors import UserError
from alexnet_jax.runtime import process
from experiments import definition, record
from experiments.board import CPU_RATE
from experiments.definition import ANALYSES, ROOT, Sweep, cells, studies
from experiments.ledger import CLAIMS, Claim

# The sweeps whose runs an analysis reads; the others read the bench's own net of five seeds.
READ = {"averaging": ("lrn", "pooling", "weight_decay"), "specialisation_large": ("kernels",)}
FIVE = ("weight_decay",)
TICK_SECONDS = 0.2  # between two looks at a command that runs


def commands(claim: Claim, options: list[str]) -> list[tuple[list[str], str]]:
    """Returns the command lines that make the findings for a claim, each with its cost."""
    known, analyses = studies(), {each.name for each in ANALYSES}
    sweeps = [
        sweep
        for name in claim.names
        for sweep in (READ.get(name, FIVE) if name in analyses else [name])
    ]
    lines = [
        (["experiments.sweep", f"experiments/sweeps/{name}.py", *options], cost(known[name]))
        for name in dict.fromkeys(sweeps)
    ]
    lines += [
        (["experiments.analyse", name, "--record", *_kept(options, "data_dir", "out")], "minutes")
        for name in claim.names
        if name in analyses
    ]
    lines += [([f"experiments.{each}", "--write"], "seconds") for each in ("tables", "ledger")]
    return [([sys.executable, "-m", *line], said) for line, said in lines]


def cost(sweep: Sweep) -> str:
    """Returns the runs of a sweep, and the time that those on record took, of one core each.

    Where none is on record, it is estimated from their operations.
    """
    runs = cells([sweep])
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    seconds = [line.get("wall_seconds") or 0 for line in record.read_records(sweep.name)]
    timed = [each for each in seconds if each]
    if not timed:
        operations = [definition.cost(run.config) for run in runs]
        if None in operations:
            return f"{count}, none of them timed"
        guess = duration(sum(operations) / CPU_RATE)
        return f"{count}, by their operations some {guess} of a core, none of them timed"
    return f"{count}, some {duration(len(runs) * sum(timed) / len(timed))} of a core"


def _kept(options: list[str], *names: str) -> list[str]:
    return [option for option in options if option.partition("=")[0].lstrip("-") in names]


def main(words: list[str]) -> int:
    """Prints or runs the commands; returns the exit status of the first that failed, or 0."""
    known = {str(claim.number): claim for claim in CLAIMS}
    if len(words) != 1 or words[0] not in known:
        raise UserError(f"name one claim, from 1 to {len(known)}: see experiments/ledger.md")
    given = flags.FLAGS
    # Absolute, as the commands run in the project's folder.
    options = [f"--jobs={given.jobs}", f"--out={Path(given.out).absolute()}"]
    options += [f"--data_dir={Path(given.data_dir).absolute()}"] if given.data_dir else []
    for command, said in commands(known[words[0]], options):
        shown = shlex.join(["python", *command[1:]])
        say(f"{shown}{f'    # {said}' if said else ''}")
        if given.run and (status := _run(command)):
            return status
    return 0


def _run(command: list[str]) -> int:
    """Runs a command and passes signals on to it; returns its exit status."""
    # A group of its own, so that Ctrl-C reaches this process alone, which passes it on once.
    with (
        process.noted(second_ends=False) as stop,
        subprocess.Popen(command, cwd=ROOT, process_group=0) as child,
    ):
        while child.poll() is None:
            if stop:
                child.terminate()
                child.wait()
            time.sleep(TICK_SECONDS)
    return child.returncode


if __name__ == "__main__":
    flags.DEFINE_boolean("run", False, "Run the commands, instead of printing them alone.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time.")
    cli.define_path("out", "runs/sweeps", "Where the work directories are.")
    cli.define_path("data_dir", None, "Where TFDS's data sets lie.")
    cli.run(main, takes_files=True)
