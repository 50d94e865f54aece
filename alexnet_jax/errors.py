"""Defines the exception for mistakes that the user can correct, and helpers for its messages."""

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(Exception):
    """Reports a mistake in the input, in one line: what was wrong, where, and what to do."""


def nearest(word: str, known: Iterable) -> str:
    """Returns the end of an error line: the known word nearest to `word`, or all known words."""
    known = sorted(str(name) for name in known)
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.5):
        return f"did you mean '{close[0]}'?"
    # The last part of a dotted name may be right and its section wrong or missing.
    endings = {name.rsplit(".", 1)[-1]: name for name in known}
    if close := difflib.get_close_matches(word.rsplit(".", 1)[-1], endings, n=1):
        return f"did you mean '{endings[close[0]]}'?"
    return "known: " + ", ".join(known[:40])


def choose(value: str, known: Iterable[str], field: str) -> str:
    """Returns `value` if it is a known one; else raises a UserError that names the nearest."""
    if value not in known:
        raise UserError(f"{field} '{value}' is unknown: {nearest(str(value), known)}")
    return value


def missing(path: Path, what: str = "file") -> UserError:
    """Returns the error for a missing `path`, which names the most similar name in its folder.

    It tells apart a folder where a file is needed, and a link to what is not there.
    """
    if path.is_dir():
        return UserError(f"'{path}' is a folder: name a {what} in it")
    if path.is_symlink() and not path.exists():
        return UserError(f"'{path}' is a link to '{os.readlink(path)}', which is not there")
    folder = path.parent if path.parent.is_dir() else Path()
    beside = [each.name for each in folder.iterdir() if not each.name.startswith(".")]
    hint = f"; {nearest(path.name, beside)}" if beside else ""
    return UserError(f"no {what} '{path}'{hint}")


_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # pathlib leaves one of two slashes


def local_path(path: str | os.PathLike) -> Path:
    """Returns a path on the file systems of this machine, with a leading ~ expanded.

    Raises:
        UserError: `path` is empty, is an address such as gs://BUCKET/FILE, or names a user that
            does not exist.
    """
    text = os.fspath(path)
    if not text:  # pathlib would take it for the current folder.
        raise UserError("a path is empty: is a shell variable not set?")
    if address := _URL.match(text):
        scheme = address[0].rstrip(":/")
        raise UserError(
            f"'{text}' is a {scheme}:// address: only local and shared file systems are read and "
            "written; copy it to one, or mount it"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"'{text}': there is no such user; write ./~… for a file's name") from None


def check_utf8(path: str | os.PathLike) -> None:
    """Checks that the libraries for checkpoints and TFDS data sets can open a folder by its name.

    They take the name as UTF-8, whatever the locale is, and would use another folder.

    Raises:
        UserError: the bytes of the absolute path are not UTF-8, or the locale reads them otherwise.
    """
    text, encoding = os.path.abspath(path), sys.getfilesystemencoding()
    with contextlib.suppress(UnicodeEncodeError):
        if text.encode("utf-8") == os.fsencode(text):
            return
    if encoding == "utf-8":
        raise UserError(
            f"'{text}': its name is not UTF-8, which checkpoints and data sets need: rename it"
        )
    raise UserError(
        f"'{text}': checkpoints and data sets need a name in UTF-8, but this locale's encoding is "
        f"{encoding}: set LC_ALL=C.UTF-8 or PYTHONUTF8=1, or rename it"
    )


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an OSError into a UserError that says that `path` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write '{path}': {reason}; free some space there, or choose another place"
        ) from None
