"""Finds what a compiled program sends between devices, in its HLO text."""

import math
import re
from dataclasses import dataclass

KINDS = (
    *("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)

# "%name = RESULT KIND(OPERANDS), ATTRIBUTES"; RESULT is an array or a tuple in parentheses.
_OPERATION = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_COUNTER = ("u32", ())  # a counter of an asynchronous operation


@dataclass(frozen=True)
class Collective:
    """Describes one operation in which devices exchange data.

    Attributes:
        kind: one of `KINDS`.
        arrays: the (dtype, shape) of each array that one device receives: ('f32', (128, 4096)).
        devices: the number of devices that exchange data with each other.
        bytes_sent: the bytes that each device sends each time. Ring algorithms, which send the
            least, send (N-1)/N of what N devices gather or scatter, and twice that in an
            all-reduce.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    devices: int
    bytes_sent: int


def collectives(hlo_text: str) -> list[Collective]:
    """Lists the operations of a compiled program that move data between devices, in its order.

    Operations in groups of a single device move nothing and are left out. An operation inside a
    loop is listed once, however often the loop runs; the training step has none.

    Args:
        hlo_text: `jax.jit(f).lower(…).compile().as_text()`, of any backend.

    Raises:
        ValueError: the groups of devices have an unknown form.
    """
    matches = map(_OPERATION.search, hlo_text.splitlines())
    found = [_collective(*match.groups(), hlo_text) for match in matches if match]
    return [each for each in found if each.devices > 1]


def _collective(result: str, kind: str, start: str | None, rest: str, hlo_text: str) -> Collective:
    arrays = tuple(
        (dtype, tuple(map(int, filter(None, sizes.split(",")))))
        for dtype, sizes in _ARRAY.findall(result)
    )
    if start and kind != "all-reduce":  # The result is a tuple of operands, results and counters.
        arrays = tuple(array for array in arrays if array != _COUNTER)
        arrays = arrays[len(arrays) // 2 :]
    devices = _group_size(kind, rest, hlo_text)
    size = sum(map(_bytes, arrays))
    if kind == "reduce-scatter":
        size *= devices
    if kind == "all-reduce":
        size *= 2
    if not kind.startswith("collective-"):  # A device does not send its own part.
        size = size * (devices - 1) // devices
    return Collective(kind, arrays, devices, size)


def _group_size(kind: str, attributes: str, hlo_text: str) -> int:
    """Returns the number of devices in a group, in any of HLO's four forms.

    They are {{0,1},{2,3}}; [2,2]<=[4] (rows, columns); mesh['a'=4,'b'=2] {'b'} (the sizes of the
    axes, and those that a group spans, or 'a':(1)2 of them); and {} for all devices.
    """
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", attributes.partition("source_target_pairs=")[2])
        return 2 if any(source != target for source, target in pairs) else 1
    groups = attributes.partition("replica_groups=")[2]
    if match := re.match(r"\{\{([\d,]+)\}", groups):
        return match[1].count(",") + 1
    if match := re.match(r"\[\d+,(\d+)\]<=", groups):
        return int(match[1])
    if match := re.match(r"mesh\[(.*?)\].*? \{(.*?)\}", groups):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        spanned = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in spanned)
    if groups and not groups.startswith("{}"):
        raise ValueError(f"unknown form of replica groups: {groups[:60]}")
    header = hlo_text.partition("\n")[0]
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
    return math.prod(map(int, counts))


def _bytes(array: tuple[str, tuple[int, ...]]) -> int:
    dtype, shape = array
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return math.prod(shape) * bits // 8
