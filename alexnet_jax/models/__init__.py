"""The nets: `create(name, **fields)` gives one of `PRESETS` as a Flax module."""

import dataclasses
import math

from alexnet_jax.errors import UserError, choose, nearest
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.ops import ACTIVATIONS
from alexnet_jax.models.placement import Placement
from alexnet_jax.models.presets import PRESETS

__all__ = ["PRESETS", "AlexNet", "Placement", "create"]


def create(name: str, **fields) -> AlexNet:
    """The preset `name` with `fields` of `AlexNet` replaced.

    Raises UserError for an unknown name or field, naming the nearest, and for a value that the
    net cannot have.
    """
    known = [f.name for f in dataclasses.fields(AlexNet) if f.name not in ("parent", "name")]
    choose(name, PRESETS, "model.name")
    for field in fields:
        if field not in known:
            raise UserError(f"model.{field}: no such field; {nearest(field, known)}")
    fields = {name: _tuples(value) for name, value in fields.items()}
    model = AlexNet(**{**PRESETS[name].fields, **fields})
    _check(model)
    return model


_CHOICES = {
    "towers": (1, 2),
    "activation": tuple(ACTIVATIONS),
    "pooling": ("max", "avg"),
    "kernel_init": ("gaussian", "he"),
    "dtype": ("float32", "bfloat16", "float64"),
    "lrn": (True, False),
    "lrn_joins": (True, False),
    "pool_overhang": (True, False),
    "inverted_dropout": (True, False),
}
_COUNTS = ("num_classes", "pool_window", "pool_stride", "lrn_size", "norm_size")
_COUNTS_OR_NONE = ("hidden_units", "conv1_kernel", "conv1_stride")
_POSITIVE = ("width", "lrn_k", "init_scale")
_NUMBERS = ("dropout", "lrn_alpha", "lrn_beta", "norm_alpha", "bias_one")


def _check(model):
    for field, choices in _CHOICES.items():
        if getattr(model, field) not in choices:
            _refuse(model, field, f"one of {', '.join(map(str, choices))}")
    for field in (*_COUNTS, *_COUNTS_OR_NONE):
        value = getattr(model, field)
        if value is None and field in _COUNTS_OR_NONE:
            continue
        if not _is(value, int) or value < 1:
            _refuse(model, field, "a whole number from 1")
    for field in (*_POSITIVE, *_NUMBERS):
        value = getattr(model, field)
        finite = _is(value, (int, float)) and math.isfinite(value)
        if not finite or (field in _POSITIVE and value <= 0):
            _refuse(model, field, "a number above 0" if field in _POSITIVE else "a number")
    if not 0 <= model.dropout < 1:
        _refuse(model, "dropout", "a rate from 0 up to, not including, 1")
    if model.pool_stride > model.pool_window:
        _refuse(model, "pool_stride", f"at most pool_window, {model.pool_window}")
    if not _is_padding(model.conv1_padding):
        _refuse(model, "conv1_padding", "pixels on each side, or a pair (before, after)")
    convs = [row.name for row in model.layers if hasattr(row, "maps")]
    for name in model.skip:
        if name not in convs[1:]:
            _refuse(model, "skip", f"a tuple of names out of {', '.join(convs[1:])}")
    names = [row.name for row in model.layers]
    for pair in model.layer_init_scales:
        paired = isinstance(pair, tuple) and len(pair) == 2 and _is(pair[1], (int, float))
        if not paired or pair[0] not in names or not 0 < pair[1] < math.inf:
            wanted = f"pairs (layer, factor above 0) with layers out of {', '.join(names)}"
            _refuse(model, "layer_init_scales", wanted)
    for row in model.layers:
        features = getattr(row, "maps", None)
        if model.width == 1 and features and features % model.towers:
            raise UserError(f"{row.name}: {features} maps don't divide into {model.towers} towers")


def _tuples(value):
    """Lists, as JSON gives them, as tuples, which can be hashed."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_padding(value):
    sides = value if isinstance(value, tuple) else (value, value)
    return value is None or (len(sides) == 2 and all(_is(n, int) and n >= 0 for n in sides))


def _refuse(model, field, wanted):
    raise UserError(f"model.{field}={getattr(model, field)!r}: it must be {wanted}")
