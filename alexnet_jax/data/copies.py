"""Keeps mapped copies: the R x R squares of a data set, decoded once, as uint8 in NumPy files.

DIR/NAME_raw_R/ holds SPLIT-00000-of-00010.npy, uint8 [n, R, R, 3] each, SPLIT-labels.npy, int32
[N], and copy.json, which says what they are of and makes them a copy. alexnet_jax.prepare --raw
writes it. Example i of a split is example i of the original; one that could not be decoded is
black and listed as bad.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alexnet_jax.data import identity, prepared, squares
from alexnet_jax.data.identity import normal_name
from alexnet_jax.data.sources import OtherClasses, Source, plain_name
from alexnet_jax.data.sources.source import digest as digest_of
from alexnet_jax.errors import UserError, local_path
from alexnet_jax.records import files

FORMAT = 1  # Raise it when the files change, or the pixels that `decode` gives.
HEAD = {"format": FORMAT}
LAST = "copy.json"  # The file that makes a folder a copy is written last.
# A file holds so many images, 1.6 GB at 256 pixels, which a stop can lose. Each mapping holds its
# file open, and many processes may open no more than 1024: ImageNet takes 164.
SHARD = 8192
_AGAIN = "the command that made the copy makes that file again"


class NoCopy(UserError):
    """No copy in the folder is of these data (as opposed to one that is, and is damaged)."""


@dataclass(frozen=True, eq=False)
class Copy:
    """The squares of a split in memory-mapped files, of which only what is used is read.

    Examples are numbered as in the source. `labels` int32 [N]; `mask` float32 [N] is 0 for the
    images that could not be decoded (black squares), which `bad` lists as {id: reason}. `shards`
    are the files, uint8 [n, R, R, 3] each, and `places` int64 [N, 2] has the shard and the row in
    it of each example. The other fields are those of the source and of identity.Identity.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    shards: tuple[np.ndarray, ...]
    places: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    bad: dict[int, str]
    fingerprint: str
    stamp: str
    contents: str
    origin: str
    files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        """The number of examples, undecodable ones included."""
        return len(self.labels)

    @property
    def resize_size(self) -> int:
        """The side R of the squares, in pixels."""
        return self.shards[0].shape[1]

    def rows(self, lo: int, hi: int) -> np.ndarray:
        """Returns the squares of the examples [lo, hi), copied: uint8 [hi - lo, R, R, 3]."""
        copied = np.empty((hi - lo, *self.shards[0].shape[1:]), np.uint8)
        shards, rows = self.places[lo:hi].T
        for shard in np.unique(shards):
            copied[shards == shard] = self.shards[shard][rows[shards == shard]]
        return copied


def find(
    folder: str | Path,
    name: str,
    split: str,
    resize_size: int,
    *,
    source: Source | None,
    class_names: Sequence[str] | None = None,
    skip_bad: bool = False,
) -> Copy:
    """Opens the copy of a split that lies in `folder`, or is it.

    Args:
        folder: the folder of a copy, or one that holds copies.
        name: the data set's name.
        split: the split's expression, such as `train[:90%]`.
        resize_size: the side R of the squares, in pixels.
        source: what the copy has to be of; None where the data set itself isn't on this machine:
            then a copy of that name stands for it.
        class_names: the classes in the order of the labels; the copy's own by default.
        skip_bad: take a copy some of whose images could not be decoded.

    Raises:
        NoCopy: no copy in `folder` is of these data at this size.
        UserError: the copy is damaged, or has undecodable images.
    """
    folder = local_path(folder)
    others = []
    for place, meta in _read_all(folder):
        if other := _difference(meta, name, split, resize_size, source):
            others.append(f"{place.name} {other}")
            continue
        copy = _open(place, meta, name, split, source)
        if copy.bad and not skip_bad:
            raise UserError(squares.bad_image(min(copy.bad.items())[1]))
        return _by_name(copy, class_names or copy.class_names)
    found = "; ".join(others) or f"{folder} has none"
    raise NoCopy(
        f"there is no mapped copy of {name!r}, split {split!r}, with squares of {resize_size}"
        f" pixels ({found}): make one with `python -m alexnet_jax.prepare --raw --out={folder}`"
    )


def damaged(
    folder: str | Path, progress: Callable[[str, int, int], None] = lambda *_: None
) -> list[tuple[str, str, str]]:
    """Reads the copies in `folder`. Returns (split, file, reason) of each file that was altered."""
    found = []
    for place, meta in _read_all(local_path(folder)):
        for split, kept in meta["splits"].items():
            for done, shard in enumerate(kept["shards"], start=1):
                path = place / shard["file"]
                try:
                    if digest(path) != shard["digest"]:
                        found.append((split, str(path), "its bytes and their digest differ"))
                except OSError as error:
                    found.append((split, str(path), error.strerror or str(error)))
                progress(f"digests of {place.name}, {split}", done, len(kept["shards"]))
    return found


def digest(path: Path) -> str:
    """Returns the digest of a file, which copy.json has of each shard."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _read_all(folder: Path) -> list[tuple[Path, dict]]:
    """Returns the place and the copy.json of each copy in a folder, or of the one that it is."""
    found = []
    for path in (folder / LAST, *sorted(folder.glob(f"*/{LAST}"))):
        try:
            meta = json.loads(path.read_bytes())
            if meta["format"] == FORMAT:
                found.append((path.parent, meta))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove it and {_AGAIN}") from None
    return found


def _difference(meta: dict, name: str, split: str, resize_size: int, source: Source | None) -> str:
    """Returns why a copy isn't the one that is looked for; empty if it is."""
    if meta["resize_size"] != resize_size:
        return f"has squares of {meta['resize_size']} pixels"
    if source is None:
        # Earlier commits wrote a relative name as it was given.
        if plain_name(meta["source"]) != name:
            return f"is of {meta['source']!r}"
        return "" if split in meta["splits"] else f"has no split {split!r}"
    for part in source.parts:
        if part.split not in meta["splits"]:
            return f"has no split {part.split!r}"
        if meta["splits"][part.split]["fingerprint"] != part.fingerprint:
            moved = f"{name!r} as it was before" if meta["source"] == name else repr(meta["source"])
            return f"is of {moved}"
    return ""


def _open(place: Path, meta: dict, name: str, split: str, source: Source | None) -> Copy:
    parts = [(each.split, each.first, each.end) for each in source.parts] if source else []
    parts = parts or [(split, 0, meta["splits"][split]["examples"])]
    shards, places, labels, bad = [], [], [], {}
    for part, first, end in parts:
        kept = meta["splits"][part]
        bad |= {
            sum(map(len, labels)) + i - first: why for i, why in kept["bad"] if first <= i < end
        }
        counts = [each["examples"] for each in kept["shards"]]
        numbers = np.repeat(np.arange(len(counts)) + len(shards), counts)
        rows = np.concatenate([np.arange(count) for count in counts])
        places.append(np.stack([numbers, rows], axis=1)[first:end])
        labels.append(_load(place / _labels_name(part), (len(rows),), np.int32)[first:end])
        shape = (meta["resize_size"], meta["resize_size"], 3)
        shards += [
            _load(place / each["file"], (each["examples"], *shape), np.uint8, mmap_mode="r")
            for each in kept["shards"]
        ]
    mask = np.ones(sum(map(len, labels)), np.float32)
    mask[list(bad)] = 0
    kept = meta["splits"][parts[0][0]]
    whole = parts == [(parts[0][0], 0, kept["examples"])]
    return Copy(
        name=name,
        split=split,
        class_names=tuple(map(normal_name, meta["class_names"])),
        shards=tuple(shards),
        places=np.concatenate(places),
        labels=np.concatenate(labels),
        mask=mask,
        bad=bad,
        fingerprint=source.fingerprint if source else kept["fingerprint"],
        # Of its own squares: those of the set may have changed since, with no other name or size.
        stamp=digest_of([*parts, *(meta["splits"][part]["contents"] for part, *_ in parts)]),
        contents=kept["contents"] if whole else "",
        origin=meta["origin"],
        files=source.files if source else (),
        left_out=source.left_out if source else (),
    )


def _load(path: Path, shape: tuple[int, ...], dtype: type, **options: str) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False, **options)
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
        if isinstance(array, np.memmap) and path.stat().st_size != array.offset + array.nbytes:
            raise ValueError("it holds more than its squares")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {_AGAIN}") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({reason}): remove it and {_AGAIN}") from None
    return np.asarray(array)  # Each slice of a np.memmap would run Python code.


def _by_name(copy: Copy, class_names: Sequence[str]) -> Copy:
    """Returns the copy with its labels as positions in `class_names`."""
    if copy.class_names == tuple(class_names):
        return copy
    place = {normal_name(name): label for label, name in enumerate(class_names)}
    if strays := [name for name in copy.class_names if name not in place]:
        raise OtherClasses(
            f"the copy of {copy.name!r} has class {strays[0]!r}, which isn't among the classes of"
            " training"
        )
    labels = np.array([place[name] for name in copy.class_names], np.int32)
    return replace(copy, class_names=tuple(class_names), labels=labels[copy.labels])


def copy_name(name: str, resize_size: int) -> str:
    """Returns a copy's name, imagenette_160px_v2_raw_256 for 'imagenette/160px-v2' at 256."""
    return f"{prepared.stem(name)}_raw_{resize_size}"


def folder(out: Path, name: str) -> Path:
    """Returns where a copy lies."""
    return out / name


def file_name(name: str, split: str, shard: int, shards: int) -> str:
    """Returns the name of a shard's file."""
    return f"{split}-{shard:05d}-of-{shards:05d}.npy"


def is_finished(folder: Path, splits: Iterable[str]) -> bool:
    """Returns whether a folder has what `finish` writes."""
    return all((folder / name).exists() for name in (LAST, *map(_labels_name, splits)))


def _labels_name(split: str) -> str:
    return f"{split}-labels.npy"


def encode(square: np.ndarray) -> np.ndarray:
    """Returns the square as it is."""
    return square


def write_shard(
    path: Path, count: int, resize_size: int, examples: Iterable[squares.Example]
) -> dict:
    """Writes a file of squares, which appears under its name when whole.

    Returns:
        What the copy's journal keeps of it.

    Raises:
        OSError: it cannot be written.
    """
    shape = (count, resize_size, resize_size, 3)
    black = np.zeros(shape[1:], np.uint8)
    labels, digests, bad = [], b"", []
    with files.replacing(path) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for example in examples:
            file.write((black if example.made is None else example.made).tobytes())
            labels.append(example.label)
            digests += example.digest.ljust(identity.DIGEST, b"\0")
            if example.problem:
                bad.append([example.id, example.problem])
    return {
        "examples": count,
        "bytes": path.stat().st_size,
        "bad": bad,
        "labels": labels,
        "contents": digests.hex(),
        "digest": digest(path),
    }


def finish(
    folder: Path, name: str, side: int, sources: Mapping[str, Source], shards: Mapping
) -> None:
    """Makes the files of squares a copy. Raises OSError."""
    splits = {}
    for split, source in sources.items():
        lines = [shards[file] for file in sorted(shards) if shards[file]["split"] == split]
        labels = np.concatenate([np.array(line["labels"], np.int32) for line in lines])
        np.save(folder / _labels_name(split), labels)
        splits[split] = {
            "fingerprint": source.fingerprint,
            "contents": identity.contents(
                bytes.fromhex("".join(line["contents"] for line in lines))
            ),
            "examples": len(labels),
            "bad": [each for line in lines for each in line["bad"]],
            "shards": [
                {key: line[key] for key in ("file", "examples", "digest")} for line in lines
            ],
        }
    first = next(iter(sources.values()))
    meta = {
        "format": FORMAT,
        "source": first.name,
        "origin": first.origin,
        "resize_size": side,
        "class_names": first.class_names,
        "splits": splits,
    }
    files.replace(folder / LAST, json.dumps(meta).encode())
