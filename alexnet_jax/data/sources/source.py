"""One split of a data set, open for reading, and what can keep it from being opened."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from alexnet_jax.data.identity import some
from alexnet_jax.errors import UserError

Progress = Callable[[str, int, int], None]  # what, done, total, which is 0 where nobody knows it


class SourceMissing(UserError):
    """The data set is not on this machine (as opposed to being there, and wrong)."""


class OtherClasses(UserError):
    """The data set has a class that isn't among those asked for."""


@dataclass(frozen=True)
class Part:
    """The examples [first, end) of a whole split, whose `fingerprint` is that of Identity."""

    split: str
    first: int
    end: int
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """One split: `num_examples` encoded images with their labels, by index, in a fixed order.

    `read(i)` returns the encoded bytes and the label, from any number of threads at once; it raises
    OSError where the file cannot be read, ValueError where a record is corrupt. The label may lie
    outside the classes, as the -1 of TFDS's splits without labels does: see `has_label`.
    `describe(i)` says where example i stands. `left_out` has a line for each kind of file that lies
    in the split's folder and is not read; `elsewhere` is a line about the folder where it has
    another name than the split, and empty otherwise.

    `fingerprint`, `origin` and `files` are those of identity.Identity. `stamp` is the fingerprint
    with the files' times: what was derived from the data is stale where it differs. `parts` says
    which examples of which whole splits these are, one after the other.
    """

    name: str
    split: str
    num_examples: int
    class_names: tuple[str, ...]
    fingerprint: str
    stamp: str
    read: Callable[[int], tuple[bytes, int]]
    describe: Callable[[int], str]
    origin: str = ""
    files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    elsewhere: str = ""
    parts: tuple[Part, ...] = ()

    def has_label(self, label: int) -> bool:
        """Returns whether a label that was read is one of the classes."""
        return 0 <= label < len(self.class_names)

    def check_label(self, i: int, label: int) -> None:
        """Raises UserError where example i has no label to train on or to count errors by."""
        if not self.has_label(label):
            raise UserError(
                f"{self.describe(i)} has the label {label}, none of the {len(self.class_names)}"
                f" classes of {self.name!r}: split {self.split!r} can be neither trained on nor"
                " evaluated; choose one with labels"
            )


def stray(where: str, name: str, class_names: Sequence[str]) -> OtherClasses:
    """Returns the error that `where` has a class which isn't among those of training."""
    known = some(tuple(class_names))
    return OtherClasses(
        f"{where} has class {name!r}, which isn't among the classes of training: {known}"
    )


def digest(parts: Iterable[Any]) -> str:
    """Returns a digest of plain values."""
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()


def one_line(error: object) -> str:
    """Returns the beginning of an exception's message as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
