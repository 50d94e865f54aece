"""Lists what a compiled GPU program executes, from the text of its optimised HLO."""

import dataclasses
import json
import math
import re

from alexnet_jax.bench.collectives import KINDS

BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2},
    **{"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8},
}

# "%name = SHAPE OPCODE(OPERANDS), ATTRIBUTES"; SHAPE is an array or a tuple in parentheses.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(, .*)?$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_NOT_EXECUTED = (
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast"),
    *("after-all", "partition-id", "replica-id"),
)
_CALLS = ("while", "conditional", "call", "async-start")
_SLICES = ("slice", "dynamic-slice")
_ELEMENTWISE = ("add", "subtract", "multiply", "divide", "negate", "convert", "compare", "select")


@dataclasses.dataclass(frozen=True)
class Operation:
    """Describes one operation that the device executes: a kernel, a library call or a collective.

    Attributes:
        name: Its name in the program.
        opcode: The opcode in HLO: 'fusion', 'custom-call', 'all-reduce-start'.
        target: The function that a custom call calls; else ''.
        shape: The shape of its result, as HLO writes it.
        op_name: Its place in the Python program: 'jit(train_step)/jvp()/AlexNet/lrn1/mul'. An
            operation that the compiler added has the place of the first one that reads its result.
        read: The bytes of its operands. If an operand is only sliced, its slices count.
        written: The bytes of its results, without the working space of a library.
        flops: Two for each multiply-add of a convolution or a matrix product; else 0.
        model_us: The microseconds in XLA's own model of the card; None without a model.
        operands: The names of the instructions that it reads.
        waits: Whether the program continues only after it, unlike after an asynchronous '-start'.
    """

    name: str
    opcode: str
    target: str
    shape: str
    op_name: str
    read: int
    written: int
    flops: int
    model_us: float | None
    operands: tuple[str, ...]
    waits: bool

    @property
    def collective(self) -> bool:
        """Returns whether devices exchange data in it, or wait for an exchange."""
        return self.opcode.removesuffix("-start").removesuffix("-done") in KINDS


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operand_text: str
    attributes: str

    @property
    def operands(self) -> tuple[str, ...]:
        return tuple(_NAME.findall(self.operand_text))


def operations(hlo_text: str) -> list[Operation]:
    """Lists what the program executes, in the order of its schedule.

    The content of a loop or a branch is listed once, in its place; the training step has none.

    Args:
        hlo_text: `jax.jit(f).lower(…).compile().as_text()` for a GPU.

    Raises:
        ValueError: The text is not a program.
    """
    computations, entry = _computations(hlo_text)
    if not entry:
        raise ValueError("the text holds no program: it has no ENTRY")
    shapes = {each.name: each.shape for body in computations.values() for each in body}
    found = []

    def walk(body):
        for each in body:
            if each.opcode in _CALLS:
                called = re.findall(
                    r"(?:body|condition|to_apply|calls|\w+_computation)=%?([\w.\-]+)",
                    each.attributes,
                )
                for name in called:
                    walk(computations[name])
            elif each.opcode not in _NOT_EXECUTED:
                found.append(_operation(each, shapes, computations))

    walk(computations[entry])
    return _named(found, computations[entry])


def _named(found: list[Operation], body: list[_Instruction]) -> list[Operation]:
    """Gives operations without an `op_name` that of the first one that reads their result."""
    own = {each.name: each.op_name for each in found if each.op_name}
    names = dict(own)
    for each in reversed(body):  # An instruction follows those that it reads.
        if name := names.get(each.name):
            names |= {operand: name for operand in each.operands if operand not in own}
    return [dataclasses.replace(each, op_name=names.get(each.name, "")) for each in found]


def _computations(hlo_text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations, body, entry = {}, None, ""
    for line in hlo_text.splitlines():
        if head := _COMPUTATION.match(line):
            body = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif body is not None and (match := _INSTRUCTION.match(line)):
            *parts, attributes = match.groups()
            body.append(_Instruction(*parts, attributes or ""))
    return computations, entry


def _operation(each: _Instruction, shapes: dict, computations: dict) -> Operation:
    target = re.search(r'custom_call_target="([^"]*)"', each.attributes)
    target = target[1] if target else ""
    arrays = _ARRAY.findall(each.shape)
    if target.startswith(("__cublas", "__cudnn")) and len(arrays) > 1:
        arrays = arrays[:-1]  # The last result is the working space of the library.
    written = sum(map(_bytes, arrays))
    read = _read(each, shapes, computations)
    if each.opcode.endswith("-start") and each.shape.startswith("(") and written > read:
        written -= read  # The first results of an asynchronous collective are its operands.
    if each.opcode.endswith("-done"):
        read = written = 0
    waits = not each.opcode.endswith("-start") or '"is_sync":true' in each.attributes
    return Operation(
        name=each.name,
        opcode=each.opcode,
        target=target,
        shape=each.shape,
        op_name=_op_name(each, computations),
        read=read,
        written=written,
        flops=_flops(each, shapes, target),
        model_us=_model_us(each.attributes),
        operands=each.operands,
        waits=waits,
    )


def _op_name(each: _Instruction, computations: dict) -> str:
    """Returns the `op_name` of an instruction, or for a fusion without one the last inside it."""
    fused = re.search(r"calls=%?([\w.\-]+)", each.attributes)
    inside = computations.get(fused[1], []) if fused else []
    texts = [inner.attributes for inner in inside] + [each.attributes]
    names = [match[1] for text in texts if (match := re.search(r'op_name="([^"]*)"', text))]
    return names[-1] if names else ""


def _bytes(array: tuple[str, str]) -> int:
    dtype, sizes = array
    return BYTES[dtype] * math.prod(int(size) for size in sizes.split(",") if size)


def _shape_bytes(shape: str) -> int:
    return sum(map(_bytes, _ARRAY.findall(shape)))


def _read(each: _Instruction, shapes: dict, computations: dict) -> int:
    """Returns the bytes of an instruction's operands, of which a fusion may read only slices."""
    whole = [_shape_bytes(shapes.get(name, "")) for name in each.operands]
    fused = re.search(r"calls=%?([\w.\-]+)", each.attributes)
    if each.opcode != "fusion" or not fused:
        return sum(whole)
    body = computations[fused[1]]
    parameters = {
        int(inner.operand_text): inner.name for inner in body if inner.opcode == "parameter"
    }
    read = 0
    for number, size in enumerate(whole):
        sliced = _sliced(parameters.get(number), body)
        if sliced is not None:
            size = min(size, size * sliced // _elements(shapes[each.operands[number]]))
        read += size
    return read


def _sliced(name: str | None, body: list[_Instruction]) -> int | None:
    """Returns the elements of a value that a fusion reads in slices, or None if it reads all.

    A slice may also follow element-wise steps, of which only its elements are computed.
    """
    users = [inner for inner in body if name in inner.operands]
    sizes = [
        _elements(user.shape)
        if user.opcode in _SLICES
        else _sliced(user.name, body)
        if user.opcode in _ELEMENTWISE
        else None
        for user in users
    ]
    return sum(sizes) if sizes and None not in sizes else None


def _elements(shape: str) -> int:
    return math.prod(int(size) for size in _ARRAY.search(shape)[2].split(",") if size)


def _model_us(attributes: str) -> float | None:
    """Returns XLA's estimate, by its model of fusions or else by its speed-of-light model."""
    costs = re.search(r'"reification_cost":(\[[^\]]*\])', attributes)
    named = {cost["name"]: cost["exec_time_us"] for cost in json.loads(costs[1])} if costs else {}
    return named.get("", named.get("sol"))


def _flops(each: _Instruction, shapes: dict, target: str) -> int:
    """Returns 2 x outputs x window x input features for a call of cuDNN or cuBLAS."""
    labels = re.search(r"dim_labels=(\w+?)_(\w+?)->(\w+)", each.attributes)
    if not labels and not target.startswith("__cublas"):
        return 0
    result, *operands = (
        [int(size) for size in _ARRAY.search(shape)[2].split(",") if size]
        for shape in (each.shape, *(shapes[name] for name in each.operands[:2]))
    )
    if not labels:  # The product of all sizes of [M, K], [K, N] and [M, N] is (M N K)^2.
        return 2 * math.isqrt(math.prod(result) * math.prod(operands[0]) * math.prod(operands[1]))
    if "BackwardInput" in target:  # Its operand is the gradient of the output.
        outputs, kernel = operands
    elif "BackwardFilter" in target:
        outputs, kernel = operands[1], result
    else:
        outputs, kernel = result, operands[1]
    inputs = [size for size, label in zip(kernel, labels[2], strict=True) if label != "o"]
    return 2 * math.prod(outputs) * math.prod(inputs)
