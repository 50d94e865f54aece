"""Tracks the state of each run of one or more sweeps: waiting, running, done or failed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.definition import Cell, Sweep, cells, cost


@dataclass(eq=False)
class State:
    """Holds the state of one run.

    Attributes:
        cells: the run as each sweep that contains it defines it.
        workdir: the run's work directory.
        flops: the estimated number of its operations; None if the data set is unknown.
        status: 'waiting', 'running', 'elsewhere' (in another process), 'done' or 'failed'.
        note: the error of a finished run, or the reason of a failure.
        seconds: the wall time of a finished run.
        part: the part of a running run that is done, between 0 and 1.
        since: the time at which a running run was started.
    """

    cells: list[Cell]
    workdir: Path
    flops: float | None
    status: str = "waiting"
    note: str = ""
    seconds: float | None = None
    part: float = 0.0
    since: float = 0.0

    @property
    def cell(self) -> Cell:
        """Returns the run as the first of its sweeps defines it."""
        return self.cells[0]

    @property
    def title(self) -> str:
        """Returns the name of the run on the screen."""
        return self.cell.title


def plan(sweeps: Sequence[Sweep], out: Path, seeds: int | None = None) -> list[State]:
    """Returns the state of each run of the sweeps, once and in their order.

    Args:
        sweeps: the sweeps.
        out: the folder that holds the work directories.
        seeds: the number of seeds of each variant; None: each sweep's own number.
    """
    states: dict[str, State] = {}
    for cell in cells(sweeps, seeds):
        if cell.digest in states:
            states[cell.digest].cells.append(cell)
        else:
            states[cell.digest] = State([cell], out / cell.folder, cost(cell.config))
    for state in states.values():
        look(state)
    return list(states.values())


def look(state: State) -> bool:
    """Returns whether the run has finished, and updates its state if it has."""
    try:
        result = json.loads((state.workdir / "result.json").read_text("utf-8"))
    except FileNotFoundError:
        return False
    state.status = "done"
    state.note = f"{result['final']['top1_error']:.2f}%"
    state.seconds = sessions(state.workdir)["seconds"]
    return True


def sessions(workdir: Path) -> dict:
    """Returns the wall time of all sessions of a run so far, and the cores that it used."""
    try:
        return json.loads((workdir / "sessions.json").read_text("utf-8"))
    except FileNotFoundError:
        return {"seconds": 0.0, "cores": None}
