"""Checks what a sweep's file defines, before it becomes a `definition.Sweep`."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from alexnet_jax.errors import UserError, choose

KINDS = {"base": str, "variants": dict, "overrides": dict, "seeds": int, "baseline": str}
KINDS |= {"measures": tuple, "paper": dict, "published": dict, "family": bool}


def check(path: Path, defined: dict, fields: dict, known: Sequence[str]) -> None:
    """Refuses a sweep without its base or variants, with values of another kind, or misspelt.

    Args:
        path: the file.
        defined: what it defines.
        fields: that of it which `Sweep` takes, by the fields' names.
        known: the names that the file may define.

    Raises:
        UserError: see above.
    """
    for name in ("base", "variants"):
        if not fields.get(name):
            raise UserError(f"sweep '{path}' defines no {name.upper()}")
    for name, kind in KINDS.items():
        value = fields.get(name, kind())
        if not isinstance(value, kind):
            raise UserError(f"sweep '{path}': {name.upper()} = {value!r} is no {kind.__name__}")
    for name, value in fields["variants"].items():
        if not isinstance(value, dict):
            raise UserError(f"sweep '{path}': the fields of '{name}', {value!r}, are no dict")
    if fields.get("seeds", 1) < 1:
        raise UserError(f"sweep '{path}': SEEDS = {fields['seeds']} is not positive")
    for name in defined:
        near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
        if name.isupper() and name not in known and near:
            raise UserError(f"sweep '{path}': unknown {name}; did you mean {near[0]}?")


def check_said(path: Path, fields: dict, measures: Sequence[str]) -> None:
    """Refuses what PAPER and PUBLISHED say of unknown variants or measures, and other values.

    A verdict would take any other text for "lower", and so turn round.

    Args:
        path: the file.
        fields: what it defines, by the fields' names.
        measures: those of the sweep.

    Raises:
        UserError: see above.
    """
    for name in ("paper", "published"):
        for variant, said in fields.get(name, {}).items():
            choose(variant, fields["variants"], f"sweep '{path}': {name.upper()}")
            where = f"sweep '{path}': {name.upper()} of '{variant}'"
            by_measure = isinstance(said, dict) and name == "paper"
            for measure in said if by_measure else ():
                choose(measure, measures, where)
            words = ("higher", "lower") if name == "paper" else ()
            for value in said.values() if by_measure else (said,):
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not number and value not in words:
                    allowed = " or ".join(["a number", *(f"'{word}'" for word in words)])
                    raise UserError(f"{where} is {value!r}: it must be {allowed}")
