"""Ensures that only one run at a time uses a work directory."""

import dataclasses
import datetime
import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from alexnet_jax import console
from alexnet_jax.errors import UserError, check_utf8
from alexnet_jax.records import files

NAME = "lock"
_ENOTSUPP = 524  # NFS and others give it to users, though only the kernel knows it
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, _ENOTSUPP)


class Held(UserError):
    """Reports that another process holds the lock."""


@dataclasses.dataclass
class Lock:
    """Represents a held lock, which the end of its context or `release` gives up."""

    descriptor: int | None

    def release(self) -> None:
        """Gives up the lock. The file stays, because a waiting process may have it open."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def check(workdir: str | os.PathLike) -> None:
    """Checks, before anything that takes time, that a work directory can be made and written.

    Raises:
        UserError: it cannot; nothing is made.
    """
    if reason := files.obstacle(Path(workdir)):
        raise UserError(
            f"cannot write to the work directory {workdir}: {reason}; choose another --workdir"
        )


def acquire(workdir: str | os.PathLike) -> Lock:
    """Locks the work directory for this process, and creates it if needed.

    The kernel keeps the lock (flock on WORKDIR/lock), so it ends with the process that holds it,
    however that process ends, and a file that is left behind locks nothing. The file names the
    holder for people to read. On NFS the lock holds between machines if flock reaches the server
    (Linux 2.6.12 and later, unless mounted with nolock or local_lock); otherwise it holds on one
    machine. In a run of several processes, process 0 locks the directory for all. On a file system
    without locks a warning is printed.

    Raises:
        Held: another process holds the lock; the line names its process id and host.
        UserError: `workdir` cannot be written, or its name is not UTF-8.
    """
    check_utf8(workdir)
    path = Path(workdir) / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file is not truncated, because it holds the text of the holder until we get the lock.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"cannot write to the work directory {workdir}: {error.strerror}"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Held(
            f"another run is using {workdir}: {_holder(path)}; wait for it to end, or choose "
            "another --workdir"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise UserError(f"cannot lock {path}: {error.strerror}") from error
        console.say(
            f"warning: the file system of {workdir} has no file locks: a second run in this work "
            "directory would not be noticed, and would damage both"
        )
    try:
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, (json.dumps(holder) + "\n").encode())
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"cannot write to {path}: {error.strerror}") from error
    return Lock(descriptor)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its process can be found with `lsof {path}`"
