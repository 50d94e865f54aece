"""What a compiled GPU program executes, read from the text of its optimised HLO."""

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
    """One operation that the device executes: a kernel, a call of a library, or a collective.

    Attributes:
        name: Its own in the program.
        opcode: HLO's: 'fusion', 'custom-call', 'all-reduce-start'.
        target: Of a custom call, the function that is called; else ''.
        shape: Of its result, as HLO writes it.
        op_name: Where it stands in the Python program: 'jit(train_step)/jvp()/AlexNet/lrn1/mul'. An
            operation that the compiler made itself has that of the first one that reads its result.
        read, written: Bytes of its operands and of its results. Of an operand that is only sliced,
            the slices count; what a library is given as working space doesn't.
        flops: Of a convolution or a matrix product, two for each multiply-add; else 0.
        model_us: Microseconds that XLA's own model of the card gives it; None without a model.
        operands: Names of the instructions that it reads.
        waits: Whether the program goes on only when it is done: not so of an asynchronous '-start'.
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
        """Whether devices exchange data in it, or wait for one in which they do."""
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

    What a loop or a branch holds stands where the loop does, and once: the train step has none.

    Args:
        hlo_text: `jax.jit(f).lower(…).compile().as_text()` for a GPU.

    Raises:
        ValueError: The text is no program.
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
    """Gives each operation without an `op_name` that of the first one that reads its result."""
    own = {each.name: each.op_name for each in found if each.op_name}
    names = dict(own)
    for each in reversed(body):  # an instruction stands after those that it reads
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
        arrays = arrays[:-1]  # the last result is the library's working space
    written = sum(map(_bytes, arrays))
    read = _read(each, shapes, computations)
    if each.opcode.endswith("-start") and each.shape.startswith("(") and written > read:
        written -= read  # of an asynchronous collective's results, the first are its operands
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
    """The instruction's own, or of a fusion without one the last that stands in it."""
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
    """Bytes of an instruction's operands; a fusion reads no more of one than it slices out."""
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
    """Elements of a value that a fusion reads, if it reads no more than slices; None: all.

    A slice may also be taken after element-wise steps: only what is in it is computed.
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
    """XLA's estimate: its model of fusions where it has one, else its speed-of-light model."""
    costs = re.search(r'"reification_cost":(\[[^\]]*\])', attributes)
    named = {cost["name"]: cost["exec_time_us"] for cost in json.loads(costs[1])} if costs else {}
    return named.get("", named.get("sol"))


def _flops(each: _Instruction, shapes: dict, target: str) -> int:
    """2 x outputs x window x input features, from the shapes of a call of cuDNN or cuBLAS."""
    labels = re.search(r"dim_labels=(\w+?)_(\w+?)->(\w+)", each.attributes)
    if not labels and not target.startswith("__cublas"):
        return 0
    result, *operands = (
        [int(size) for size in _ARRAY.search(shape)[2].split(",") if size]
        for shape in (each.shape, *(shapes[name] for name in each.operands[:2]))
    )
    if not labels:  # of [M, K] and [K, N]: the product of all sizes is (M N K)^2
        return 2 * math.isqrt(math.prod(result) * math.prod(operands[0]) * math.prod(operands[1]))
    if "BackwardInput" in target:  # its operand is the gradient of the output
        outputs, kernel = operands
    elif "BackwardFilter" in target:
        outputs, kernel = operands[1], result
    else:
        outputs, kernel = result, operands[1]
    inputs = [size for size, label in zip(kernel, labels[2], strict=True) if label != "o"]
    return 2 * math.prod(outputs) * math.prod(inputs)
