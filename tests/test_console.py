"""What a person sees, on a terminal and elsewhere."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from alexnet_jax import console, models
from alexnet_jax.console.progress import Progress
from alexnet_jax.records import provenance

NET = models.create(
    "alexnet",
    layers=(
        models.Conv("conv1", 4, kernel=3, stride=2, then=("pool",)),
        models.Conv("conv2", 6, kernel=3, padding=1, then=()),
        models.Dense("fc"),
    ),
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_layer_table_has_the_right_numbers(capsys):
    console.layer_table(NET, 16)
    rows = [line.replace(" x ", "x").split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if len(row) > 1] == [
        ["layer", "output", "parameters"],
        ["conv1", "7x7x4", "112"],  # 3*3*3*4 + 4
        ["pool1", "3x3x4"],
        ["conv2", "3x3x6", "114"],  # of two towers: 3*3*2*6 + 6
        ["fc", "1000", "55,000"],  # 54*1000 + 1000
        ["total", "55,226"],
    ]


def test_other_processes_print_nothing(capsys):
    console.say("hello", enabled=False)
    with Progress(10, 8, enabled=False) as progress:
        progress.update(5, 1.0)
    assert capsys.readouterr() == ("", "")


def test_lines_are_printed_as_they_are(capsys):
    text = "runs/[red]my run[/red] :smile: " + "x" * 200
    console.say(text)
    assert capsys.readouterr().out == text + "\n"


def test_tables_are_printed_as_they_are(capsys):
    """Classes may be called by what rich would read as a style."""
    names = ("cat [indoor]", "cat [bold]", "[/red]", ":smile:")
    title, header = "runs/[bold]a", ("class [x]", "error [y]")
    console.table(title, header, [(name, f"{name}!") for name in names], ("all [z]", "4 [z]"))
    out = capsys.readouterr().out
    for text in (title, *header, *names, *(f"{name}!" for name in names), "all [z]", "4 [z]"):
        assert text in out


def test_epoch_lines_name_losses_and_errors():
    train = {"loss": 2.5, "top1_error": 50.0}
    validation = {"loss": 2.0, "top1_error": 44.4444, "top5_error": 12.3456}
    assert console.epoch_lines(3, 40, train, validation, 1234.5) == (
        "             train loss   top-1  validation loss   top-1   top-5  images/s",
        "epoch  3/40      2.5000  50.00%           2.0000  44.44%  12.35%     1,234",
    )
    assert console.epoch_lines(3, 3, train) == (
        "           train loss   top-1",
        "epoch 3/3      2.5000  50.00%",
    )
    few = console.epoch_lines(999, 999, train, validation, 12345, "train[90%:95%]", num_classes=5)
    assert "top-5" not in few[0]
    many = console.epoch_lines(999, 999, train, validation, 12345, "train[90%:95%]")
    assert max(map(len, many)) <= 80


def test_the_titles_of_epochs_are_said_once(capsys):
    train = {"loss": 2.5, "top1_error": 50.0}
    progress = Progress(10, 8)
    for epoch in range(1, 4):
        progress.say_epoch(epoch, 3, train, train if epoch == 3 else None, num_classes=2)
    out = capsys.readouterr().out.splitlines()
    assert [line.startswith("epoch") for line in out] == [False, True, True, False, True]


def test_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock = Clock()
    with Progress(1000, 8, clock=clock) as progress:
        for step in range(1, 201):
            clock.now += 0.125
            progress.update(step, 2.5)
        console.say("epoch line")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\r" not in out
    first, *lines, last = out.splitlines()
    assert (first, last) == ("compiling the training step", "epoch line")
    assert [line.split()[1] for line in lines] == ["1/1,000", "81/1,000", "161/1,000"]
    assert lines[1] == "step 81/1,000  64 images/s  loss 2.5  1:55 left"


def test_rates_leave_out_compilation_pauses_and_earlier_sessions(capsys):
    clock = Clock()
    with Progress(1010, 10, start_step=900, clock=clock) as progress:
        clock.now += 60  # compilation
        progress.update(901, 1.0)
        clock.now += 2
        assert progress.update(903, 1.0) == pytest.approx(10)
        with progress.paused():
            clock.now += 100
        clock.now += 7
        assert progress.update(910, 1.0) == pytest.approx(10)
        assert progress.images_per_second == pytest.approx(10)
    out = capsys.readouterr().out.splitlines()
    # 100 steps at one a second; of 169 seconds 69 went into training, and it may go on so.
    assert out[-1].endswith("4:05 left")


def test_the_rate_of_the_first_update_leaves_out_compilation():
    clock = Clock()
    progress = Progress(1000, 64, enabled=False, clock=clock)
    clock.now += 60  # compilation
    progress.advance(1)
    clock.now += 5
    assert progress.update(50, 1.0) == pytest.approx(640)
    assert progress.images_per_second == pytest.approx(640)


def test_a_run_of_one_update_has_a_rate():
    clock = Clock()
    progress = Progress(10, 8, enabled=False, clock=clock)
    assert progress.images_per_second == 0
    clock.now = 4.0
    progress.update(2, 1.0)
    assert progress.images_per_second == pytest.approx(4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (5 * 86400 + 60, "5d 0:01:00")],
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text


def terminal(*command, columns=80, lines=24):
    """Runs a command on a terminal; returns its exit status, the lines that stay on the screen or
    were scrolled off it, whether the cursor is there, and all that was to be seen meanwhile."""
    pyte = pytest.importorskip("pyte")
    screen = pyte.HistoryScreen(columns, lines, history=10_000)
    stream, seen = pyte.ByteStream(screen), []
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    env |= {"TERM": "xterm-256color"}
    child = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=provenance.ROOT, env=env)
    os.close(theirs)
    while chunk := _read(ours):
        stream.feed(chunk)
        seen.append([line.rstrip() for line in screen.display])
    os.close(ours)
    past = ["".join(row[x].data for x in range(columns)).rstrip() for row in screen.history.top]
    left = "\n".join([*past, *seen[-1]]).rstrip().split("\n")
    return child.wait(), left, not screen.cursor.hidden, seen


BARS = """
import sys, time
from alexnet_jax import console
from alexnet_jax.console.progress import Progress, counter

with Progress(2_000, 64, start_step=1_000) as progress:
    time.sleep(0.5)
    for epoch in range(1, 4):
        progress.advance(epoch * 500)
        progress.update(epoch * 500, 1.25)
        with counter() as count:
            for done in range(3):
                count("evaluating test", done, 2)
                time.sleep(0.3)
        console.say(f"epoch {epoch} [ok]")
    print("from print")
    print("from a library", file=sys.stderr)
    progress.update(1_777, 2.5)
    time.sleep(0.5)
with counter() as count:
    count("opening photos", 0, 0)
    time.sleep(0.3)
print("after")
"""


def test_bars_on_a_terminal():
    status, left, cursor, seen = terminal(sys.executable, "-c", BARS)
    assert status == 0
    assert cursor
    # No dead bar stays, and nothing is glued to one.
    epochs = [f"epoch {epoch} [ok]" for epoch in (1, 2, 3)]
    assert left == [*epochs, "from print", "from a library", "after"]
    bars = ("compiling the training", "training ", "evaluating test", "opening photos")
    for name in bars:
        assert any(line.startswith(name) for display in seen for line in display)
        assert all(sum(line.startswith(name) for line in display) <= 1 for display in seen)
    for display in seen:
        shown = [line for line in display if line]
        assert all(line in left or line.startswith(bars) for line in shown)
    lines = [line for display in seen for line in display if "1,777/2,000" in line]
    assert lines[-1].endswith(" left")
    assert "images/s  loss 2.5" in lines[-1]


def _read(handle):
    try:
        return os.read(handle, 4096)
    except OSError:  # how a pseudo-terminal on Linux says that the other side is closed
        return b""
