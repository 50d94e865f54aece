"""Lets several processes train one net: they find each other, agree, and end together.

Every process runs the same command, on its own devices. The module step.py defines what is computed
on the devices of all processes; this package does the rest. A mistake that only one process meets
must not leave the others waiting. Up to the first step they wait for each other in `together`;
after it, a process that fails leaves at once, which ends the others (see peers.py).
"""

import contextlib
import functools
import hashlib
import itertools
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
from alexnet_jax.runtime import jax_versions, settings

START_SECONDS = 300  # the longest time between the starts of two processes
END_SECONDS = 60  # the longest time between the ends of two processes that end without an error
VERDICT_SECONDS = 5  # how long a failed collective waits until peers.py knows of the lost process
SHARED_SECONDS = 60  # how long a network file system may hide a new file
OPEN_SECONDS = 7 * 24 * 3600  # how long a process may take to open its data

_meetings = itertools.count()  # All processes call `together` equally often.

# Words in the errors of the libraries that connect the processes if one of them does not answer.
_UNANSWERED = re.compile("Gloo|NCCL|[Cc]oordination service|heartbeat|[Bb]arrier|Socket closed")

_EXPLICIT = ("coordinator_address", "num_processes", "process_id")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags that `start` reads."""
    define_integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT where process 0 listens.", values)
    define_integer("num_processes", None, "The number of processes that train together.")
    define_integer("process_id", None, "The number of this process, from 0.")
    cluster = "Join the processes that a launcher such as SLURM or Open MPI has started."
    flags.DEFINE_bool("distributed", False, cluster, values)


def start(values: flags.FlagValues = flags.FLAGS) -> None:
    """Connects this process with the others that the flags describe; without flags it is alone.

    It must be called before anything uses a device. With the three explicit flags, a process takes
    all the devices that it sees; with --distributed, JAX gives one device to each process of a
    machine.

    Raises:
        UserError: a flag is missing or wrong, there is no launcher, or process 0 cannot be reached.
    """
    missing = [f"--{name}" for name in _EXPLICIT if values[name].value is None]
    if values.distributed and len(missing) < len(_EXPLICIT):
        names = ", ".join(f"--{name}" for name in _EXPLICIT)
        raise UserError(f"give either --distributed or {names}, not both")
    if values.distributed:
        _initialize()
    elif not missing:
        address, count, rank = (values[name].value for name in _EXPLICIT)
        _check_explicit(address, count, rank)
        _initialize(address, count, rank, cluster_detection_method="deactivate")
    elif len(missing) < len(_EXPLICIT):
        names = ", ".join(f"--{name}" for name in _EXPLICIT)
        raise UserError(f"{' and '.join(missing)} missing: give all of {names}")


def _initialize(*explicit, **options) -> None:
    settings.leave_signals_to_us()
    # JAX's own timeout is longer, because it aborts the process with a stack trace.
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
            f"--distributed finds no launcher here ({error}): start the processes with SLURM, "
            "Open MPI or another launcher that JAX knows, or give --coordinator_address, "
            "--num_processes and --process_id"
        ) from None
    finally:
        timer.cancel()
    peers.connect()
    if jax.default_backend() == "cpu":
        # JAX lets only process 0 keep compiled programs. In the next run it would be ready before
        # the others, which compile, and gloo waits for them no longer than 30 seconds.
        settings.keep_no_programs()


def _give_up() -> None:
    """Ends this process, whose main thread waits in JAX for processes that have not started."""
    line = (
        f"error: not all processes of this run have started within {START_SECONDS} s: start each "
        "of them, with the same command up to --process_id\n"
    )
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(1)


def _check_explicit(address: str, count: int, rank: int) -> None:
    """Raises UserError for flags with which JAX would abort after minutes, with a stack trace."""
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
        known = (error.errno or 0) > 0  # A failed name look-up has negative codes.
        reason = os.strerror(error.errno) if known else error.strerror or error
        where = "cannot listen" if rank == 0 else "process 0 cannot be reached"
        raise UserError(f"--coordinator_address={address}: {where} there ({reason})") from None


def any_process(flag: bool) -> bool:
    """Returns whether `flag` is true in any process; all processes must call this together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def union(own: dict[int, str]) -> dict[int, str]:
    """Merges the dictionaries of all processes; all processes must call this together."""
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
    """Ends the block in all processes if a UserError is raised in one of them.

    It is put around what each process does by itself.

    Raises:
        UserError: the error of this process, or one that names the first process that failed.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    failed = np.array([failure is not None])
    if jax.process_count() > 1:
        # On CPUs, gloo's first collective waits for the others no longer than 30 seconds.
        name = f"alexnet_jax/together/{next(_meetings)}"
        jax_versions.distributed_state().client.wait_at_barrier(name, OPEN_SECONDS * 1000)
        failed = multihost_utils.process_allgather(failed)
    if failure:
        raise failure
    if failed.any():
        raise UserError(f"process {failed.argmax()} could not start; its own line says why")


def check_alike(what: str, workdir: Path, sign: str) -> None:
    """Checks that this process was started with the same configuration, data and workdir as all.

    Args:
        what: a text that describes the configuration and the data.
        workdir: the run's directory.
        sign: the name of a file in it that process 0 has just written.

    Raises:
        UserError: this process differs from process 0, or another process does.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(hashlib.sha256(what.encode()).digest(), np.uint8)
    firsts = multihost_utils.broadcast_one_to_all(own)
    with together():
        if not np.array_equal(own, firsts):
            raise UserError(
                f"process {jax.process_index()} has another configuration or data set than "
                "process 0: start all processes with the same command, and name a data.backend, "
                "since 'auto' goes by each process's memory"
            )
        deadline = time.monotonic() + SHARED_SECONDS
        while not (workdir / sign).exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {jax.process_index()} does not see {workdir / sign}, which process 0 "
                    "has written: --workdir must be on a file system that all processes share"
                )
            time.sleep(0.2)


def leave(status: int) -> None:
    """Ends this process after an error, without waiting for the others.

    The other processes end as well, as soon as they learn of it.
    """
    if jax.distributed.is_initialized():
        peers.fail(status)
    sys.exit(status)


def end_if_lost(error: Exception) -> None:
    """Ends this process with one line if `error` was caused by the loss of another process.

    If another process was killed or has failed, the thread of peers.py learns of it. If it was only
    paused, or has lost its network, a collective fails first.
    """
    cause = error if jax.distributed.is_initialized() else None
    while cause:
        if _UNANSWERED.search(str(cause)):
            time.sleep(VERDICT_SECONDS)
            peers.end(peers.LOST, " ".join(str(cause).split())[:300])
        cause = cause.__context__
