"""Prints what a person sees on standard output: lines, tables and the numbers in them.

On a terminal the tables are rich's; elsewhere everything is plain text without escape codes.
"""

import functools
import sys
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from alexnet_jax.models import AlexNet, activations

TOP5_CLASSES = 6  # with fewer classes, five guesses are always right


def say(text: str, *, enabled: bool = True) -> None:
    """Prints one line as it is, above the progress bars if any are shown."""
    if enabled:
        stdout().print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def layer_table(
    model: AlexNet,
    image_size: int,
    *,
    extra: Sequence[tuple[str, Mapping[str, str]]] = (),
) -> None:
    """Prints the output shape and the parameter count of each layer, and the total of parameters.

    Args:
        model: the net.
        image_size: the side of its square input images.
        extra: further columns: the title of each, and its texts by the layer's name; the text of
            "total" goes into the footer.
    """
    rows = activations(model, image_size)
    header = ("layer", "output", "parameters", *(title for title, _ in extra))
    total = sum(count for *_, count in rows)
    footer = ("total", "", f"{total:,}", *(texts.get("total", "") for _, texts in extra))
    cells = [
        (
            name,
            " x ".join(map(str, shape)),
            f"{count:,}" if count else "",
            *(texts.get(name, "") for _, texts in extra),
        )
        for name, shape, count in rows
    ]
    table("", header, cells, footer)


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
        epoch: the number of the epoch, counted from 1.
        num_epochs: the number of epochs of the whole run.
        train: the loss and the errors in percent on the training images, as `metrics.summarize`
            names them.
        evaluated: the loss and the errors on the evaluation split, or None if it was not evaluated.
        images_per_second: the rate of training; None leaves its column out.
        split: the name of the evaluation split.
        num_classes: the number of classes; with fewer than `TOP5_CLASSES` the top-5 error is
            always 0 and is left out.

    Returns:
        Lines of at most 80 columns, for up to 999 epochs.
    """
    columns = [("", f"epoch {epoch:>{len(str(num_epochs))}}/{num_epochs}")]
    columns += [("train loss", f"{train['loss']:.4f}"), ("top-1", f"{train['top1_error']:.2f}%")]
    if evaluated:
        columns.append((f"{split[:13]} loss", f"{evaluated['loss']:.4f}"))
        columns.append(("top-1", f"{evaluated['top1_error']:.2f}%"))
        if num_classes >= TOP5_CLASSES:
            columns.append(("top-5", f"{evaluated['top5_error']:.2f}%"))
    if images_per_second is not None:
        columns.append(("images/s", speed(images_per_second)))
    widths = [max(len(title), len("10.00%")) for title, _ in columns]
    return tuple(
        "  ".join(
            text.rjust(width)
            for text, width in zip(texts, [len(columns[0][1]), *widths[1:]], strict=True)
        )
        for texts in zip(*columns, strict=True)
    )


def errors(values: Mapping[str, float], num_classes: int) -> str:
    """Returns the loss and the errors in percent as text; top-5 only where it can exceed 0."""
    line = f"loss {values['loss']:.4f}  top-1 error {values['top1_error']:.2f}%"
    if num_classes < TOP5_CLASSES:
        return line
    return f"{line}  top-5 error {values['top5_error']:.2f}%"


def table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    footer: Sequence[str] | None = None,
) -> None:
    """Prints a table of texts; all columns but the first are aligned right, as numbers are.

    The texts are printed as they are: in a str, rich would take "[indoor]" for a style.
    """
    named = Text(title, style="table.title") if title else None
    shown = Table(title=named, title_justify="left", box=box.SIMPLE)
    shown.show_footer = footer is not None
    for i, name in enumerate(header):
        under = Text(footer[i] if footer else "")
        shown.add_column(Text(name), under, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*map(Text, row))
    stdout().print(shown)


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
    stdout().print(shown)


def stdout() -> Console:
    """Returns rich's console of standard output, also while rich replaces sys.stdout for a bar."""
    return _console_on(getattr(sys.stdout, "rich_proxied_file", sys.stdout))


@functools.lru_cache(maxsize=1)
def _console_on(stream) -> Console:
    # Without force_terminal, rich would write escape codes to a pipe where FORCE_COLOR is set.
    return Console(file=stream, force_terminal=stream.isatty(), force_jupyter=False)


def is_terminal() -> bool:
    """Returns whether standard output is a terminal that can show progress bars."""
    console = stdout()
    return console.is_terminal and not console.is_dumb_terminal


def speed(images_per_second: float) -> str:
    """Returns a rate as text, with two significant digits where rounding would make it 0."""
    digits = ",.0f" if images_per_second >= 9.5 else ".2g"
    return f"{images_per_second:{digits}}"


def duration(seconds: float) -> str:
    """Returns a time as text, such as '1:05', '2:03:04' or '1d 2:03:04'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours or days else f"{minutes}:{seconds:02d}"
    return f"{days}d {clock}" if days else clock
