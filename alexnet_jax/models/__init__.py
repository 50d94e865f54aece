"""Contains the nets: `create(name, **fields)` makes one of `PRESETS` as a Flax module."""

import dataclasses
import importlib

from alexnet_jax.errors import UserError, choose, nearest
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.checks import check
from alexnet_jax.models.operations import Operation, operations
from alexnet_jax.models.placement import Placement
from alexnet_jax.models.presets import PRESETS, Preset
from alexnet_jax.models.shapes import activations
from alexnet_jax.models.table import Conv, Dense, Stateless

__all__ = [
    "PRESETS",
    "AlexNet",
    "Conv",
    "Dense",
    "Operation",
    "Placement",
    "Preset",
    "Stateless",
    "activations",
    "create",
    "operations",
]


def create(name: str, *, module: str = "", **fields) -> AlexNet:
    """Makes the net of the preset `name`, with some `fields` of `AlexNet` replaced.

    Args:
        name: The name of a preset in `PRESETS`.
        module: A Python module that is imported first, because it adds the preset to `PRESETS`.
        fields: The fields to replace.

    Raises:
        UserError: The module cannot be imported; the name or a field is unknown, and the line names
            the nearest one; or the net cannot have the value of a field.
    """
    if module:
        _import(module)
    known = [f.name for f in dataclasses.fields(AlexNet) if f.name not in ("parent", "name")]
    choose(name, PRESETS, "model.name")
    for field in fields:
        if field not in known:
            raise UserError(f"model.{field}: no such field; {nearest(field, known)}")
    fields = {name: _tuples(value) for name, value in fields.items()}
    model = AlexNet(**{**PRESETS[name].fields, **fields})
    check(model)
    return model


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"model.module '{module}' cannot be imported ({reason}): run the command in the folder "
            "of the module, or add that folder to PYTHONPATH"
        ) from None


def _tuples(value):
    """Turns lists, which JSON gives, into tuples, which can be hashed."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
