"""Handles what happens to a command's process from outside: signals, and streams that close.

A command calls `begin` before the imports that take seconds. A program that imports alexnet_jax
keeps its own signal handlers and streams. This module imports only small parts of the standard
library, so that `begin` can come first.
"""

import contextlib
import ctypes
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler, a closed terminal
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # the reader, the terminal or the descriptor is gone

_begun = False
_noting: "_Noting | None" = None  # that of the innermost `noted`


class _Noting(NamedTuple):
    received: list[str]
    second_ends: bool


def begin() -> None:
    """Makes this process a command, which a signal ends with one line.

    From then on Ctrl-C, SIGTERM and a closed terminal end the process at once, except within
    `noted`. Output to a standard stream whose reader has gone is dropped without an error.
    """
    global _begun
    if _begun:
        return
    _begun = True
    # jaxlib and TensorFlow read this variable when they are loaded. By default jax hides only their
    # INFO messages, but XLA's allocator also prints a page of warnings when memory runs out, for
    # which failures.py has one line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow only reads data here and does not need oneDNN, about which it would print a notice
    # at any log level.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    _keep_memory()
    for descriptor in (0, 1, 2):
        _fill(descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _enduring(1, sys.stdout)
    sys.stderr = sys.__stderr__ = _enduring(2, sys.stderr)
    # Python runs a signal handler once the main thread returns from C++, where it may compile for
    # minutes and wait for devices without end. But it writes the signal's number into this pipe at
    # once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        # nohup starts a command with SIGHUP ignored, and it stays ignored.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    threading.Thread(target=_obey, args=(reader,), name="signals", daemon=True).start()


def _keep_memory() -> None:
    """Makes glibc keep freed memory, instead of returning large blocks to the kernel.

    XLA's CPU backend frees and allocates its buffers again in each step, and the page faults that
    this caused took a third of the step of the full-size net. The settings must be made before the
    first thread starts: a thread keeps using a heap that exists already, and heaps other than the
    main one return large blocks in any case. Threads that decode share the heap at no cost that
    could be measured with 1, 8 and 32 of them on two cores (experiments/allocator.py). Without
    glibc this function does nothing.
    """
    mmap_max, trim_threshold, arena_max = -4, -1, -8  # parameters of mallopt(3), from malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)  # Allocate no block by mmap, which would be unmapped when it is freed.
        mallopt(trim_threshold, -1)  # Never return the top of the heap to the kernel.
        mallopt(arena_max, 1)  # Use one heap, as those of other threads are too small for buffers.


def begin_if_run_from(package: str) -> None:
    """Calls `begin` if this process was started as `python -m MODULE`, with a module of `package`.

    It works while the package itself is being imported, before any of its modules is.
    """
    arguments = getattr(sys, "argv", [])
    if arguments[:1] != ["-m"]:  # Python keeps "-m" there until it has found the module.
        return
    module = sys.orig_argv[-len(arguments)].removeprefix("-m")
    if module.partition(".")[0] == package:
        begin()


@contextlib.contextmanager
def noted(*, second_ends: bool = True) -> Iterator[list[str]]:
    """Collects signals instead of ending the process; yields the list of their names.

    It is put around code that reads the list, saves its work and ends by itself. A second Ctrl-C
    ends the process nevertheless, unless `second_ends` is false. In a program other than a command
    of this package, signals are collected only in the main thread, and a second Ctrl-C is handled
    by the program.
    """
    global _noting
    received: list[str] = []
    if not _begun:
        with _noted_by_handlers(received):
            yield received
        return
    outer, _noting = _noting, _Noting(received, second_ends)
    try:
        yield received
    finally:
        _noting = outer


def _end(number: int) -> None:
    """Ends the process with one line and the shell's exit status for a signal, 128 + number.

    No destructor and no exit handler runs, because XLA's threads may crash an interpreter that is
    shutting down. Nothing has to be finished, because every file is written in such a way that the
    process may be killed at any instant.
    """
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\r\x1b[2K\x1b[?25h")  # Clear a progress bar, and show the cursor again.
        name = signal.Signals(number).name
        os.write(2, f"stopped by {name}; nothing that was saved is lost\n".encode())
    os._exit(128 + number)


def _obey(reader: int) -> None:
    """Reads the numbers of signals from the pipe, and collects them or ends the process.

    It runs in its own thread, because the main thread may be busy in C++.
    """
    while True:
        number, noting = os.read(reader, 1)[0], _noting
        if number not in SIGNALS:
            continue
        insisted = noting and noting.received and number == signal.SIGINT
        if noting is None or (insisted and noting.second_ends):
            _end(number)
        noting.received.append(signal.Signals(number).name)


@contextlib.contextmanager
def _noted_by_handlers(received: list[str]) -> Iterator[None]:
    """Collects signals by Python's signal handlers in another program, and restores its own."""
    if threading.current_thread() is not threading.main_thread():  # Others cannot set handlers.
        yield
        return

    def note(number, _):
        received.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, previous[signal.SIGINT])

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Enduring(io.FileIO):
    """Writes to a descriptor, and drops what it cannot write."""

    _said = False

    def write(self, data) -> int:
        """Writes a part of `data`, or drops it where that is impossible; never raises OSError."""
        try:
            while (written := super().write(data)) is None:  # A non-blocking descriptor is full.
                select.select((), (self,), ())
        except OSError as error:
            self._say(error)
            return len(data)
        return written

    def _say(self, error: OSError) -> None:
        """Prints one warning about standard output, unless its reader has gone."""
        if self._said or error.errno in _GONE or self.fileno() != 1:
            return
        self._said = True
        line = f"warning: standard output cannot be written ({error.strerror}); the rest is lost\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())


def _enduring(descriptor: int, stream: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """Returns a text stream to a descriptor in place of `stream`, which is None if it was closed.

    Each line is written at once, so that none is lost when the process ends at once.
    """
    return io.TextIOWrapper(
        io.BufferedWriter(_Enduring(descriptor, "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",  # Names of files may contain any bytes.
        line_buffering=True,
    )


def _fill(descriptor: int) -> None:
    """Opens /dev/null in place of a closed standard descriptor, whose number a file might get.

    The lower descriptors must be open, because the system assigns the lowest free number.
    """
    try:
        os.fstat(descriptor)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
