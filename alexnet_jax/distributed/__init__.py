"""Several processes that train one net: how they find each other, agree, and end together.

Every process runs the same command, on devices of its own. What is computed on the devices of all
is in step; this room has the rest. A mistake that only one of them meets must not leave the others
waiting: up to the first step they wait for each other in `together`, and after it a process that
fails leaves at once, which ends the others (see peers).
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from alexnet_jax.distributed import peers
from alexnet_jax.errors import UserError
from alexnet_jax.runtime import settings

START_SECONDS = 300  # processes may start this long after each other
END_SECONDS = 60  # … and end, without an error
VERDICT_SECONDS = 5  # a collective's error waits so long for what peers knows of the other process
SHARED_SECONDS = 60  # how long a network file system may hide a new file

# How the libraries between the processes word it that another doesn't answer.
_UNANSWERED = re.compile("Gloo|NCCL|[Cc]oordination service|heartbeat|[Bb]arrier|Socket closed")

_EXPLICIT = ("coordinator_address", "num_processes", "process_id")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags that `start` reads."""
    define_integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT where process 0 listens.", values)
    define_integer("num_processes", None, "How many processes train together.")
    define_integer("process_id", None, "Which of them this one is, from 0.")
    cluster = "Join the processes that SLURM, Open MPI or the like has started."
    flags.DEFINE_bool("distributed", False, cluster, values)


def start(values: flags.FlagValues = flags.FLAGS) -> None:
    """Joins this process to those that the flags tell of; without any it stays alone.

    Call it before anything touches a device. With the three explicit flags a process takes all the
    devices that it sees; with --distributed JAX gives each process of a node one of them.

    Raises:
        UserError: a flag is missing or wrong, there is no cluster, or process 0 cannot be reached.
    """
    missing = [f"--{name}" for name in _EXPLICIT if values[name].value is None]
    if values.distributed and len(missing) < len(_EXPLICIT):
        raise UserError("give either --distributed or --coordinator_address and its two companions")
    if values.distributed:
        _initialize()
    elif not missing:
        address, count, rank = (values[name].value for name in _EXPLICIT)
        _check_explicit(address, count, rank)
        _initialize(address, count, rank, cluster_detection_method="deactivate")
    elif len(missing) < len(_EXPLICIT):
        raise UserError(f"{' and '.join(missing)} missing: the three go together")


def _initialize(*explicit, **options) -> None:
    settings.leave_signals_to_us()
    # JAX's own timeout comes later, as it aborts the process with a stack trace.
    timer = threading.Timer(START_SECONDS, _give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *explicit,
            initialization_timeout=2 * START_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
            **options,
        )
    except ValueError as error:
        raise UserError(
            f"--distributed finds no cluster's launcher here ({error}): start it under SLURM, "
            "Open MPI or another that JAX knows, or give --coordinator_address, "
            "--num_processes and --process_id"
        ) from None
    finally:
        timer.cancel()
    peers.connect()
    if jax.default_backend() == "cpu":
        # Only process 0 may keep compiled programs. It would be first in the next run, and gloo
        # gives the others, which compile, no more than 30 seconds to follow.
        settings.keep_no_programs()


def _give_up() -> None:
    """Ends this process, whose main thread waits in JAX for processes that don't come."""
    line = (
        f"error: not all processes of this run have come within {START_SECONDS} s: start each of "
        "them, with the same command but for --process_id\n"
    )
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(1)


def _check_explicit(address: str, count: int, rank: int) -> None:
    """Raises UserError where JAX would end the process with a stack trace of C++, after minutes."""
    if not 0 <= rank < count:
        raise UserError(
            f"--process_id={rank}: must be 0 or more, and below --num_processes={count}"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator_address={address}: write HOST:PORT, e.g. 10.0.0.1:1234")
    try:
        if rank == 0:
            socket.create_server(("", int(port))).close()
            return
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
                return
            except socket.gaierror:
                raise
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
    except OSError as error:
        known = (error.errno or 0) > 0  # a failed look-up of a name has codes of its own
        reason = os.strerror(error.errno) if known else error.strerror or error
        where = "cannot listen" if rank == 0 else "process 0 cannot be reached"
        raise UserError(f"--coordinator_address={address}: {where} there ({reason})") from None


def any_process(flag: bool) -> bool:
    """Whether `flag` is true on any of the processes, which all call this at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def union(own: dict[int, str]) -> dict[int, str]:
    """The entries of the dicts of all processes, which all call this at the same point."""
    if jax.process_count() == 1:
        return own
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, lengths.max() - len(text))))
    merged = {}
    for text, length in zip(texts, lengths, strict=True):
        merged |= json.loads(text[:length].tobytes())
    return {int(key): value for key, value in merged.items()}


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what each process does on its own: a UserError in one ends the block in all.

    Raises:
        UserError: the process' own, or else one that names the first process that failed.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    failed = np.array([failure is not None])
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(failed)
    if failure:
        raise failure
    if failed.any():
        raise UserError(f"process {failed.argmax()} could not start; its own line says why")


def check_alike(what: str, workdir: Path, sign: str) -> None:
    """Refuses a process that was started for something else than the first.

    Args:
        what: describes configuration and data; must be the same in all processes.
        workdir: must be the same folder in all.
        sign: name of a file in it that the first process has just written.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(hashlib.sha256(what.encode()).digest(), np.uint8)
    firsts = multihost_utils.broadcast_one_to_all(own)
    with together():
        if not np.array_equal(own, firsts):
            raise UserError(
                f"process {jax.process_index()} has another configuration or data set than "
                "process 0: start all with the same command"
            )
        deadline = time.monotonic() + SHARED_SECONDS
        while not (workdir / sign).exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {jax.process_index()} doesn't see {workdir / sign}, which process 0 "
                    "has written: --workdir must be on a file system that all share"
                )
            time.sleep(0.2)


def leave(status: int) -> None:
    """Ends this process after an error, without waiting for others that may never come.

    The others end, too, as soon as they hear of it.
    """
    if jax.distributed.is_initialized():
        peers.fail(status)
    sys.exit(status)


def end_if_lost(error: Exception) -> None:
    """Ends this process in one line if `error` comes of another one that was lost.

    Of a process that was killed peers' own thread knows, and of one that failed. One that was only
    stopped, or whose network is gone, is missed by a collective first.
    """
    cause = error if jax.distributed.is_initialized() else None
    while cause:
        if _UNANSWERED.search(str(cause)):
            time.sleep(VERDICT_SECONDS)
            peers.end(peers.LOST, " ".join(str(cause).split())[:300])
        cause = cause.__context__
