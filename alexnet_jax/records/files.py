"""Writes files such that a kill or a full disk leaves the old file or the new, never a part."""

import contextlib
import errno
import json
import math
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from alexnet_jax.errors import writing


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file, which is synced to the disk and renamed to `path` at the end.

    What `is_special` finds is opened itself: a file that took the place of a device would stay.

    Args:
        path: the file to replace; its folder must exist.
        shared: whether several processes may write `path` at the same time, each with its own
            temporary file.

    Raises:
        OSError: the disk is full or not writable; the old file stays.
    """
    if is_special(path):
        with _opened(path) as file:
            yield file
        return
    name = f".{path.name}.{uuid.uuid4().hex}" if shared else path.name + ".tmp"
    aside = path.with_name(name)
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # It would take space on a full disk.
        raise
    sync(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Replaces the file at `path` by one with `data`, as `replacing` does."""
    with replacing(path) as file:
        file.write(data)


def is_special(path: Path) -> bool:
    """Returns whether `path` is a device, a pipe, or what this process prints to."""
    return path.exists() and (not path.is_file() or _stream(path) is not None)


def _stream(path: Path) -> int | None:
    """Returns the standard output or error that `path` names, as /dev/stdout does, or None."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # It may be closed.
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
    return None


def _opened(path: Path) -> BinaryIO:
    """Opens a special file for writing, behind what was printed to it so far."""
    stream = _stream(path)
    if stream is None:
        return path.open("wb")
    sys.stdout.flush()
    return os.fdopen(os.dup(stream), "wb")


def sync(path: str | Path) -> None:
    """Syncs a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some network file systems cannot sync a directory.
            raise
    finally:
        os.close(descriptor)


def obstacle(folder: Path, *, made: bool = True) -> str:
    """Returns the reason why a folder cannot be written, or '' if none is found.

    Args:
        folder: The folder.
        made: Whether it is made if it is missing.
    """
    path = folder.absolute()
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if there != path and not made:
        return f"there is no folder {path}; make it first"
    if not there.is_dir():
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


def write_json(path: str | Path, obj) -> None:
    """Writes `obj` to `path` as indented JSON; infinities and NaN become null.

    Raises:
        UserError: the disk is full or not writable.
    """
    path = Path(path)
    with writing(path):
        replace(path, (json.dumps(_finite(obj), indent=2) + "\n").encode())


def append_json(path: Path, obj) -> None:
    """Appends `obj` as a line to a file of records, whose folder it makes if it is missing.

    Raises:
        UserError: the disk is full or not writable.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(obj) + "\n")


def json_line(obj: Mapping) -> bytes:
    """Returns `obj` as one line of strict JSON; infinities and NaN become null."""
    return (json.dumps(_finite(obj), allow_nan=False) + "\n").encode()


def _finite(obj):
    if isinstance(obj, Mapping):
        return {key: _finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_finite(value) for value in obj]
    return None if isinstance(obj, float) and not math.isfinite(obj) else obj
