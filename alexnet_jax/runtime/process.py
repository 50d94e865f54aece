"""A command's process and what reaches it from outside: signals, and streams that go away.

A command calls `begin` before the imports that take seconds; a program that imports alexnet_jax
keeps the signal handlers and streams that it has. So that `begin` can come first, this module
imports nothing but small parts of the standard library.
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
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # the reader, the terminal, the descriptor

_begun = False
_noting: "_Noting | None" = None  # the innermost `noted`


class _Noting(NamedTuple):
    received: list[str]
    second_ends: bool


def begin() -> None:
    """Makes this process a command: a signal ends it in one line, a lost stream not at all.

    From here on Ctrl-C, SIGTERM and a closed terminal end the process at once, except within
    `noted`. What is written to a standard stream whose reader has gone is lost quietly.
    """
    global _begun
    if _begun:
        return
    _begun = True
    # Read when jaxlib and TensorFlow are loaded, of which jax would have INFO hidden alone: XLA's
    # allocator has a page of warnings where memory runs out, for which we have a line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow reads data here, without oneDNN: its notice of that stands on stderr at any level.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    _keep_memory()
    for descriptor in (0, 1, 2):
        _fill(descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _enduring(1, sys.stdout)
    sys.stderr = sys.__stderr__ = _enduring(2, sys.stderr)
    # Python calls its handlers when the main thread is back from C++, which compiles for minutes
    # and waits for devices without end; but it writes the signal's number into this pipe at once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda *_: None)
    threading.Thread(target=_obey, args=(reader,), name="signals", daemon=True).start()


def _keep_memory() -> None:
    """Has glibc keep freed memory, instead of giving large blocks back to the kernel.

    XLA's CPU backend frees and takes its buffers anew in each step; the page faults that this
    costs were a third of the step of the full-size net. It has to come before the first thread: a
    thread keeps to a heap that is there, and those beside the main one give large blocks back
    whatever is set here. Elsewhere than on glibc this does nothing.
    """
    mmap_max, trim_threshold, arena_max = -4, -1, -8  # names of mallopt(3), from malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)  # take no block from the kernel by mmap, to be unmapped when freed
        mallopt(trim_threshold, -1)  # never give the top of the heap back
        mallopt(arena_max, 1)  # one heap: those of other threads are too small for such blocks


def begin_if_run_from(package: str) -> None:
    """Calls `begin` if this process was started as `python -m MODULE`, with a module of `package`.

    It can tell while the package itself is being imported, before any of its modules is.
    """
    arguments = getattr(sys, "argv", [])
    if arguments[:1] != ["-m"]:  # what Python puts there until it has found the module
        return
    module = sys.orig_argv[-len(arguments)].removeprefix("-m")
    if module.partition(".")[0] == package:
        begin()


@contextlib.contextmanager
def noted(*, second_ends: bool = True) -> Iterator[list[str]]:
    """Around what saves its work and ends by itself: yields a list that gets the names of signals.

    A second Ctrl-C ends the process all the same, unless `second_ends` is false. In a program that
    is no command of ours, signals are noted if this is its main thread, and a second Ctrl-C is its
    own matter.
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
    """Ends the process with one line and the status that a shell has for a signal, 128 + number.

    No destructor and no exit handler runs, as XLA's threads may crash an interpreter that ends.
    Every file is written such that a kill may come at any instant: there is nothing to finish.
    """
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\r\x1b[2K\x1b[?25h")  # clears a progress bar, shows the cursor it hid
        name = signal.Signals(number).name
        os.write(2, f"stopped by {name}; nothing that was saved is lost\n".encode())
    os._exit(128 + number)


def _obey(reader: int) -> None:
    """Notes the signals whose numbers come out of the pipe, or ends the process; a thread's work.

    The main thread may be busy elsewhere.
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
    """Has Python's handlers of a foreign program note the signals, and gives them back."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may
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
    """A descriptor to write to; what it doesn't take is lost."""

    _said = False

    def write(self, data) -> int:
        """Writes some of `data`, or none of it where that is impossible; never raises OSError."""
        try:
            while (written := super().write(data)) is None:  # full, and set not to block
                select.select((), (self,), ())
        except OSError as error:
            self._say(error)
            return len(data)
        return written

    def _say(self, error: OSError) -> None:
        """Says what is the matter, once, unless whoever read this has gone."""
        if self._said or error.errno in _GONE or self.fileno() != 1:
            return
        self._said = True
        line = f"warning: standard output cannot be written ({error.strerror}); the rest is lost\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())


def _enduring(descriptor: int, stream: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """A text stream to a descriptor, like the one that was there; None: it was closed.

    Each line is written at once, so that a process that ends at once leaves none behind.
    """
    return io.TextIOWrapper(
        io.BufferedWriter(_Enduring(descriptor, "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",  # names of files may be any bytes
        line_buffering=True,
    )


def _fill(descriptor: int) -> None:
    """Puts /dev/null where a standard descriptor is closed, before a file of ours gets its number.

    The lower ones must be open: the system gives the lowest number that is free.
    """
    try:
        os.fstat(descriptor)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
