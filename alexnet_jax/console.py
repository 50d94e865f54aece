"""What a person sees: the layer table, the progress bar, one line per epoch.

On a terminal this is rich's table and bar. Elsewhere it is plain text without escape codes, and
a line of progress now and then instead of the bar.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


def say(text: str, *, enabled: bool = True) -> None:
    """Prints one line as it is, above the bar if there is one."""
    if enabled:
        _console().print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def layer_rows(model: nn.Module, input_shape: Sequence[int]) -> list[tuple[str, tuple, int]]:
    """(name, output shape without the batch, parameter count) of each layer, nothing computed.

    `model(images, train=False)` returns the logits and a dict of named activations; parameters
    are grouped by the same names. `input_shape` is [H, W, C] or [N, H, W, C]. A group of
    parameters without an activation of its name stands at the end, with an empty shape.
    """
    shape = (1, *input_shape[-3:])
    names = []

    def run(images):
        (_, activations), variables = model.init_with_output(jax.random.key(0), images, train=False)
        names.extend(activations)  # in the net's order: what eval_shape returns is sorted
        return activations, variables["params"]

    activations, params = jax.eval_shape(run, jax.ShapeDtypeStruct(shape, jnp.float32))
    names += [name for name in params if name not in activations]
    shapes = {name: activation.shape[1:] for name, activation in activations.items()}
    return [(name, shapes.get(name, ()), _count(params.get(name, {}))) for name in names]


def layer_table(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    extra: Sequence[tuple[str, Mapping[str, str]]] = (),
    enabled: bool = True,
) -> None:
    """Prints the layers of `model` with output shapes, parameter counts and their total.

    See `layer_rows` for what `model` and `input_shape` must be. `extra` are more columns: their
    titles, and their texts by the layer's name; that of "total" stands under the line.
    """
    if not enabled:
        return
    rows = layer_rows(model, input_shape)
    table = Table(box=box.SIMPLE, show_footer=True)
    table.add_column("layer", "total")
    table.add_column("output", justify="right")
    table.add_column("parameters", f"{sum(count for *_, count in rows):,}", justify="right")
    for title, texts in extra:
        table.add_column(title, texts.get("total", ""), justify="right")
    for name, shape, count in rows:
        more = [texts.get(name, "") for _, texts in extra]
        table.add_row(name, " x ".join(map(str, shape)), f"{count:,}" if count else "", *more)
    _console().print(table)


def epoch_line(
    epoch: int,
    num_epochs: int,
    step: int,
    train: Mapping[str, float],
    evaluated: Mapping[str, float] | None = None,
    images_per_second: float | None = None,
    split: str = "validation",
) -> str:
    """One line for a finished epoch (counted from 1): loss and errors in percent, as
    `metrics.summarize` names them, of the training images and of the evaluated split."""
    parts = [f"epoch {epoch:>{len(str(num_epochs))}}/{num_epochs}", f"step {step}"]
    parts.append(_measures("train", train))
    if evaluated:
        parts.append(_measures(split, evaluated))
    if images_per_second is not None:
        parts.append(f"{images_per_second:,.0f} images/s")
    return "  ".join(parts)


class Progress:
    """Shows how far a run is: a bar on a terminal, elsewhere a line every ten seconds.

    A context manager. Rates are of this session alone: after a resume at `start_step` the steps
    before it count as done, not as fast. All processes may use it; those with `enabled` false
    measure and print nothing.
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
        self._bar = None

    def __enter__(self) -> "Progress":
        console = _console()
        if self._enabled and console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
            self._bar = Bar(*columns, console=console, transient=True, refresh_per_second=2)
            self._bar.add_task("", total=self._num_steps, completed=self._start_step, state="")
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, loss: float) -> float:
        """Shows that `step` is done with `loss`; returns images/s since the update before.

        Call it where the loss has been fetched: a step that was only dispatched isn't done.
        """
        now = self._clock()
        here = (step, now - self._paused)
        rate = self._rate(self._last, here)
        # The first update ends the compilation, which no rate should include.
        self._first = here if self._first[0] == self._start_step else self._first
        self._last = here
        state = f"{self.images_per_second:,.0f} images/s  loss {loss:.4g}  {self._left(now)}"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, state=state)
        elif now - self._line_at >= LINE_SECONDS:
            self._line_at = now
            say(f"step {step}/{self._num_steps}  {state}", enabled=self._enabled)
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around evaluation and the like: its time counts for the time left, not for images/s."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    @property
    def images_per_second(self) -> float:
        """Training images per second of this session, without pauses and compilation."""
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
        return f"{duration(remaining / rate * (now - self._start) / trained)} left"


@contextlib.contextmanager
def counter(
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with (what, done, total): a bar on a terminal, elsewhere a line every ten
    seconds. What is done at the first call counts as done before, not as fast."""
    console = _console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True)
    tasks = {}
    line_at = clock()

    def count(what: str, done: int, total: int) -> None:
        nonlocal line_at
        if console.is_terminal:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, completed=done)
            bar.update(tasks[what], completed=done)
        elif clock() - line_at >= LINE_SECONDS:
            line_at = clock()
            say(f"{what}  {done:,}/{total:,}")

    with bar if console.is_terminal else contextlib.nullcontext():
        yield count


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table of texts; all columns but the first are numbers."""
    shown = Table(*header, title=title, title_justify="left", box=box.SIMPLE)
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows:
        shown.add_row(*row)
    _console().print(shown)


def bars(title: str, rows: Sequence[tuple[str, float]]) -> None:
    """Prints named shares of one, each with a bar as long as it is large."""
    shown = Table.grid(padding=(0, 2))
    shown.add_column(max_width=40)
    shown.add_column(justify="right")
    shown.add_column()
    for name, share in rows:
        bar = ProgressBar(total=1, completed=share, width=30)
        shown.add_row(Text(f"  {name}"), f"{share:.1%}", bar)
    say(title)
    _console().print(shown)


def _console() -> Console:
    terminal = sys.stdout.isatty()
    # Said outright, as rich would also write escape codes to a pipe where FORCE_COLOR is set.
    return Console(file=sys.stdout, force_terminal=terminal, force_jupyter=False)


def _count(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _measures(split: str, values: Mapping[str, float]) -> str:
    shown = (
        ("loss", "loss {:.4f}"),
        ("top1_error", "top-1 {:.2f}%"),
        ("top5_error", "top-5 {:.2f}%"),
    )
    return f"{split} " + " ".join(
        form.format(values[name]) for name, form in shown if name in values
    )


def duration(seconds: float) -> str:
    """Seconds as '1:05', '2:03:04' or '1d 2:03:04'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours or days else f"{minutes}:{seconds:02d}"
    return f"{days}d {clock}" if days else clock
