"""Trains all runs of one or more sweeps, and records them.

    python -m experiments.sweep experiments/sweeps/NAME.py … [--seeds=N] [--jobs=N] [--out=DIR]
        [--data_dir=DIR] [--dry_run]

Each run is a process of its own, `python -m alexnet_jax.main`, in a work directory named by what
decides its numbers: what several sweeps share is trained once, and a finished run never again.
Stopped by Ctrl-C or SIGTERM, the runs save themselves, and the same command goes on. One run's
failure does not end the others; the exit status is then 1. With several jobs on a CPU, each run has
its own share of the cores.

Any number of these processes may share --out: a run is claimed by a lock of the kernel's, which
ends with its holder, so a killed process blocks nothing. On several machines the directory has to
be one where flock reaches the server (see alexnet_jax/records/lock.py).

Finished runs are kept as lines of experiments/results/NAME/runs.jsonl.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from absl import flags
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from alexnet_jax import cli
from alexnet_jax.console import duration, say
from alexnet_jax.errors import UserError
from alexnet_jax.records import files, lock
from alexnet_jax.runtime import process, settings
from experiments.definition import ROOT, Cell, Sweep, cells, cost, load_sweep
from experiments.record import read_records, read_run, write_records

TICK_SECONDS = 0.5  # between two looks at the runs
START_SECONDS = 6.0  # of a process until its first step, roughly
CPU_RATE = 5e10  # floating-point operations a second of one core, until a run has been timed


@dataclass(eq=False)
class State:
    """Where a run is: `status` is waiting, running, elsewhere, done or failed."""

    cells: list[Cell]  # the same run in each sweep that has it
    workdir: Path
    flops: float | None
    status: str = "waiting"
    note: str = ""  # the error of a finished run, or why it failed
    seconds: float | None = None  # wall time of a finished run
    part: float = 0.0  # of a running one
    since: float = 0.0

    @property
    def cell(self) -> Cell:
        """The run as the first of the sweeps has it."""
        return self.cells[0]

    @property
    def title(self) -> str:
        """How it is called on the screen."""
        return self.cell.title


@dataclass(eq=False)
class Child:
    """A running process and what it holds."""

    state: State
    process: subprocess.Popen
    claim: lock.Lock
    cores: tuple[int, ...]
    started: float = field(default_factory=time.monotonic)


def plan(sweeps: Sequence[Sweep], out: Path, seeds: int | None = None) -> list[State]:
    """The runs of the sweeps, each once, in their order; finished ones are so marked."""
    states: dict[str, State] = {}
    for cell in cells(sweeps, seeds):
        if cell.digest in states:
            states[cell.digest].cells.append(cell)
        else:
            states[cell.digest] = State([cell], out / cell.folder, cost(cell.config))
    for state in states.values():
        _look(state)
    return list(states.values())


def run(sweeps: Sequence[Sweep], states: Sequence[State], *, jobs: int, data_dir: str = "") -> int:
    """Trains what is not finished, `jobs` at a time; returns the exit status.

    0; 1 where a run failed; 75 (EX_TEMPFAIL) after a signal, with the running ones saved.
    """
    free = _shares(jobs)
    children: list[Child] = []
    _record(sweeps, states)
    with (
        process.noted(second_ends=False) as stop,  # the runs' time to save themselves is theirs
        _Board(states, jobs) as board,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(_stop, children)  # whatever ends this, as a full disk may
        while True:
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                free.append(child.cores)
                _end(child, stopping=bool(stop))
                if child.state.status == "done":
                    _record(sweeps, states)
                board.tell(child.state)
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
                    _look(state)
                if free and state.status in ("waiting", "elsewhere") and _ready(state, states):
                    claim = _claim(state)
                if claim:
                    children.append(_start(state, claim, free.pop(0), data_dir))
                elif state.status == "done" != before:  # by another process
                    _record(sweeps, states)
                if claim or state.status != before:
                    board.tell(state)
            if not any(state.status in ("waiting", "running", "elsewhere") for state in states):
                break
            board.show()
            time.sleep(TICK_SECONDS)
    failed = [state for state in states if state.status == "failed"]
    say(f"{len(states) - len(failed)} of {len(states)} runs are done")
    for state in failed:
        say(f"failed: {state.title}: {state.note}; see {state.workdir / 'log'}")
    return 1 if failed else 0


def _stop(children: Sequence[Child]) -> None:
    """Has the processes save their runs, and waits for them."""
    for child in children:
        child.process.send_signal(signal.SIGTERM)
    for child in children:
        child.process.wait()


def _look(state: State) -> bool:
    """Whether the run has ended well; takes its numbers then."""
    try:
        result = json.loads((state.workdir / "result.json").read_text())
    except FileNotFoundError:
        return False
    state.status = "done"
    state.note = f"{result['final']['top1_error']:.2f}%"
    state.seconds = _sessions(state.workdir)["seconds"]
    return True


def _ready(state: State, states: Sequence[State]) -> bool:
    """Whether the run has what it begins with; it fails with the run that should have made that."""
    if state.cell.source is None:
        return True
    source = next(each for each in states if each.cell.digest == state.cell.source.digest)
    if source.status == "failed":
        state.status, state.note = "failed", f"it begins with a run that failed: {source.title}"
    return source.status == "done"


def _claim(state: State) -> lock.Lock | None:
    """The right to train the run, or None while another process has it."""
    try:
        claim = lock.acquire(state.workdir / "claim")
    except lock.Held:
        state.status = "elsewhere"
        return None
    try:
        # Its sweep may have been killed while the run itself goes on.
        lock.acquire(state.workdir).release()
    except lock.Held:
        claim.release()
        state.status = "elsewhere"
        return None
    if _look(state):  # another process has just ended it
        claim.release()
        return None
    return claim


def _start(state: State, claim: lock.Lock, cores: tuple[int, ...], data_dir: str) -> Child:
    command = state.cell.command(sys.executable, state.workdir, data_dir)
    everywhere = os.sched_getaffinity(0) if cores else None
    with (state.workdir / "log").open("ab") as log:
        if cores:  # what this thread may use, its child inherits
            os.sched_setaffinity(0, cores)
        try:
            # A group of its own, so that Ctrl-C reaches this process alone, which passes it on.
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
    sessions = _sessions(state.workdir)
    sessions["seconds"] += round(time.monotonic() - child.started, 3)
    sessions["cores"] = len(child.cores) or os.cpu_count()
    files.write_json(state.workdir / "sessions.json", sessions)
    child.claim.release()
    if code == 0 and _look(state):
        return
    state.status = "waiting" if stopping else "failed"
    lines = (state.workdir / "log").read_text(errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    state.note = said[-1].strip() if said else f"exit status {code}"


def _sessions(workdir: Path) -> dict:
    """Wall time over all the sessions of a run, None where none was timed, and cores it had."""
    try:
        return json.loads((workdir / "sessions.json").read_text())
    except FileNotFoundError:
        return {"seconds": 0.0, "cores": None}


def _shares(jobs: int) -> list[tuple[int, ...]]:
    """Which cores each job has: () for all of them, where there is one job or a GPU."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or not cores:
        return [()] * jobs
    return [tuple(cores[job % len(cores) :: jobs]) for job in range(jobs)]


# Records


def _record(sweeps: Sequence[Sweep], states: Sequence[State]) -> None:
    """Writes the records of each sweep anew from all of its runs that are finished here.

    Lines of runs that are not here, as of another machine, stay while the sweep still means them.
    """
    out = states[0].workdir.parent
    with _alone(out / "recording"):
        for sweep in sweeps:
            _write_records(sweep, states)


def _write_records(sweep: Sweep, states: Sequence[State]) -> None:
    old = read_records(sweep.name)
    kept = {line["digest"]: line for line in old}
    here = {each.digest: state for state in states for each in state.cells if each.sweep is sweep}
    # Of the lines before, those that the sweep still means, whichever seeds are asked for now.
    count = max(line["seed"] + 1 for line in old) if old else 0
    count = max([count, *(state.cell.seed + 1 for state in states)])
    lines = []
    for each in cells([sweep], count):
        if each.digest in here and here[each.digest].status == "done":
            lines.append(_line(each, here[each.digest].workdir))
        elif each.digest in kept:
            lines.append(kept[each.digest])
    if lines:
        write_records(sweep.name, lines)


def _line(cell: Cell, workdir: Path) -> dict:
    """A finished run as it is recorded."""
    result, curve = read_run(workdir)
    sessions = _sessions(workdir)
    return {
        "variant": cell.variant,
        "seed": cell.seed,
        "digest": cell.digest,
        "config": cell.sweep.base,
        "overrides": cell.overrides,
        "settings": cell.settings(),
        **{name: result[name] for name in ("final", "best", "epochs", "images_per_second")},
        "wall_seconds": sessions["seconds"],
        "cores": sessions["cores"],
        **{name: result[name] for name in ("commit", "date", "command", "hardware", "versions")},
        "curve": [_short(each) for each in curve],
    }


def _short(line: dict) -> dict:
    """A line of metrics.jsonl without what varies from minute to minute, and five digits long."""
    names = ("step", "epoch", "split", "loss", "top1_error", "top5_error")
    return {
        name: float(f"{line[name]:.5g}") if isinstance(line[name], float) else line[name]
        for name in names
    }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, the others wait."""
    while True:
        try:
            held = lock.acquire(folder)
            break
        except lock.Held:
            time.sleep(0.1)
    with held:
        yield


# The screen


class _Board:
    """A live table of all runs on a terminal; elsewhere a line as each starts and ends."""

    def __init__(self, states: Sequence[State], jobs: int):
        self._states, self._jobs = states, jobs
        self._console = Console(file=sys.stdout)
        live = sys.stdout.isatty()
        self._live = Live(console=self._console, auto_refresh=False) if live else None

    def __enter__(self) -> "_Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self.show()
            self._live.stop()

    def tell(self, state: State) -> None:
        """Says what has become of a run, where there is no table."""
        if self._live:
            return
        seconds = f", {duration(state.seconds)}" if state.status == "done" else ""
        note = f" {state.note}" if state.status != "running" else ""
        say(f"{self._summary()}  {state.title}: {state.status}{note}{seconds}")

    def show(self) -> None:
        """Draws the table: the running runs first, then the failed, waiting and finished ones."""
        if not self._live:
            return
        order = ("running", "failed", "elsewhere", "waiting", "done")
        rows = sorted(self._states, key=lambda state: order.index(state.status))
        room = max(5, self._console.height - 6)
        shown = Table(title=self._summary(), title_justify="left", box=box.SIMPLE)
        for name, side in (("run", "left"), ("state", "left"), ("left", "right")):
            shown.add_column(name, justify=side, no_wrap=True, overflow="ellipsis")
        rate = _rates(self._states)
        for state in rows[:room]:
            part = f" {state.part:.0%}" if state.status == "running" else ""
            left = _left(state, rate)
            time_left = "" if state.status in ("done", "failed") else _shown(left)
            shown.add_row(state.title, f"{state.status}{part} {state.note}", time_left)
        if len(rows) > room:
            shown.add_row(f"and {len(rows) - room} more", "", "")
        self._live.update(shown, refresh=True)

    def _summary(self) -> str:
        ended = sum(state.status in ("done", "failed") for state in self._states)
        running = [state for state in self._states if state.status == "running"]
        for state in running:
            state.part = _part(state)
        left = _total_left(self._states, self._jobs)
        return f"[{ended}/{len(self._states)}, {len(running)} running, {_shown(left)} left]"


def _part(state: State) -> float:
    """The part of the run's epochs that its last logged line is at."""
    try:
        with (state.workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            epoch = json.loads(file.read().splitlines()[-1])["epoch"]
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 0.0
    return min(1.0, epoch / state.cell.config.num_epochs)


def _rates(states: Sequence[State]) -> dict[str, float]:
    """Operations per second by base configuration, from the finished runs; "" is all of them's."""
    rates: dict[str, list[float]] = {}
    for state in states:
        if state.status == "done" and state.flops and (state.seconds or 0) > START_SECONDS:
            rate = state.flops / (state.seconds - START_SECONDS)
            rates.setdefault(state.cell.sweep.base, []).append(rate)
            rates.setdefault("", []).append(rate)
    return {name: statistics.median(each) for name, each in rates.items()}


def _left(state: State, rates: dict[str, float]) -> float | None:
    """Seconds until the run has ended, None where nothing is known."""
    if state.status in ("done", "failed"):
        return 0.0
    if state.flops is None:
        return None
    rate = rates.get(state.cell.sweep.base) or rates.get("") or CPU_RATE
    whole = START_SECONDS + state.flops / rate
    if state.status == "running" and state.part > 0.1:
        whole = (time.monotonic() - state.since) / state.part
    return whole * (1 - state.part)


def _total_left(states: Sequence[State], jobs: int) -> float | None:
    rates = _rates(states)
    each = [_left(state, rates) for state in states if state.status != "elsewhere"]
    return None if None in each else sum(each) / jobs


def _shown(seconds: float | None) -> str:
    return "?" if seconds is None else duration(seconds)


def main(files: list[str]) -> int:
    """Lists or trains the runs; returns the exit status."""
    if not files:
        raise UserError("no sweep: name one or more, e.g. experiments/sweeps/lrn.py")
    jobs, seeds = flags.FLAGS.jobs, flags.FLAGS.seeds
    for name, value in (("jobs", jobs), ("seeds", seeds)):
        if value is not None and value < 1:
            raise UserError(f"--{name}={value}: must be at least 1")
    # Nothing is computed here, and a GPU's memory is its runs'.
    settings.compute_on_cpu()
    sweeps = [load_sweep(file) for file in files]
    states = plan(sweeps, Path(flags.FLAGS.out).absolute(), seeds)
    if flags.FLAGS.dry_run:
        rates = _rates(states)
        for state in states:
            for each in state.cells:
                left = _shown(_left(state, rates))
                say(f"{each.title:60}  {state.cell.folder:36}  {state.status:8}  {left:>12} left")
        left = _shown(_total_left(states, jobs))
        say(f"{len(states)} runs, {left} left with --jobs={jobs}")
        return 0
    data_dir = flags.FLAGS.data_dir
    return run(sweeps, states, jobs=jobs, data_dir=data_dir and str(Path(data_dir).absolute()))


if __name__ == "__main__":
    flags.DEFINE_integer("seeds", None, "Runs of each variant; the sweep's own SEEDS if not given.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time.")
    cli.define_path("out", "runs/sweeps", "Where the work directories are, for all sweeps.")
    flags.DEFINE_string("data_dir", "", "Where TFDS's data sets lie.")
    flags.DEFINE_boolean("dry_run", False, "Only list the runs, with their estimated time.")
    cli.run(main, takes_files=True)
