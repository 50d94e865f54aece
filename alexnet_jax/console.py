"""What a person sees: the layer table, the progress bars, one line per epoch.

On a terminal these are rich's table and bars, all bars in one live display under the lines.
Elsewhere it is plain text without escape codes, and a line of progress now and then instead of the
bars.
"""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

COMPILING = "compiling the training step"
TOP5_CLASSES = 6  # the fewest of which five can miss one
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


def epoch_lines(
    epoch: int,
    num_epochs: int,
    train: Mapping[str, float],
    evaluated: Mapping[str, float] | None = None,
    images_per_second: float | None = None,
    split: str = "validation",
    num_classes: int = TOP5_CLASSES,
) -> tuple[str, str]:
    """Returns a line of titles and a line of numbers for a finished epoch, in columns.

    Args:
        epoch: counted from 1.
        num_epochs: the epochs of the whole run.
        train: loss and errors in percent of the training images, as `metrics.summarize` names them.
        evaluated: loss and errors of the split that is evaluated; None where none was.
        images_per_second: the rate of training; None leaves its column out.
        split: the name of the split that is evaluated.
        num_classes: the classes of the data set; with fewer than `TOP5_CLASSES` the top-5 error,
            which is then 0, is left out.

    Returns:
        Lines of at most 80 columns, but for more than 999 epochs.
    """
    columns = [("", f"epoch {epoch:>{len(str(num_epochs))}}/{num_epochs}")]
    columns += [("train loss", f"{train['loss']:.4f}"), ("top-1", f"{train['top1_error']:.2f}%")]
    if evaluated:
        columns.append((f"{split[:13]} loss", f"{evaluated['loss']:.4f}"))
        columns.append(("top-1", f"{evaluated['top1_error']:.2f}%"))
        if num_classes >= TOP5_CLASSES:
            columns.append(("top-5", f"{evaluated['top5_error']:.2f}%"))
    if images_per_second is not None:
        columns.append(("images/s", _speed(images_per_second)))
    widths = [max(len(title), len("10.00%")) for title, _ in columns]
    return tuple(
        "  ".join(
            text.rjust(width)
            for text, width in zip(texts, [len(columns[0][1]), *widths[1:]], strict=True)
        )
        for texts in zip(*columns, strict=True)
    )


def errors(values: Mapping[str, float], num_classes: int) -> str:
    """Loss and errors in percent as a line has them, the top-5 error where it can be above 0."""
    line = f"loss {values['loss']:.4f}  top-1 error {values['top1_error']:.2f}%"
    if num_classes < TOP5_CLASSES:
        return line
    return f"{line}  top-5 error {values['top5_error']:.2f}%"


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
        self._state = self._titles = ""
        self._bar = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Progress":
        if not self._enabled:
            return self
        if _is_terminal():
            self._bar = self._stack.enter_context(
                _bar(COMPILING, self._start_step, self._num_steps)
            )
        else:
            say(COMPILING)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def advance(self, step: int) -> None:
        """Shows that the steps up to `step` have been started; the first ends the compilation."""
        shown = f"{step:,}/{self._num_steps:,}  {self._state}".rstrip()
        if self._bar:
            self._bar(description="training", completed=step, state=shown)
        elif self._enabled and self._clock() - self._line_at >= LINE_SECONDS:
            self._line_at = self._clock()
            say(f"step {shown}")

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
        self._state = (
            f"{_speed(self.images_per_second)} images/s  loss {loss:.4g}  {self._left(now)}"
        )
        self.advance(step)
        return rate

    def say_epoch(
        self, epoch: int, num_epochs: int, train: Mapping, evaluated: Mapping | None, **names
    ) -> None:
        """Prints what `epoch_lines` makes of a finished epoch, its titles where they are new."""
        rate = self.images_per_second or None
        titles, numbers = epoch_lines(epoch, num_epochs, train, evaluated, rate, **names)
        if titles != self._titles:
            say(titles, enabled=self._enabled)
        self._titles = titles
        say(numbers, enabled=self._enabled)

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


Count = Callable[[str, int, int], None]


@contextlib.contextmanager
def counter(
    *,
    enabled: bool = True,
    at_once: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Count]:
    """A function to call with (what, done, total), total 0 where nobody knows it.

    On a terminal it shows a bar of what was named last; elsewhere a line when something is first
    named (unless `at_once` is false), and then one every ten seconds. What is done at the first
    call counts as done before, not as fast.
    """
    named, start, bar, line_at = None, (0, 0.0), None, clock()

    def count(what: str, done: int, total: int) -> None:
        nonlocal named, start, bar, line_at
        now, amount = clock(), f"{done:,}/{total:,}" if total else ""
        first = what != named
        if first:
            shown.close()
            named, start = what, (done, now)
        if _is_terminal():
            bar = shown.enter_context(_bar(what, done, total)) if first else bar
            rate = (done - start[0]) / max(now - start[1], 1e-9)
            left = f"{duration((total - done) / rate)} left" if rate > 0 else ""
            bar(completed=done, state=f"{amount}  {left}".rstrip())
        elif (first and at_once) or now - line_at >= LINE_SECONDS:
            line_at = now
            say(f"{what}  {amount}".rstrip())

    with contextlib.ExitStack() as shown:
        yield count if enabled else lambda *_: None


@contextlib.contextmanager
def _bar(what: str, done: int, total: int) -> Iterator[Callable[..., None]]:
    """A bar under the lines, beside those that are there; yields what changes its fields."""
    bars = _bars(_console())
    task = bars.add_task(what, total=total or None, completed=done, state="")
    bars.start()
    try:
        yield functools.partial(bars.update, task)
    finally:
        if len(bars.tasks) == 1:
            bars.stop()
        bars.remove_task(task)


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
    """The one of standard output, which while bars are shown is behind a proxy of rich's."""
    return _console_on(getattr(sys.stdout, "rich_proxied_file", sys.stdout))


@functools.lru_cache(maxsize=1)
def _console_on(stream) -> Console:
    # Said outright, as rich would also write escape codes to a pipe where FORCE_COLOR is set.
    return Console(file=stream, force_terminal=stream.isatty(), force_jupyter=False)


@functools.lru_cache(maxsize=1)
def _bars(console: Console) -> Bars:
    """The live display of a console, which has no more than one."""
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}"),
        console=console,
        expand=True,
        transient=True,
        refresh_per_second=4,
        redirect_stderr=sys.stderr.isatty(),  # else it would end up on the screen, not in its file
    )


def _is_terminal() -> bool:
    console = _console()
    return console.is_terminal and not console.is_dumb_terminal


def _count(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _speed(images_per_second: float) -> str:
    """Two digits where fewer would round a slow net's rate to 0."""
    digits = ",.0f" if images_per_second >= 9.5 else ".2g"
    return f"{images_per_second:{digits}}"


def duration(seconds: float) -> str:
    """Seconds as '1:05', '2:03:04' or '1d 2:03:04'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours or days else f"{minutes}:{seconds:02d}"
    return f"{days}d {clock}" if days else clock
