"""Signals, and standard streams that go away: what a command does, and what an import leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny

# The main thread is in C and doesn't come back to Python, as in a compilation.
BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)"
ONE_LINE = "stopped by {}; nothing that was saved is lost\n"


def heed_hangups():
    """As a terminal's shell starts a program, whatever started the tests, nohup perhaps."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(*arguments, **options):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": heed_hangups}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=tiny.ROOT, text=True, **streams | options)


def program(source, **options):
    return start(
        "-c", f"from alexnet_jax.runtime import process\nprocess.begin()\n{source}", **options
    )


def wait_for_handlers(process):
    """Until SIGTERM has one, as the kernel tells."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        (caught,) = (line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_busy_command_in_one_line(number):
    process = program(f"print('busy', flush=True); {BUSY}")
    assert process.stdout.readline() == "busy\n"
    process.send_signal(number)
    assert process.communicate()[1] == ONE_LINE.format(number.name)
    assert process.returncode == 128 + number


@pytest.mark.parametrize("module", ["alexnet_jax.classify", "experiments.sweep"])
def test_a_signal_while_a_command_imports(module):
    process = start("-m", module)
    wait_for_handlers(process)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", ONE_LINE.format("SIGINT"))
    assert process.returncode == 130


def test_work_that_saves_itself_notes_the_first_signal_and_a_second_ctrl_c_ends_it():
    source = f"""
import time
with process.noted() as received:
    print("working", flush=True)
    while not received:
        time.sleep(0.01)
    print(received, flush=True)
    {BUSY}
"""
    process = program(source)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "['SIGTERM']\n"
    process.send_signal(signal.SIGTERM)  # a scheduler may say it again
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ONE_LINE.format("SIGINT")
    assert process.returncode == 130


def test_nohup_is_heeded():
    process = program(
        "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('goes on')",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.communicate() == ("goes on\n", "")


STATE = """
import signal, sys
state = [signal.getsignal(n) for n in (2, 15, 1)] + [sys.stdin, sys.stdout, sys.stderr]
import {}
assert state == [signal.getsignal(n) for n in (2, 15, 1)] + [sys.stdin, sys.stdout, sys.stderr]
"""


def test_an_import_changes_neither_handlers_nor_streams(tmp_path):
    """Also where the importing program is itself started with -m."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(STATE.format("alexnet_jax, experiments"))
    (tmp_path / "theirs" / "__main__.py").write_text(STATE.format("alexnet_jax.train"))
    paths = os.pathsep.join(map(str, (tmp_path, tiny.ROOT)))
    process = start("-m", "theirs", env=os.environ | {"PYTHONPATH": paths})
    assert process.communicate()[1] == ""
    assert process.returncode == 0


WRITES = """
import os, sys, time
print("first", flush=True)
time.sleep(0.2)
for _ in range(9000):
    print("lost")
os.write(3, b"to the end")
"""


@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&- >&- 2>&-", "| head -n 1 >&2"])
def test_a_command_goes_on_without_its_streams(closing, tmp_path):
    """No file that is opened later gets the number of one of them."""
    source = f"from alexnet_jax.runtime import process\nprocess.begin()\n{WRITES}"
    source = source.replace("os.write(3", f"os.write(os.open('{tmp_path}/file', os.O_CREAT | 1)")
    source += "print('lost too', file=sys.stderr)\nassert open(os.devnull).fileno() > 2\n"
    command = f"'{sys.executable}' -c \"$SOURCE\" {closing}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tiny.ROOT, env=os.environ | {"SOURCE": source}, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "to the end"


def test_a_full_disk_under_standard_output_is_said_once():
    with open("/dev/full", "w") as full:
        process = program("print('a'); print('b')", stdout=full)
        errors = process.communicate()[1]
    assert process.returncode == 0
    assert errors.count("\n") == 1
    assert "standard output cannot be written (No space left on device)" in errors


def test_a_pipe_that_does_not_block_is_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = program("print('a' * 1_000_000)", stdout=writer)
    os.close(writer)
    with open(reader) as file:
        assert len(file.read()) == 1_000_001
    assert process.communicate()[1] == ""
