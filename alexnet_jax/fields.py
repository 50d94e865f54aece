"""Holds the values of configuration fields to the types of their declarations."""

import math
import types
import typing
from typing import Any

from alexnet_jax.errors import UserError


def typed(name: str, value: Any, kind: Any) -> Any:
    """Returns a value in the form of its field: whole numbers as floats, lists as tuples.

    The flags check types, but files can hold anything: a ConfigDict takes None everywhere.

    Args:
        name: what an error calls the field.
        value: what a file or a flag gives.
        kind: the declared type, such as float, int | None or tuple[int, int] | None.

    Raises:
        UserError: it has another type, or is infinite or not a number.
    """
    value = _with_tuples(value)
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    kinds = tuple(typing.get_origin(each) or each for each in kinds)
    if float in kinds and type(value) is int:
        value = float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("None" if each is types.NoneType else each.__name__ for each in kinds)
        raise UserError(f"{name}={value!r}: must be {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value}: must be a finite number")
    return value


def _with_tuples(value: Any) -> Any:
    """Turns lists of JSON back into tuples, because the fields of modules must be hashable."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value
