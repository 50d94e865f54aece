"""The nets: `create(name, **fields)` gives one of `PRESETS` as a Flax module."""

import dataclasses

from alexnet_jax.errors import UserError, choose, nearest
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.checks import check
from alexnet_jax.models.operations import Operation, operations
from alexnet_jax.models.placement import Placement
from alexnet_jax.models.presets import PRESETS, Preset
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
    "create",
    "operations",
]


def create(name: str, **fields) -> AlexNet:
    """Makes the net of the preset `name`, with `fields` of `AlexNet` replaced.

    Raises:
        UserError: The name or a field is unknown, for which the nearest is named, or the net
            cannot have a field's value.
    """
    known = [f.name for f in dataclasses.fields(AlexNet) if f.name not in ("parent", "name")]
    choose(name, PRESETS, "model.name")
    for field in fields:
        if field not in known:
            raise UserError(f"model.{field}: no such field; {nearest(field, known)}")
    fields = {name: _tuples(value) for name, value in fields.items()}
    model = AlexNet(**{**PRESETS[name].fields, **fields})
    check(model)
    return model


def _tuples(value):
    """Returns lists, as JSON gives them, as tuples, which can be hashed."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
