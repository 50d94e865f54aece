"""Lets the processes of a run see each other end, by a TCP connection of each with process 0.

JAX notices a lost process when a collective fails, or by its heartbeats after up to 100 seconds,
and responds with a traceback or a C++ stack trace. The operating system, however, closes a
connection as soon as its process ends, whatever the reason. A connection that closes without an
announcement therefore means that its process is lost, and process 0 tells the others. Where no
connection can be made, JAX's own means remain.

JAX learns of the death of process 0 at the same time as this module, so the first line may come
from either of them.
"""

import atexit
import contextlib
import os
import secrets
import socket
import sys
import threading
import time

from alexnet_jax.runtime import jax_versions

LINK_SECONDS = 10  # the longest time that making a connection may take
ALIVE_SECONDS = 5  # the time from one sign of life to the next
SILENT_SECONDS = 50  # a process that has been silent for so long is lost, or was paused
FAILED_SECONDS = 2  # how long a process may take to end by itself after the error of another
STAY_SECONDS = 3  # how long process 0 waits with its own end, because JAX then aborts the others

# {what a process announces: (the line that another process prints, its exit status)}
ENDED, FAILED, LOST = b"e", b"f", b"l"
_ALIVE = b"."
_ENDS = {
    FAILED: ("a process of this run ended with an error; its own line says why", 1),
    LOST: (
        "a process of this run was lost: it was killed, or its machine does not answer; the same "
        "command goes on from the last checkpoint",
        os.EX_TEMPFAIL,
    ),
}
_KEY = "alexnet_jax/peers"

_links: list[socket.socket] = []
_ending = threading.Lock()  # held by the thread that ends this process


def connect() -> None:
    """Connects this process with process 0, or process 0 with all, after jax.distributed starts."""
    state = jax_versions.distributed_state()
    if state.process_id == 0:
        listener = socket.create_server(("", 0), backlog=state.num_processes)
        token = secrets.token_hex(16)  # Other programs that connect to this port do not know it.
        state.client.key_value_set(_KEY, f"{listener.getsockname()[1]} {token}")
        _start(_accept, listener, token.encode(), state.num_processes - 1)
    else:
        port, token = state.client.blocking_key_value_get(_KEY, LINK_SECONDS * 1000).split()
        host = state.coordinator_address.rpartition(":")[0].strip("[]")
        with contextlib.suppress(OSError):
            link = socket.create_connection((host, int(port)), LINK_SECONDS)
            link.sendall(token.encode())
            _watch(link)
    atexit.register(announce, ENDED)


def announce(word: bytes) -> None:
    """Tells the connected processes how this process ends."""
    for link in _links:
        with contextlib.suppress(OSError):
            link.sendall(word)


def end(word: bytes, reason: str = "") -> None:
    """Ends this process and the others, with a line unless this process has printed its own.

    Args:
        word: how another process has ended: LOST or FAILED.
        reason: what a library has reported about it, in one line.
    """
    line, status = _ENDS[word]
    line += f" ({reason})" if reason else ""
    _ending.acquire()
    with contextlib.suppress(OSError):
        os.write(2, f"error: {line}\n".encode())
    _exit(word, status)


def fail(status: int) -> None:
    """Ends this process, which has printed its error, and the others."""
    _ending.acquire()
    _exit(FAILED, status)


def _exit(word: bytes, status: int) -> None:
    announce(word)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if jax_versions.distributed_state().process_id == 0:
        time.sleep(STAY_SECONDS)
    os._exit(status)


def _accept(listener: socket.socket, token: bytes, count: int) -> None:
    """Accepts the connections of `count` processes."""
    with listener:
        while len(_links) < count:
            link, _ = listener.accept()
            link.settimeout(LINK_SECONDS)
            with contextlib.suppress(OSError):
                if link.recv(len(token)) == token:
                    _watch(link)


def _watch(link: socket.socket) -> None:
    """Starts threads that wait for the other process to end, and send it signs of life."""
    link.settimeout(SILENT_SECONDS)
    _links.append(link)
    if len(_links) == 1:
        _start(_tell_alive)
    _start(_wait, link)


def _tell_alive() -> None:
    while True:
        announce(_ALIVE)
        time.sleep(ALIVE_SECONDS)


def _wait(link: socket.socket) -> None:
    word = _ALIVE
    while word == _ALIVE:
        try:
            word = link.recv(1)
        except OSError:
            word = b""
    if word == ENDED:
        return
    if word == FAILED:
        time.sleep(FAILED_SECONDS)
    end(word or LOST)


def _start(target, *args) -> None:
    threading.Thread(target=target, args=args, daemon=True, name="peers").start()
