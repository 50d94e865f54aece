"""Writes the finished runs of sweeps as lines of experiments/results/NAME/runs.jsonl."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from alexnet_jax.console import say
from alexnet_jax.errors import UserError
from alexnet_jax.records import lock
from experiments.definition import FOLDER, Cell, Sweep, cells
from experiments.record import read_records, read_run, write_records
from experiments.state import State, sessions


def record_sweeps(sweeps: Sequence[Sweep], states: Sequence[State]) -> None:
    """Writes the records of each sweep again, from all of its runs that are finished here.

    Lines of runs that are not here, for example of another machine, are kept as long as the sweep
    still contains these runs; how many are not kept is said.

    Raises:
        UserError: the records are no sweep's, or none is of a run that the sweep has now.
    """
    out = states[0].workdir.parent
    with _alone(out / "recording"):
        for sweep in sweeps:
            _write_records(sweep, states)


def _write_records(sweep: Sweep, states: Sequence[State]) -> None:
    old = read_records(sweep.name)
    if any("digest" not in line for line in old):
        raise UserError(
            f"experiments/results/{sweep.name} has records that are no sweep's: give the file of "
            "the sweep another name"
        )
    known = {(line["variant"], line["seed"]): line for line in old}
    shared = {line["digest"]: line for line in old}
    here = {each.digest: state for state in states for each in state.cells if each.sweep is sweep}
    # Earlier lines are kept if the sweep still contains their runs, whichever seeds are asked for.
    count = max((line["seed"] + 1 for line in old), default=0)
    every = cells([sweep], max([count, *(state.cell.seed + 1 for state in states)]))
    gone = len(old) - sum(line["digest"] in {each.digest for each in every} for line in old)
    # A sweep of the project that was changed replaces its records; another's may be meant here.
    if old and gone == len(old) and not (FOLDER / f"{sweep.name}.py").exists():
        raise UserError(
            f"experiments/results/{sweep.name} has records, and none is of a run that the sweep "
            "has now: give the sweep's file another name, or move the records away"
        )
    lines = []
    for each in every:
        own = known.get((each.variant, each.seed), {})
        if each.digest in here and here[each.digest].status == "done":
            lines.append(_line(each, here[each.digest].workdir))
        elif own.get("digest") == each.digest:
            lines.append(own)
        elif each.digest in shared:  # The same run goes by another name there.
            names = {"variant": each.variant, "seed": each.seed, "overrides": each.overrides}
            lines.append({**shared[each.digest], **names})
    if lines:
        write_records(sweep.name, lines)
        if gone:
            say(f"{sweep.name}: {gone} of {len(old)} records go: the sweep has their runs no more")


def _line(cell: Cell, workdir: Path) -> dict:
    """Returns the record of a finished run."""
    result, curve = read_run(workdir)
    timed = sessions(workdir)
    return {
        "variant": cell.variant,
        "seed": cell.seed,
        "digest": cell.digest,
        "config": cell.sweep.base,
        "overrides": cell.overrides,
        "settings": cell.settings(),
        **{name: result[name] for name in ("final", "best", "epochs", "images_per_second")},
        "wall_seconds": timed["seconds"],
        "cores": timed["cores"],
        **{name: result[name] for name in ("commit", "date", "command", "hardware", "versions")},
        "curve": [_short(each) for each in curve],
    }


def _short(line: dict) -> dict:
    """Returns a line of metrics.jsonl with five digits, without what a repetition changes."""
    names = ("step", "epoch", "split", "loss", "top1_error", "top5_error")
    return {
        name: float(f"{line[name]:.5g}") if isinstance(line[name], float) else line[name]
        for name in names
    }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process in at a time, while others wait."""
    while True:
        try:
            held = lock.acquire(folder)
            break
        except lock.Held:
            time.sleep(0.1)
    with held:
        yield
