"""Says what a split is, wherever it lies: its classes, its files' names and sizes, their contents.

A run keeps this of its data, so that it can be told when the data have changed under it.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

DIGEST = 16  # An example's digest has so many bytes.
_NAMED = 3  # A message names so many files or classes and counts the rest.


@dataclass(frozen=True)
class Identity:
    """What is known of a split.

    split: its expression, such as `train[:90%]`.
    origin: the data set and its version; empty for folders, which have none.
    num_examples: how many examples it has, undecodable ones included.
    class_names: the classes in the order of the labels.
    fingerprint: digest of names and sizes, whatever the place and the times; empty if unknown.
    contents: digest of every example's bytes; empty where they haven't all been read.
    files: for folders `CLASS/IMAGE` and the size in bytes, with a NUL between; else empty.
    """

    split: str
    origin: str
    num_examples: int
    class_names: tuple[str, ...]
    fingerprint: str
    contents: str = ""
    files: tuple[str, ...] = ()


def differences(one: Identity, other: Identity, words: tuple[str, str] = ("then", "now")) -> str:
    """Returns what differs, for a message; empty if the data are the same as far as is known.

    `words` say which is which: "80 examples then, 120 now".
    """
    found = []
    if one.class_names != other.class_names:
        found += _only("classes", one.class_names, other.class_names, words)
        if not found:
            found.append("the classes are in another order")
    if one.num_examples != other.num_examples:
        found.append(f"{one.num_examples} examples {words[0]}, {other.num_examples} {words[1]}")
    known = one.fingerprint and other.fingerprint
    if known and one.origin != other.origin:
        kinds = (each.origin or "a folder" for each in (one, other))
        found.append(", ".join(f"{kind} {word}" for kind, word in zip(kinds, words, strict=True)))
    if known and one.fingerprint != other.fingerprint:
        if one.files and other.files:
            found += _changed_files(one.files, other.files, words)
        elif not found:
            found.append("the names or sizes of its files differ")
    elif not found and one.contents and other.contents and one.contents != other.contents:
        found.append("files of the same names and sizes have other contents")
    return "; ".join(found)


def _changed_files(one: Sequence[str], other: Sequence[str], words: tuple[str, str]) -> list[str]:
    sizes, others = (dict(normal_name(line).split("\0") for line in each) for each in (one, other))
    resized = [name for name in sizes if others.get(name, sizes[name]) != sizes[name]]
    changed = [f"files of another size: {some(resized, _NAMED)}"] if resized else []
    found = _only("files", sizes, others, words) + changed
    return found or ["the files are in another order"]


def _only(what: str, one: Iterable, other: Iterable, words: tuple[str, str]) -> list[str]:
    """Returns what only one of two has, with its word."""
    one, other = dict.fromkeys(one), dict.fromkeys(other)
    sides = zip((one, other), (other, one), words, strict=True)
    rest = [(word, [name for name in own if name not in theirs]) for own, theirs, word in sides]
    return [f"{what} only {word}: {some(names, _NAMED)}" for word, names in rest if names]


def fingerprint(files: Sequence[str]) -> str:
    """Returns the digest of `Identity.files`, the same however the letters are composed."""
    digest = hashlib.sha256()
    for line in files:
        digest.update(os.fsencode(normal_name(line) + "\n"))
    return digest.hexdigest()


def normal_name(name: str) -> str:
    """Returns the name with letters and accents composed (NFC), as macOS may take them apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def some(names: Sequence[str], limit: int = 5) -> str:
    """Returns the first names for a message, and how many more there are."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def digesting(
    read: Callable[[int], tuple[bytes, int]], num_examples: int
) -> tuple[Callable[[int], tuple[bytes, int]], Callable[[], str]]:
    """Returns `read`, noting what it returns, and a function for the digest of all once read."""
    digests = np.zeros((num_examples, DIGEST), np.uint8)

    def noting(i: int) -> tuple[bytes, int]:
        encoded, label = read(i)
        digests[i] = np.frombuffer(example_digest(encoded, label), np.uint8)
        return encoded, label

    return noting, lambda: contents(digests.tobytes())


def example_digest(encoded: bytes, label: int) -> bytes:
    """Returns the digest of an example, of `DIGEST` bytes."""
    return hashlib.blake2b(encoded, digest_size=DIGEST, key=str(label).encode()).digest()


def contents(digests: bytes) -> str:
    """Returns `Identity.contents` of the digests of all examples in order."""
    return hashlib.sha256(digests).hexdigest()
