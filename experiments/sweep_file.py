"""Checks what a sweep's file defines, before it becomes a `definition.Sweep`."""

import difflib
from pathlib import Path

from alexnet_jax.errors import UserError

# The names that a sweep's file may define, each a field of `Sweep`, and the kinds of their values.
NAMES = ["BASE", "VARIANTS", "OVERRIDES", "SEEDS", "UNIT", "BASELINE", "CLAIM", "MEASURES"]
NAMES += ["PAPER", "PUBLISHED", "FAMILY"]
KINDS = {"base": str, "variants": dict, "overrides": dict, "seeds": int, "baseline": str}
KINDS |= {"measures": tuple, "paper": dict, "published": dict, "family": bool}


def check(path: Path, defined: dict, fields: dict) -> None:
    """Refuses a sweep without its base or variants, with values of another kind, or misspelt."""
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
        near = difflib.get_close_matches(name, NAMES, 1, cutoff=0.8)
        if name.isupper() and name not in NAMES and near:
            raise UserError(f"sweep '{path}': unknown {name}; did you mean {near[0]}?")
