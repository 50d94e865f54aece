"""Finds image files in folders: in one order, following links, and counting what is left out."""

import collections
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from alexnet_jax.data import decode
from alexnet_jax.data.identity import normal_name
from alexnet_jax.errors import UserError


def visible(folder: Path) -> list[os.DirEntry]:
    """Returns what is in a folder, by name, without hidden entries; nothing if it isn't there."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:  # This split lacks a class of the training split.
        return []
    except OSError as error:
        raise UserError(f"image folder {folder}: {error.strerror}") from None
    return sorted(shown, key=lambda entry: normal_name(entry.name))


def is_folder(entry: os.DirEntry) -> bool:
    """Returns whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # It may be a link to itself.
        return False


def subfolders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, linked ones included."""
    return [entry.name for entry in visible(folder) if is_folder(entry)]


def broken_links(folder: Path) -> dict[str, str]:
    """Returns {name: the message about it} of links that nothing tells to be no folders.

    They lead nowhere or to where this process may not look, and aren't named as images are.
    """
    found = {}
    for entry in visible(folder):
        if not entry.is_symlink() or is_image(entry):
            continue
        try:
            entry.stat()
        except OSError as error:
            found[entry.name] = (
                f"{entry.path} is a link to {os.readlink(entry.path)} and cannot be followed:"
                f" {error.strerror}; repair or remove it"
            )
    return found


def is_image(path: str | os.PathLike) -> bool:
    """Returns whether a file's name ends as an image's does."""
    return suffix(path) in decode.SUFFIXES


def suffix(path: str | os.PathLike) -> str:
    """Returns how a file's name ends, such as '.jpg', in lower case."""
    return os.path.splitext(os.fspath(path))[1].lower()


def images(folder: Path) -> list[os.DirEntry]:
    """Returns the image files in a folder, not those in folders below."""
    return [entry for entry in visible(folder) if is_image(entry) and not is_folder(entry)]


def walk(folder: Path) -> Iterator[Path]:
    """Yields the files in a folder and in those below, in the order of their names.

    Links to folders are followed, except to a folder that they lie in, where the walk would have no
    end. Hidden files and folders are left out.
    """
    above = {_identity(os.stat(each)) for each in folder.absolute().parents}
    yield from _walk(folder, above)


def _walk(folder: Path, above: set[tuple[int, int]]) -> Iterator[Path]:
    above = above | {_identity(os.stat(folder))}
    for entry in visible(folder):
        path = folder / entry.name
        if not is_folder(entry):
            yield path
        elif _identity(entry.stat()) not in above:
            yield from _walk(path, above)


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def in_class(folder: Path) -> tuple[list[os.DirEntry], list[Path]]:
    """Returns the images of a class folder, and its other files and those in folders below."""
    found, others = [], []
    for entry in visible(folder):
        if is_folder(entry):
            others += walk(folder / entry.name)
        elif is_image(entry):
            found.append(entry)
        else:
            others.append(folder / entry.name)
    return found, others


def left_out(split: Path, others: Iterable[Path]) -> tuple[str, ...]:
    """Returns a line for each reason for which files of SPLIT/CLASS/IMAGE are not read.

    A line says how many there are and names the first. `others` are what `in_class` found in all
    classes. Hidden files are not counted, nor what lies beside the class folders and is no image.
    """
    others = [path.relative_to(split) for path in others]
    beside = [Path(entry.name) for entry in images(split)]
    deeper = [path for path in others if is_image(path)]
    lines = []
    for paths, where in ((beside, "beside the class folders"), (deeper, "in folders of a class")):
        if paths:
            lines.append(f"{_count(paths, 'image')} {where}, such as {paths[0]}")
    return (*lines, *unknown([path for path in others if not is_image(path)]))


def unknown(paths: list[Path]) -> tuple[str, ...]:
    """Returns the line about files whose names don't end as an image's, or nothing."""
    if not paths:
        return ()
    kinds = collections.Counter(suffix(path) or "no suffix" for path in paths).most_common()
    shown = ", ".join(f"{kind} {count}" for kind, count in kinds[:5])
    more = ", …" if len(kinds) > 5 else ""
    return (
        f"{_count(paths, 'file')} without a known image suffix ({shown}{more}), such as {paths[0]}",
    )


def _count(paths: list[Path], noun: str) -> str:
    return f"{len(paths):,} {noun}{'s' * (len(paths) > 1)}"
