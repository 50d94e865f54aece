"""Writes and checks the digest of a checkpoint's files, SHA256SUMS, for `sha256sum -c` too.

Orbax does not notice a flipped byte, so nothing is restored before its digest has been checked.
"""

import hashlib
import os
from pathlib import Path

from alexnet_jax.errors import UserError
from alexnet_jax.records import files

NAME = "SHA256SUMS"


def seal(temporary: Path, final: Path) -> None:
    """Writes the digest, syncs everything to the disk and gives the directory its final name."""
    lines = []
    for name, path in _files(temporary).items():
        lines.append(f"{_sha256(path)}  {name}\n")
        files.sync(path)
    listing = "".join(lines).encode()
    # The last line is the digest of the list itself; `sha256sum -c` skips it as a comment.
    listing += b"# " + hashlib.sha256(listing).hexdigest().encode() + b"\n"
    (temporary / NAME).write_bytes(listing)
    files.sync(temporary / NAME)
    for folder, _, _ in os.walk(temporary, topdown=False):
        files.sync(folder)
    os.rename(temporary, final)
    files.sync(final.parent)


def damage(path: Path, items: tuple[str, ...] | None = None) -> str | None:
    """Returns what is wrong with the files of the step in `path`, or None if nothing is.

    Args:
        path: the step's directory.
        items: the folders in it that are checked; None for the whole directory.

    Raises:
        UserError: there is no permission to read its files.
    """
    found = _files(path)
    if NAME not in found:
        return f"{NAME} is missing"
    name = NAME
    try:
        listing, _, own_digest = found[name].read_bytes().rpartition(b"# ")
        if hashlib.sha256(listing).hexdigest().encode() + b"\n" != own_digest:
            return f"{name} is not as it was written"
        for line in listing.decode(errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            if items and name.split("/")[0] not in items:
                continue
            if name not in found:  # Files outside the step are never opened.
                return f"{name} is missing"
            if _sha256(found[name]) != digest:
                return f"{name} is not as it was written"
    except PermissionError as error:  # The checkpoint need not be damaged, and stays in place.
        raise UserError(f"cannot read {path / name}: permission denied") from error
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def _files(path: Path) -> dict[str, Path]:
    return {
        file.relative_to(path).as_posix(): file
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
