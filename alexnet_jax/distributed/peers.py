"""Processes of one run that see each other end: each holds a TCP connection to process 0.

JAX misses a lost process when a collective fails, or by its heartbeats after up to 100 seconds, and
answers with a traceback or a stack trace of C++. The system closes a connection with the process
that held it, whatever killed it: one that closes without a word says that its process is lost.
Process 0 tells the others. Where no connection can be made, JAX's own ways remain.

Of process 0's death JAX hears as soon as this module, and the first line may be either's.
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

LINK_SECONDS = 10  # a connection takes no longer
ALIVE_SECONDS = 5  # from one sign of life to the next
SILENT_SECONDS = 50  # a process of which nothing is heard for so long has gone, or was stopped
FAILED_SECONDS = 2  # after another's error a process mostly ends by itself, knowing more of it
STAY_SECONDS = 3  # process 0 ends so much later, as JAX aborts the others when it has gone

# What a process announces, and what another does then: its line and its exit status.
ENDED, FAILED, LOST = b"e", b"f", b"l"
_ALIVE = b"."
_ENDS = {
    FAILED: ("a process of this run ended with an error; its own line says why", 1),
    LOST: (
        "a process of this run was lost: it was killed, or its machine doesn't answer; the same "
        "command goes on from the last checkpoint",
        os.EX_TEMPFAIL,
    ),
}
_KEY = "alexnet_jax/peers"

_links: list[socket.socket] = []
_ending = threading.Lock()  # kept by the thread that ends this process


def connect() -> None:
    """Connects this process with process 0, or process 0 with all, once jax.distributed is up."""
    state = jax_versions.distributed_state()
    if state.process_id == 0:
        listener = socket.create_server(("", 0), backlog=state.num_processes)
        token = secrets.token_hex(16)  # whoever else connects to this port is no process of ours
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
    """Tells the processes at the other ends of this one's connections how it ends."""
    for link in _links:
        with contextlib.suppress(OSError):
            link.sendall(word)


def end(word: bytes, reason: str = "") -> None:
    """Ends this process, in a line unless its own has been said, and has the others end.

    Args:
        word: LOST, or FAILED of another process.
        reason: what a library said of it, in one line.
    """
    line, status = _ENDS[word]
    line += f" ({reason})" if reason else ""
    _ending.acquire()
    with contextlib.suppress(OSError):
        os.write(2, f"error: {line}\n".encode())
    _exit(word, status)


def fail(status: int) -> None:
    """Ends this process, which has said why, and has the others end."""
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
    """Waits for the connections of `count` processes."""
    with listener:
        while len(_links) < count:
            link, _ = listener.accept()
            link.settimeout(LINK_SECONDS)
            with contextlib.suppress(OSError):
                if link.recv(len(token)) == token:
                    _watch(link)


def _watch(link: socket.socket) -> None:
    """Has threads wait for the end of the process at the other end, and tell it of this one."""
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
