"""Checks the fields and the table of a net when it is created."""

import math
from collections import Counter

from alexnet_jax.errors import UserError, choose
from alexnet_jax.models.operations import ACTIVATIONS, AFTER_CONV, AFTER_DENSE
from alexnet_jax.models.table import Conv, Dense, Stateless, number

_CHOICES = {
    "towers": (1, 2),
    "activation": ACTIVATIONS,
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


def check(model) -> None:
    """Checks the fields and the table of an `AlexNet`.

    Raises:
        UserError: There is no such net; the line names the field or the row.
    """
    _check_table(model.layers)
    _check_fields(model)
    _check_layer_fields(model)


def _check_table(layers):
    rows = layers if isinstance(layers, tuple) else ()
    kinds = [type(row) for row in rows]
    convs = kinds.count(Conv)
    if not kinds or kinds != [Conv] * convs + [Dense] * (len(kinds) - convs) or kinds[-1] != Dense:
        raise UserError("model.layers: it must be a tuple of Conv rows, then one Dense row or more")
    for row in rows:
        _check_row(row, last=row is rows[-1])
    names = [row.name for row in rows]
    names += [
        (entry.name if isinstance(entry, Stateless) else entry.removeprefix("avg_"))
        + number(row.name)
        for row in rows[:convs]  # Operations after a dense layer are not among the activations.
        for entry in row.then
    ]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(
                f"model.layers: two operations would be called {name}: give every layer its own "
                "number, and name an operation only once after it"
            )


def _check_row(row, last):
    if not isinstance(row.name, str) or not row.name:
        raise UserError(f"model.layers: a row's name must be a word, not {row.name!r}")

    def refuse(field, wanted):
        value = getattr(row, field)
        raise UserError(f"model.layers: {row.name}: {field}={value!r}: it must be {wanted}")

    conv = isinstance(row, Conv)
    for field in ("maps", "kernel", "stride") if conv else () if last else ("units",):
        if not _is(getattr(row, field), int) or getattr(row, field) < 1:
            refuse(field, "a whole number from 1")
    if not conv and last and row.units is not None:
        refuse("units", "None in the last row, which has one per class")
    for field in ("std", "bias"):
        value = getattr(row, field)
        if not _is(value, (int, float)) or not math.isfinite(value):
            refuse(field, "a finite number")
    if row.std < 0:
        refuse("std", "0 or more")
    if conv and (row.padding is None or not _is_padding(row.padding)):
        refuse("padding", "pixels on each side, or a pair (before, after)")
    if conv and row.local and row.stride != 1:
        refuse("stride", "1, as the layer is untied")
    known = AFTER_CONV if conv else AFTER_DENSE
    if not isinstance(row.then, tuple):
        refuse("then", "a tuple")
    for entry in row.then:
        if isinstance(entry, Stateless):
            _check_own(row, entry)
        else:
            choose(entry, known, f"model.layers: the operation after {row.name}")


def _check_own(row, own):
    whole = all(_is(n, int) and n >= 1 for n in (own.window, own.stride))
    if not isinstance(own.name, str) or not own.name.isidentifier() or not callable(own.function):
        raise UserError(f"model.layers: {row.name}: {own!r} needs a word as name, and a function")
    if not whole:
        raise UserError(
            f"model.layers: {row.name}: {own.name}: window and stride must be whole numbers from 1"
        )


def _check_fields(model):
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


def _check_layer_fields(model):
    convs = [row.name for row in model.layers if isinstance(row, Conv)]
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
        if isinstance(row, Conv) and model.width == 1 and row.maps % model.towers:
            raise UserError(f"{row.name}: {row.maps} maps don't divide into {model.towers} towers")


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_padding(value):
    sides = value if isinstance(value, tuple) else (value, value)
    return value is None or (len(sides) == 2 and all(_is(n, int) and n >= 0 for n in sides))


def _refuse(model, field, wanted):
    raise UserError(f"model.{field}={getattr(model, field)!r}: it must be {wanted}")
