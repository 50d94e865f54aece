"""Trains all runs of one or more sweeps, and records them.

    python -m experiments.sweep experiments/sweeps/NAME.py … [--seeds=N] [--jobs=N] [--out=DIR]
        [--data_dir=DIR] [--dry_run]

Each run is a separate process, `python -m alexnet_jax.main`, in a work directory that is named
after what decides its numbers. So a run that several sweeps share is trained once, and a finished
run is never trained again. After Ctrl-C or SIGTERM the runs save themselves, and the same command
resumes them. The failure of one run does not end the others; the exit status is then 1. With
several jobs on a CPU, each run has its own share of the cores.

Any number of these processes may share --out. A process claims a run by a lock of the kernel, which
ends with the process, so that a killed process blocks nothing. On several machines, flock must
reach the server of the directory (see alexnet_jax/records/lock.py).

Finished runs are recorded as lines of experiments/results/NAME/runs.jsonl.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.console import say
from alexnet_jax.errors import UserError
from alexnet_jax.records import files, lock
from alexnet_jax.runtime import process, settings
from experiments import board
from experiments.definition import ROOT, Sweep, load_sweep
from experiments.recording import record_sweeps
from experiments.state import State, look, plan, sessions

TICK_SECONDS = 0.5  # the time between two checks of the runs


@dataclass(eq=False)
class Child:
    """Holds a running process, its lock and its cores."""

    state: State
    process: subprocess.Popen
    claim: lock.Lock
    cores: tuple[int, ...]
    started: float = field(default_factory=time.monotonic)


def run(sweeps: Sequence[Sweep], states: Sequence[State], *, jobs: int, data_dir: str = "") -> int:
    """Trains the runs that are not finished, `jobs` at a time.

    Returns:
        The exit status: 0, or 1 if a run failed, or 75 (EX_TEMPFAIL) after a signal, once the
        running ones are saved.
    """
    free = _shares(jobs)
    children: list[Child] = []
    record_sweeps(sweeps, states)
    with (
        process.noted(second_ends=False) as stop,  # Runs may take their time to save.
        board.Board(states, jobs) as shown,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(_stop, children)  # also after an error, such as a full disk
        while True:
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                free.append(child.cores)
                _end(child, stopping=bool(stop))
                if child.state.status == "done":
                    record_sweeps(sweeps, states)
                shown.tell(child.state)
            if stop and children:
                say(f"{stop[0]}: {len(children)} runs are saving themselves")
                _stop(children)
                continue
            if stop:
                say(f"stopped by {stop[0]}; the same command goes on")
                return os.EX_TEMPFAIL
            for state in states:
                before, claim = state.status, None
                if before == "elsewhere":
                    look(state)
                if free and state.status in ("waiting", "elsewhere") and _ready(state, states):
                    claim = _claim(state)
                if claim:
                    children.append(_start(state, claim, free.pop(0), data_dir))
                elif state.status == "done" != before:  # Another process has finished it.
                    record_sweeps(sweeps, states)
                if claim or state.status != before:
                    shown.tell(state)
            if not any(state.status in ("waiting", "running", "elsewhere") for state in states):
                break
            shown.show()
            time.sleep(TICK_SECONDS)
    failed = [state for state in states if state.status == "failed"]
    say(f"{len(states) - len(failed)} of {len(states)} runs are done")
    for state in failed:
        say(f"failed: {state.title}: {state.note}; see {state.workdir / 'log'}")
    return 1 if failed else 0


def _stop(children: Sequence[Child]) -> None:
    """Asks the processes to save their runs, and waits for them."""
    for child in children:
        child.process.send_signal(signal.SIGTERM)
    for child in children:
        child.process.wait()


def _ready(state: State, states: Sequence[State]) -> bool:
    """Returns whether a run's initial weights exist; the run fails if that which makes them did."""
    if state.cell.source is None:
        return True
    source = next(each for each in states if each.cell.digest == state.cell.source.digest)
    if source.status == "failed":
        state.status, state.note = "failed", f"it begins with a run that failed: {source.title}"
    return source.status == "done"


def _claim(state: State) -> lock.Lock | None:
    """Returns the lock that permits to train a run, or None while another process has it."""
    try:
        claim = lock.acquire(state.workdir / "claim")
    except lock.Held:
        state.status = "elsewhere"
        return None
    try:
        # The sweep of a run may have been killed while the run continues.
        lock.acquire(state.workdir).release()
    except lock.Held:
        claim.release()
        state.status = "elsewhere"
        return None
    if look(state):  # Another process has just finished it.
        claim.release()
        return None
    return claim


def _start(state: State, claim: lock.Lock, cores: tuple[int, ...], data_dir: str) -> Child:
    command = state.cell.command(sys.executable, state.workdir, data_dir)
    everywhere = os.sched_getaffinity(0) if cores else None
    with (state.workdir / "log").open("ab") as log:
        if cores:  # A child inherits the cores that this thread may use.
            os.sched_setaffinity(0, cores)
        try:
            # The child has its own process group, so that Ctrl-C reaches only this process.
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, process_group=0
            )
        finally:
            if cores:
                os.sched_setaffinity(0, everywhere)
    state.status, state.since = "running", time.monotonic()
    return Child(state, process, claim, cores)


def _end(child: Child, *, stopping: bool) -> None:
    state, code = child.state, child.process.returncode
    timed = sessions(state.workdir)
    timed["seconds"] += round(time.monotonic() - child.started, 3)
    timed["cores"] = len(child.cores) or os.cpu_count()
    files.write_json(state.workdir / "sessions.json", timed)
    child.claim.release()
    if code == 0 and look(state):
        return
    state.status = "waiting" if stopping else "failed"
    lines = (state.workdir / "log").read_text(errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    state.note = said[-1].strip() if said else f"exit status {code}"


def _shares(jobs: int) -> list[tuple[int, ...]]:
    """Returns the cores of each job, where () stands for all cores, with one job or on a GPU."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or not cores:
        return [()] * jobs
    return [tuple(cores[job % len(cores) :: jobs]) for job in range(jobs)]


def _list(states: Sequence[State], jobs: int) -> None:
    """Prints the runs with their estimated time."""
    rates = board.measured_rates(states)
    for state in states:
        left = board.as_text(board.seconds_left(state, rates))
        for each in state.cells:
            say(f"{each.title:60}  {state.cell.folder:36}  {state.status:8}  {left:>12} left")
    total = board.as_text(board.total_seconds_left(states, jobs))
    say(f"{len(states)} runs, {total} left with --jobs={jobs}")


def main(files: list[str]) -> int:
    """Lists or trains the runs; returns the exit status."""
    if not files:
        raise UserError("no sweep: name one or more, e.g. experiments/sweeps/lrn.py")
    jobs, seeds = flags.FLAGS.jobs, flags.FLAGS.seeds
    for name, value in (("jobs", jobs), ("seeds", seeds)):
        if value is not None and value < 1:
            raise UserError(f"--{name}={value}: must be at least 1")
    # This process computes nothing, and leaves the memory of a GPU to the runs.
    settings.compute_on_cpu()
    sweeps = [load_sweep(file) for file in files]
    states = plan(sweeps, Path(flags.FLAGS.out).absolute(), seeds)
    if flags.FLAGS.dry_run:
        _list(states, jobs)
        return 0
    data_dir = flags.FLAGS.data_dir
    data_dir = str(Path(data_dir).absolute()) if data_dir else ""
    return run(sweeps, states, jobs=jobs, data_dir=data_dir)


if __name__ == "__main__":
    flags.DEFINE_integer("seeds", None, "Runs of each variant; the sweep's own SEEDS if not given.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time.")
    cli.define_path("out", "runs/sweeps", "The folder of the work directories of all sweeps.")
    cli.define_path("data_dir", None, "The folder of TFDS's data sets.")
    flags.DEFINE_boolean("dry_run", False, "Only list the runs with their estimated time.")
    cli.run(main, takes_files=True)
