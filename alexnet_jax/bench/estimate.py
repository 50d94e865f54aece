"""Estimates the cost of a compiled program on a card: time, bytes and kind of each operation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from alexnet_jax.bench.hlo import Operation
from alexnet_jax.bench.target import Target

KINDS = (
    "convolutions",
    "ReLU, LRN and pooling",
    "bias, join and cast",
    "matrix products",
    "update",
    "collectives",
    "other",
)
# The names that the net gives its operations (models/operations.py), as scopes of the program.
_LAYER = re.compile(r"(?:^|/)((?:conv|act|lrn|norm|pool|fc|drop|local)\d+[a-z]?)(?=/|$)")
_MAPS = re.compile(r"(act|lrn|norm|pool)\d")


@dataclass(frozen=True)
class Cost:
    """Holds an operation with its cost.

    Attributes:
        operation: The operation.
        kind: One of `KINDS`.
        layer: The net's operation to which it belongs, 'lrn1' or 'lrn1, backward', or ''.
        us: The microseconds that it takes.
        moved: The bytes that it reads and writes if nothing stays in a cache.
    """

    operation: Operation
    kind: str
    layer: str
    us: float
    moved: int


def costs(operations: Sequence[Operation], target: Target, dtype: str) -> list[Cost]:
    """Estimates the cost of all operations by one rule.

    An operation takes the time of XLA's model of the card. An operation without a model takes the
    longer of two times: that of its floating-point operations at the card's dense peak, and that of
    its bytes at the bandwidth of the memory (of a collective, at that of the links). So no call of
    a library or of a hand-written kernel is free.

    Args:
        operations: The operations that the program executes (see hlo.operations).
        target: The card, with its rates in operations and bytes per second.
        dtype: The dtype of the net's computation, 'float32' or 'bfloat16', on which the peak
            depends.
    """
    found = []
    for each in operations:
        moved = each.read + each.written
        us = each.model_us
        if us is None:
            rate = target.links if each.collective else target.bandwidth
            us = 1e6 * max(each.flops / target.peaks[dtype], moved / rate)
        if each.opcode.endswith("-done"):  # Its cost is counted at its start.
            us = 0.0
        found.append(Cost(each, kind(each), layer(each), us, moved))
    return found


def layer(each: Operation) -> str:
    """Returns the net's operation in whose scope this one was traced, and if it is backward."""
    match = _LAYER.search(each.op_name)
    if not match:
        return ""
    return f"{match[1]}, backward" if "transpose(" in each.op_name else match[1]


def kind(each: Operation) -> str:
    """Returns the kind of an operation, by what runs it or else by the scope of its last step."""
    if each.collective:
        return "collectives"
    if "cudnn" in each.target or each.opcode == "convolution":
        return "convolutions"
    if "cublas" in each.target or each.opcode == "dot":
        return "matrix products"
    if match := _LAYER.search(each.op_name):
        return "ReLU, LRN and pooling" if _MAPS.match(match[1]) else "bias, join and cast"
    if "/AlexNet/" in each.op_name:
        return "bias, join and cast"
    return "update" if "/update/" in each.op_name else "other"


def schedule(priced: Sequence[Cost]) -> tuple[float, dict[str, float]]:
    """Simulates the program's schedule on two queues, one of kernels and one of collectives.

    Collectives run one after the other, beside the kernels. The kernels wait at the end of each
    collective until it has finished.

    Returns:
        The microseconds until everything has finished, and for each collective's name the time for
        which the kernels waited.
    """
    now = free = 0.0  # when the queue of kernels and that of collectives have finished so far
    ends, waited = {}, {}
    for cost in priced:
        each = cost.operation
        if not each.collective:
            now += cost.us
            continue
        name = each.name
        if each.opcode.endswith("-done"):
            name = each.operands[0]
        else:
            ends[name] = free = max(now, free) + cost.us
            waited[name] = 0.0
        if each.waits:
            waited[name] += max(0.0, ends[name] - now)
            now = max(now, ends[name])
    return max(now, free), waited
