"""Shows the progress of a run or a long task: bars on a terminal, and elsewhere lines at intervals.

All bars are in one live display of rich's, below the lines that `console.say` prints.
"""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from alexnet_jax import console

COMPILING = "compiling the training step"
LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


class Progress:
    """Shows how far a run is: a bar on a terminal, elsewhere a line every ten seconds.

    It is a context manager. Its rates are those of this session: after a resume, the steps before
    `start_step` count as done and not towards the speed. Every process may use it; where `enabled`
    is false it measures and prints nothing.
    """

    def __init__(
        self,
        num_steps: int,
        batch_size: int,
        *,
        start_step: int = 0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._num_steps, self._batch_size, self._enabled = num_steps, batch_size, enabled
        self._clock = clock
        self._start_step, self._start = start_step, clock()
        self._first = self._last = (start_step, self._start)  # (step, time without pauses)
        self._paused = 0.0
        self._line_at = -math.inf
        self._state = self._titles = ""
        self._bar = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Progress":
        if not self._enabled:
            return self
        if console.is_terminal():
            self._bar = self._stack.enter_context(
                _bar(COMPILING, self._start_step, self._num_steps)
            )
        else:
            console.say(COMPILING)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def advance(self, step: int) -> None:
        """Shows that the steps up to `step` have been started."""
        if step == self._start_step + 1 and self._last[0] == self._start_step:
            # The step's program has been compiled by now, which no rate should include.
            self._start = self._clock()
            self._last = (self._start_step, self._start - self._paused)
        shown = f"{step:,}/{self._num_steps:,}  {self._state}".rstrip()
        if self._bar:
            self._bar(description="training", completed=step, state=shown)
        elif self._enabled and self._clock() - self._line_at >= LINE_SECONDS:
            self._line_at = self._clock()
            console.say(f"step {shown}")

    def update(self, step: int, loss: float) -> float:
        """Shows that `step` has ended with `loss`; returns images/s since the previous update.

        Call it once the loss has been fetched: a step that was only dispatched has not ended.
        """
        now = self._clock()
        here = (step, now - self._paused)
        rate = self._rate(self._last, here)
        # Until the first update the step was being compiled, which no rate should include.
        self._first = here if self._first[0] == self._start_step else self._first
        self._last = here
        self._state = (
            f"{console.speed(self.images_per_second)} images/s  loss {loss:.4g}  {self._left(now)}"
        )
        self.advance(step)
        return rate

    def say_epoch(
        self, epoch: int, num_epochs: int, train: Mapping, evaluated: Mapping | None, **names
    ) -> None:
        """Prints the line of a finished epoch, under a line of titles if those have changed."""
        rate = self.images_per_second or None
        titles, numbers = console.epoch_lines(epoch, num_epochs, train, evaluated, rate, **names)
        if titles != self._titles:
            console.say(titles, enabled=self._enabled)
        self._titles = titles
        console.say(numbers, enabled=self._enabled)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside the context from images/s, but not from the time left."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    @property
    def images_per_second(self) -> float:
        """Returns training images per second of this session, without pauses and compilation."""
        first = self._first if self._last[0] > self._first[0] else (self._start_step, self._start)
        return self._rate(first, self._last)

    def _rate(self, earlier: tuple[int, float], later: tuple[int, float]) -> float:
        steps, seconds = later[0] - earlier[0], later[1] - earlier[1]
        return steps * self._batch_size / seconds if seconds > 0 else 0.0

    def _left(self, now: float) -> str:
        rate = self.images_per_second
        if not rate:
            return "? left"
        remaining = (self._num_steps - self._last[0]) * self._batch_size
        trained = self._last[1] - self._start
        return f"{console.duration(remaining / rate * (now - self._start) / trained)} left"


Count = Callable[[str, int, int], None]


@contextlib.contextmanager
def counter(
    *,
    enabled: bool = True,
    at_once: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Count]:
    """Yields a function that shows the progress of a task, to be called with (what, done, total).

    On a terminal it shows a bar for the task that was named last. Elsewhere it prints a line when a
    task is first named (unless `at_once` is false), and then one every ten seconds. A `total` of 0
    stands for an unknown one. What is already done at a task's first call does not count towards
    its speed.
    """
    named, start, bar, line_at = None, (0, 0.0), None, clock()

    def count(what: str, done: int, total: int) -> None:
        nonlocal named, start, bar, line_at
        now, amount = clock(), f"{done:,}/{total:,}" if total else ""
        first = what != named
        if first:
            shown.close()
            named, start = what, (done, now)
        if console.is_terminal():
            bar = shown.enter_context(_bar(what, done, total)) if first else bar
            rate = (done - start[0]) / max(now - start[1], 1e-9)
            left = f"{console.duration((total - done) / rate)} left" if rate > 0 else ""
            bar(completed=done, state=f"{amount}  {left}".rstrip())
        elif (first and at_once) or now - line_at >= LINE_SECONDS:
            line_at = now
            console.say(f"{what}  {amount}".rstrip())

    with contextlib.ExitStack() as shown:
        yield count if enabled else lambda *_: None


@contextlib.contextmanager
def _bar(what: str, done: int, total: int) -> Iterator[Callable[..., None]]:
    """Shows one more bar below the lines; yields a function that changes the bar's fields."""
    bars = _bars(console.stdout())
    task = bars.add_task(what, total=total or None, completed=done, state="")
    bars.start()
    try:
        yield functools.partial(bars.update, task)
    finally:
        if len(bars.tasks) == 1:
            bars.stop()
        bars.remove_task(task)


@functools.lru_cache(maxsize=1)
def _bars(console: Console) -> Bars:
    """Returns the live display of a console; rich allows only one at a time."""
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}"),
        console=console,
        expand=True,
        transient=True,
        refresh_per_second=4,
        # Where stderr is a file, redirecting it would put its lines on the screen instead.
        redirect_stderr=sys.stderr.isatty(),
    )
