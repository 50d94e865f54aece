"""Holds a decoded split in the host's memory, and keeps it in a file of the cache folder."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alexnet_jax.data import cache, control_groups, identity, squares
from alexnet_jax.data.identity import normal_name
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UserError

_FORMAT = 2  # Raise it when `decode` gives other pixels. (2 shows 32 bits by their range.)
# So many bytes of the host's memory are left to everything else.
RESERVE = 2**30


@dataclass(frozen=True, eq=False)
class Squares:
    """A decoded split in host memory: squares uint8 [N, R, R, 3], labels int32 [N].

    `mask` float32 [N] is 0 for the images that could not be decoded (black squares), which `bad`
    lists as {id: reason}. `fingerprint`, `stamp`, `origin`, `files` and `left_out` are those of the
    source that it was made from, empty where they aren't known; `contents` is that of
    identity.Identity.
    """

    name: str
    split: str
    fingerprint: str
    stamp: str
    class_names: tuple[str, ...]
    squares: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    bad: dict[int, str]
    left_out: tuple[str, ...] = ()
    contents: str = ""
    origin: str = ""
    files: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        """The number of examples, undecodable ones included."""
        return len(self.labels)

    @property
    def resize_size(self) -> int:
        """The side R of the squares, in pixels."""
        return self.squares.shape[1]

    def rows(self, lo: int, hi: int) -> np.ndarray:
        """Returns the squares of the examples [lo, hi): uint8 [hi - lo, R, R, 3]."""
        return self.squares[lo:hi]


def load(
    source: Source,
    resize_size: int,
    *,
    skip_bad: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Squares:
    """Returns the decoded split, from the cache folder if it is there, or else decoded and kept.

    What was kept with images that another version of the decoder found bad is decoded again.
    `progress(what, done, total)` is called while decoding. Raises UserError if the squares would
    leave less than `RESERVE` of the free memory, or if an image cannot be decoded and `skip_bad`
    isn't set.
    """
    size = source.num_examples * resize_size**2 * 3
    free = free_memory()
    if size > free - RESERVE:
        raise UserError(
            f"data set {source.name!r}, split {source.split!r}, takes {size / 2**30:.1f} GiB"
            f" decoded, and {free / 2**30:.1f} GiB of memory are free, {RESERVE / 2**30:.0f} of"
            " them kept for all else: set data.backend to 'tfdata', or make a copy with"
            " `python -m alexnet_jax.prepare --raw` and name its folder with data.copies"
        )
    path = _path(source, resize_size)
    names = ("fingerprint", "origin", "files", "left_out")
    known = {name: getattr(source, name) for name in names}
    if (kept := _read(path, skip_bad, source)) and kept.stamp == source.stamp:
        return replace(kept, **known)

    count = source.num_examples
    pixels = np.empty((count, resize_size, resize_size, 3), np.uint8)
    labels = np.empty(count, np.int32)
    mask = np.empty(count, np.float32)
    bad: dict[int, str] | None = {} if skip_bad else None
    done = 0
    progress = progress or (lambda *_: None)
    progress(f"decoding {source.split}", 0, count)
    read, contents = identity.digesting(source.read, count)
    for chunk in squares.read_all(replace(source, read=read), resize_size, bad=bad):
        rows = slice(done, done + len(chunk[0]))
        pixels[rows], labels[rows], mask[rows] = chunk
        done = rows.stop
        progress(f"decoding {source.split}", done, count)
    decoded = Squares(
        name=source.name,
        split=source.split,
        stamp=source.stamp,
        class_names=source.class_names,
        squares=pixels,
        labels=labels,
        mask=mask,
        bad=dict(sorted(bad.items())) if bad else {},
        contents=contents(),
        **known,
    )
    _write(path, decoded, resize_size)
    return decoded


def is_kept(source: Source, resize_size: int) -> bool:
    """Returns whether an earlier run has decoded the split and kept it."""
    return _path(source, resize_size).exists()


def _path(source: Source, resize_size: int) -> Path:
    return cache.folder() / _file_name(source.name, source.split, resize_size, source.stamp)


def load_kept(name: str, split: str, resize_size: int, *, skip_bad: bool = False) -> Squares | None:
    """Returns a split decoded earlier, for a machine that lacks the data set itself.

    Raises UserError as `load` does, and if files of several versions of the data set are kept.
    """
    found = cache.folder().glob(_file_name(name, split, resize_size, "*", version="[0-9]"))
    # Each version of the data set has the file that was decoded last.
    files = list({_version(file): file for file in sorted(found, key=_age)}.values())
    if len(files) > 1:
        raise UserError(
            f"data set {name!r} isn't here, and its decoded files are of {len(files)} versions:"
            f" keep one of {', '.join(map(str, files))}"
        )
    return _read(files[0], skip_bad, None) if files else None


def _age(file: Path) -> tuple[str, float]:
    """Returns what sorts kept files: their format, and when they were written."""
    return file.stem.split("-")[-2], file.stat().st_mtime


def _version(file: Path) -> object:
    """Returns what is the same for kept files that hold the same examples, whatever their stamps.

    The same files have other stamps on another machine, for they have other times there.
    """
    arrays, meta = cache.read(file, only=["class_names"]) or ({}, {})
    contents = meta.get("identity", ("", "", ""))[1]
    # Early commits kept no digest of the contents.
    return (contents, *arrays["class_names"]) if contents else file.stem.rpartition("-")[2]


def _file_name(
    name: str, split: str, resize_size: int, stamp: str, version: int | str = _FORMAT
) -> str:
    return f"{cache.slug(name, split)}-{resize_size}px-v{version}-{stamp[:16]}.npz"


def _write(path: Path, decoded: Squares, resize_size: int) -> None:
    meta = {
        "name": decoded.name,
        "split": decoded.split,
        "fingerprint": decoded.stamp,  # Earlier commits call the stamp so.
        "identity": [decoded.fingerprint, decoded.contents, decoded.origin],
        "resize_size": resize_size,
        "bad": list(decoded.bad.items()),
        "decoder": squares.decoder(),
    }
    arrays = {
        "squares": decoded.squares,
        "labels": decoded.labels,
        "mask": decoded.mask,
        "class_names": np.array(decoded.class_names),
    }
    cache.write(path, arrays, meta)


def _read(path: Path, skip_bad: bool, source: Source | None) -> Squares | None:
    """Returns what `_write` wrote; None where it doesn't serve and `source` has to be decoded."""
    kept = cache.read(path)
    if kept is None:
        return None
    arrays, meta = kept
    if source and squares.outdated(meta):
        return None
    if meta["bad"] and not skip_bad:
        raise UserError(squares.bad_image(meta["bad"][0][1]))
    if not np.isin(arrays["labels"], range(len(arrays["class_names"]))).all():
        return None  # Earlier commits kept splits without labels.
    fingerprint, contents, origin = meta.get("identity", ("", "", ""))
    return Squares(
        name=meta["name"],
        split=meta["split"],
        fingerprint=fingerprint,
        stamp=meta["fingerprint"],
        contents=contents,
        origin=origin,
        class_names=tuple(map(normal_name, arrays["class_names"].tolist())),
        squares=arrays["squares"],
        labels=arrays["labels"],
        mask=arrays["mask"],
        bad=dict(meta["bad"]),
    )


def free_memory() -> int:
    """Returns the bytes that this process may still take, of the machine and its control groups."""
    return min([_available(), *control_groups.memory()])


def _available() -> int:
    """Returns the bytes that the machine has free."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # Only Linux has this file.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
