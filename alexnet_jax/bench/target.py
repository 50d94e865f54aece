"""The cards that a program can be compiled for without having one: a text file for each."""

import re
from dataclasses import dataclass
from pathlib import Path

from alexnet_jax.errors import choose

FOLDER = Path(__file__).parent / "targets"
# Numbers of xla.PrimitiveType, by which a target's matrix units are listed.
_PRIMITIVE_TYPES = {"float32": 11, "bfloat16": 16}


@dataclass(frozen=True)
class Target:
    """One kind of card.

    Attributes:
        name: The file's, 'h100'.
        text: XLA's GpuTargetConfigProto, as text.
        description: NVIDIA's name of the card.
        bandwidth: Bytes a second between the device's memory and its cores.
        links: Bytes a second that a device sends over all its NVLinks, 25e9 on each (NVIDIA's data
            sheets of A100 and H100).
        memory: Bytes of the device's memory.
        modelled: Whether XLA's model of libraries and collectives knows the card: its tables of
            matrix products begin with compute capability 9.0.
        peaks: Floating-point operations a second of its matrix units by dtype, dense; float32 is
            multiplied as TF32, as XLA does by default.
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
