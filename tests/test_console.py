"""What a person sees, on a terminal and elsewhere."""

import os
import pty
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from alexnet_jax import console
from alexnet_jax.records import metrics


class Net(nn.Module):
    """Activations in an order that sorting would break; `fc` has no activation of its name."""

    @nn.compact
    def __call__(self, images, train=False):
        activations = {}
        x = activations["conv1"] = nn.Conv(4, (3, 3), (2, 2), name="conv1")(images)
        x = activations["pool1"] = nn.max_pool(x, (2, 2), (2, 2))
        x = activations["conv2"] = nn.Conv(6, (3, 3), feature_group_count=2, name="conv2")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(1000, name="fc")(x), activations


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_layer_table_has_the_right_numbers(capsys):
    console.layer_table(Net(), (16, 16, 3))
    out = capsys.readouterr().out.replace(" x ", "x")
    rows = [line.split() for line in out.splitlines()]
    assert ["conv1", "8x8x4", "112"] in rows  # 3*3*3*4 + 4
    assert ["pool1", "4x4x4"] in rows
    assert ["conv2", "4x4x6", "114"] in rows  # 3*3*2*6 + 6
    assert ["fc", "97,000"] in rows  # 96*1000 + 1000
    assert ["total", "97,226"] in rows
    names = [row[0] for row in rows if row]
    assert [n for n in names if n in ("conv1", "pool1", "conv2", "fc")] == [
        *("conv1", "pool1", "conv2", "fc")
    ]


def test_layer_table_computes_nothing(capsys):
    class Huge(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            assert isinstance(images, jax.core.Tracer)
            x = nn.Dense(10**6, name="fc1")(images.reshape(len(images), -1))
            x = nn.Dense(10**6, name="fc2")(x)  # 4 TB of parameters
            return x, {"fc1": x}

    assert console.layer_rows(Huge(), (128, 2, 2, 3))[1] == ("fc2", (), 10**12 + 10**6)


def test_other_processes_print_nothing(capsys):
    console.layer_table(Net(), (16, 16, 3), enabled=False)
    console.say("hello", enabled=False)
    with console.Progress(10, 8, enabled=False) as progress:
        progress.update(5, 1.0)
    assert capsys.readouterr() == ("", "")


def test_lines_are_printed_as_they_are(capsys):
    text = "runs/[red]my run[/red] :smile: " + "x" * 200
    console.say(text)
    assert capsys.readouterr().out == text + "\n"


def test_epoch_line_names_losses_and_errors():
    train = {"loss": 2.5, "top1_error": 50.0}
    validation = {"loss": 2.0, "top1_error": 44.4444, "top5_error": 12.3456}
    assert console.epoch_line(3, 40, 300, train, validation, 1234.5) == (
        "epoch  3/40  step 300  train loss 2.5000 top-1 50.00%  "
        "validation loss 2.0000 top-1 44.44% top-5 12.35%  1,234 images/s"
    )
    assert console.epoch_line(3, 3, 9, train) == (
        "epoch 3/3  step 9  train loss 2.5000 top-1 50.00%"
    )


def test_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock = Clock()
    with console.Progress(1000, 8, clock=clock) as progress:
        for step in range(1, 201):
            clock.now += 0.125
            progress.update(step, 2.5)
        console.say("epoch line")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\r" not in out
    *lines, last = out.splitlines()
    assert last == "epoch line"
    assert [line.split()[1] for line in lines] == ["1/1000", "81/1000", "161/1000"]
    assert lines[1] == "step 81/1000  64 images/s  loss 2.5  1:55 left"


def test_rates_leave_out_compilation_pauses_and_earlier_sessions(capsys):
    clock = Clock()
    with console.Progress(1010, 10, start_step=900, clock=clock) as progress:
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


def test_a_run_of_one_update_has_a_rate():
    clock = Clock()
    progress = console.Progress(10, 8, enabled=False, clock=clock)
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


def test_bar_on_a_terminal():
    script = (
        "import time\n"
        "from alexnet_jax import console\n"
        "with console.Progress(20, 8, start_step=10) as progress:\n"
        "    progress.update(12, 2.5)\n"
        "    console.say('epoch 1 [ok]')\n"
        "    progress.update(15, 1.25)\n"
        "    time.sleep(0.7)\n"
        "print('after')\n"
    )
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", script]
    child = subprocess.Popen(command, stdout=theirs, cwd=metrics.ROOT, env=env)
    os.close(theirs)
    out = b""
    while chunk := _read(ours):
        out += chunk
    os.close(ours)
    assert child.wait() == 0
    text = out.decode()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", text).split()
    assert {"15/20", "1.25", "left"} <= set(shown)
    assert "step 15/20" not in text  # no plain lines beside the bar
    assert text.count("epoch 1 [ok]") == 1
    assert "\x1b[?25h" in text  # the cursor is back
    assert text.endswith("\x1b[2Kafter\r\n")  # the bar's line is erased


def _read(handle):
    try:
        return os.read(handle, 4096)
    except OSError:  # how a pseudoterminal on Linux says that the other side is closed
        return b""


def test_table_of_a_model_in_half_precision_too(capsys):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            x = nn.Dense(2, name="fc", dtype=jnp.bfloat16)(images.reshape(len(images), -1))
            return x, {"fc": x}

    assert console.layer_rows(Half(), (2, 2, 3)) == [("fc", (2,), 26)]
