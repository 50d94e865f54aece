"""The expressions that name parts of TFDS's splits, with TFDS's rounding, and the files behind.

https://www.tensorflow.org/datasets/splits describes them; `train[:90%]+test[100:]` is one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PART = re.compile(r"(?P<split>[\w-]+)(\[(?P<bounds>[\w%:.-]+)\])?")
_BOUND = re.compile(r"((?P<value>-?[\d_.]+)(?P<unit>%|shard)?)?")


@dataclass(frozen=True)
class Shard:
    """A file of records and their number."""

    path: str
    examples: int


@dataclass(frozen=True)
class Rows:
    """`take` records of a file from the `skip`-th on.

    The fields are named as TFDS and the reader of ArrayRecord files name them.
    """

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def rows(expression: str, splits: Mapping[str, Sequence[Shard]]) -> list[Rows]:
    """Returns the records that an expression stands for, file by file.

    Args:
        expression: the name of a split, `all`, or TFDS's expression for parts of splits.
        splits: the files of each whole split.

    Raises:
        ValueError: there is no such split, or the expression is none of TFDS's.
    """
    found = []
    for part in re.split(r"\s*\+\s*", expression):
        if part == "all" and part not in splits:
            for shards in splits.values():
                found += _between(shards, 0, sum(shard.examples for shard in shards))
            continue
        match = _PART.fullmatch(part)
        if not match or match["split"] not in splits:
            raise ValueError(f"{part!r} is neither a split nor a part of one")
        shards = splits[match["split"]]
        found += _between(shards, *_bounds(match["bounds"], shards))
    return found


def _bounds(text: str | None, shards: Sequence[Shard]) -> tuple[int, int]:
    """Returns the examples [first, end) of a split that the text in its brackets stands for."""
    count = sum(shard.examples for shard in shards)
    if text is None:
        return 0, count
    bounds = [_BOUND.fullmatch(each) for each in text.split(":")]
    if not all(bounds) or not any(each[0] for each in bounds) or len(bounds) > 2:
        raise ValueError(f"[{text}] is no part of a split")
    unit = next((each["unit"] for each in bounds if each["unit"]), "")
    number = float if unit == "%" else int
    first, end = (
        None if each["value"] is None else number(each["value"]) for each in (bounds * 2)[:2]
    )
    if len(bounds) == 1:
        if unit != "shard":
            raise ValueError(f"[{text}] needs a colon")
        end = first + 1
    first, end = (
        default if bound is None else _examples(bound, unit, shards, is_end)
        for bound, default, is_end in ((first, 0, False), (end, count, True))
    )
    if max(abs(first), abs(end)) > count:
        raise ValueError(f"[{text}] goes beyond its {count} examples")
    return first + count * (first < 0), end + count * (end < 0)


def _examples(bound: float, unit: str, shards: Sequence[Shard], is_end: bool) -> int:
    """Returns a bound in examples, counted from the split's end where it is negative."""
    if unit == "%":
        if abs(bound) > 100:
            raise ValueError(f"{bound:g}% is beyond the whole")
        return round(bound * sum(shard.examples for shard in shards) / 100.0)
    if unit == "shard":
        if is_end and bound <= 0:
            bound += len(shards)
        return sum(shard.examples for shard in shards[:bound])
    return bound


def _between(shards: Sequence[Shard], first: int, end: int) -> list[Rows]:
    """Returns the records [first, end) of a split's files."""
    found, position = [], 0
    for shard in shards:
        skip = max(first - position, 0)
        take = min(end - position, shard.examples) - skip
        if take > 0:
            found.append(Rows(shard.path, skip, take, shard.examples))
        position += shard.examples
    return found
