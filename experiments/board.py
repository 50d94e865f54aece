"""Shows a sweep's runs on the screen, with the estimated time until they end."""

import json
import os
import statistics
import time
from collections.abc import Sequence

from rich import box
from rich.live import Live
from rich.table import Table

from alexnet_jax.console import duration, is_terminal, say, stdout
from experiments.state import State

START_SECONDS = 6.0  # from the start of a process to its first step, roughly
CPU_RATE = 5e10  # operations per second of one core, assumed until a run has been timed


class Board:
    """Shows a live table of runs on a terminal; elsewhere prints a line when one starts or ends."""

    def __init__(self, states: Sequence[State], jobs: int):
        self._states, self._jobs = states, jobs
        self._live = Live(console=stdout(), auto_refresh=False) if is_terminal() else None

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self.show()
            self._live.stop()

    def tell(self, state: State) -> None:
        """Prints a line about a run whose status has changed, unless the table is shown."""
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
        states = sorted(self._states, key=lambda state: order.index(state.status))
        height = max(5, stdout().height - 6)
        table = Table(title=self._summary(), title_justify="left", box=box.SIMPLE)
        for name, side in (("run", "left"), ("state", "left"), ("left", "right")):
            table.add_column(name, justify=side, no_wrap=True, overflow="ellipsis")
        rates = measured_rates(self._states)
        for state in states[:height]:
            part = f" {state.part:.0%}" if state.status == "running" else ""
            ended = state.status in ("done", "failed")
            remaining = "" if ended else as_text(seconds_left(state, rates))
            table.add_row(state.title, f"{state.status}{part} {state.note}", remaining)
        if len(states) > height:
            table.add_row(f"and {len(states) - height} more", "", "")
        self._live.update(table, refresh=True)

    def _summary(self) -> str:
        ended = sum(state.status in ("done", "failed") for state in self._states)
        running = [state for state in self._states if state.status == "running"]
        for state in running:
            state.part = _part(state)
        left = as_text(total_seconds_left(self._states, self._jobs))
        return f"[{ended}/{len(self._states)}, {len(running)} running, {left} left]"


def _part(state: State) -> float:
    """Returns the part of the run's epochs that had passed at its last logged step."""
    try:
        with (state.workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            epoch = json.loads(file.read().splitlines()[-1])["epoch"]
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 0.0
    return min(1.0, epoch / state.cell.config.num_epochs)


def measured_rates(states: Sequence[State]) -> dict[str, float]:
    """Returns the median operations per second of the finished runs.

    The keys are the names of base configurations, and "" for all runs together.
    """
    rates: dict[str, list[float]] = {}
    for state in states:
        if state.status == "done" and state.flops and (state.seconds or 0) > START_SECONDS:
            rate = state.flops / (state.seconds - START_SECONDS)
            rates.setdefault(state.cell.sweep.base, []).append(rate)
            rates.setdefault("", []).append(rate)
    return {name: statistics.median(each) for name, each in rates.items()}


def seconds_left(state: State, rates: dict[str, float]) -> float | None:
    """Estimates the seconds until a run has ended; None if its operations are unknown."""
    if state.status in ("done", "failed"):
        return 0.0
    if state.flops is None:
        return None
    rate = rates.get(state.cell.sweep.base) or rates.get("") or CPU_RATE
    whole = START_SECONDS + state.flops / rate
    if state.status == "running" and state.part > 0.1:
        whole = (time.monotonic() - state.since) / state.part
    return whole * (1 - state.part)


def total_seconds_left(states: Sequence[State], jobs: int) -> float | None:
    """Estimates the seconds until all runs have ended; None if one of them is unknown."""
    rates = measured_rates(states)
    each = [seconds_left(state, rates) for state in states if state.status != "elsewhere"]
    return None if None in each else sum(each) / jobs


def as_text(seconds: float | None) -> str:
    """Returns an estimate as text, '?' for an unknown one."""
    return "?" if seconds is None else duration(seconds)
