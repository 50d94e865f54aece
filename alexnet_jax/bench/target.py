"""Reads the cards for which a program can be compiled without having one, from text files."""

import re
from dataclasses import dataclass
from pathlib import Path

from alexnet_jax.errors import choose

FOLDER = Path(__file__).parent / "targets"
# The numbers of xla.PrimitiveType, by which the matrix units of a target are listed.
_PRIMITIVE_TYPES = {"float32": 11, "bfloat16": 16}


@dataclass(frozen=True)
class Target:
    """Describes one kind of card.

    Attributes:
        name: The name of its file, 'h100'.
        text: XLA's GpuTargetConfigProto, as text.
        description: NVIDIA's name of the card.
        bandwidth: The bytes per second between its memory and its cores.
        links: The bytes per second that it sends over all its NVLinks, 25e9 on each (NVIDIA's data
            sheets of A100 and H100).
        memory: The bytes of its memory.
        modelled: Whether XLA's model of libraries and collectives knows the card, as it does from
            compute capability 9.0 on.
        peaks: The dense floating-point operations per second of its matrix units by dtype; float32
            is multiplied as TF32, as XLA does by default.
    """

    name: str
    text: str
    description: str
    bandwidth: float
    links: float
    memory: int
    modelled: bool
    peaks: dict[str, float]


def load(name: str) -> Target:
    """Reads a target by its name.

    Raises:
        UserError: There is no target of that name.
    """
    choose(name, sorted(path.stem for path in FOLDER.glob("*.txtpb")), "--target")
    text = (FOLDER / f"{name}.txtpb").read_text()

    def fact(field):
        return float(re.search(rf"\b{field}: ([\d.]+)", text)[1])

    rates = re.findall(
        r"key: (\d+) value { clock_rate_ghz: ([\d.]+) units_per_core: (\d+) ops_per_clock: (\d+)",
        text,
    )
    # A multiply-add counts as two operations.
    flops = {
        int(key): fact("core_count") * int(units) * int(per_clock) * 2e9 * float(clock)
        for key, clock, units, per_clock in rates
    }
    return Target(
        name=name,
        text=text,
        description=re.search(r'device_description_str: "(.*)"', text)[1],
        bandwidth=fact("memory_bandwidth"),
        links=25e9 * fact("active_links"),
        modelled=fact("major") >= 9,
        memory=int(fact("device_memory_size")),
        peaks={dtype: flops[number] for dtype, number in _PRIMITIVE_TYPES.items()},
    )
