"""One run at a time in a work directory."""

import errno
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from alexnet_jax.errors import UserError, check_utf8
from alexnet_jax.records import lock

HOLD = """
import sys, time
from alexnet_jax.records import lock
held = lock.acquire(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_that_cannot_be_made_is_known_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    lock.check(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()
    for name in ("file", "file/run", "dangling"):
        with pytest.raises(UserError, match=f"{name.split('/')[0]} is no folder"):
            lock.check(tmp_path / name)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path, holder):
    with pytest.raises(UserError) as caught:
        lock.acquire(tmp_path / "run")
    assert f"process {holder.pid} on {socket.gethostname()}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lock_whose_process_was_killed_is_taken_over(tmp_path, holder):
    holder.kill()
    holder.wait()
    note = tmp_path / "run" / "lock"
    note.write_text(note.read_text() + "a longer text than the next holder's")
    second = lock.acquire(tmp_path / "run")
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        lock.acquire(tmp_path / "run")
    second.release()


def test_release_lets_the_next_in(tmp_path):
    first = lock.acquire(tmp_path)
    first.release()
    first.release()  # once more does no harm
    with lock.acquire(tmp_path):
        pass
    lock.acquire(tmp_path).release()


def test_other_directories_are_free(tmp_path):
    with lock.acquire(tmp_path / "a"), lock.acquire(tmp_path / "b"):
        pass


def test_an_unreadable_note_of_the_holder_is_no_traceback(tmp_path):
    with lock.acquire(tmp_path):
        (tmp_path / "lock").write_text("\x00 no JSON")
        with pytest.raises(UserError, match="another run is using"):
            lock.acquire(tmp_path)


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the work directory"):
        lock.acquire(tmp_path / "file")


def test_the_lock_follows_the_umask(tmp_path):
    before = os.umask(0o002)
    try:
        lock.acquire(tmp_path).release()
    finally:
        os.umask(before)
    assert (tmp_path / lock.NAME).stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("inside", [False, True])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, inside
):
    workdir = tmp_path / os.fsdecode(b"caf\xe9")
    if inside:  # The name as given is fine; the absolute one is not.
        workdir.mkdir()
        monkeypatch.chdir(workdir)
        workdir = Path("run")
    with pytest.raises(UserError, match="is not UTF-8"):
        lock.acquire(workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(("name", "fits"), [("run", True), ("caf\xc3\xa9", False), ("€", False)])
def test_a_locale_that_is_not_utf8(tmp_path, monkeypatch, name, fits):
    """TensorStore would write another folder than the one whose bytes Latin-1 reads as `name`."""
    monkeypatch.setattr(os, "fsencode", lambda path: os.fspath(path).encode("latin-1"))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    refused = pytest.raises(UserError, match=r"is iso8859-1: set LC_ALL=C\.UTF-8 or PYTHONUTF8=1")
    with nullcontext() if fits else refused:
        check_utf8(tmp_path / name)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, 524, errno.EIO])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    if number == errno.EIO:
        with pytest.raises(UserError, match=r"cannot lock .*Input/output error"):
            lock.acquire(tmp_path)
        return
    with lock.acquire(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
    assert "has no file locks" in capsys.readouterr().out
