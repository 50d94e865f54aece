"""Defines the update rule of 2012, its learning-rate schedules, and LARS for very large batches.

The paper's rule (section 5) and its source (cuda-convnet, src/weights.cu) keep the learning rate
*inside* the velocity:

    v <- momentum * v - rate * (gradient + weight_decay * w),        w <- w + v

`optax.sgd` and PyTorch multiply the velocity by the rate afterwards. The two rules agree while the
rate is constant. They differ for some tens of steps after each drop, because here the velocity from
before the drop keeps its size.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.errors import UserError, choose

OPTIMIZERS = ("momentum", "lars")
SCHEDULES = ("constant", "plateau", "epochs", "dexp")
BIAS_SCHEDULES = ("weights", "epochs")

_LAST_STEP = 2**31 - 1  # Steps are counted in int32.

_map_with_path = jax.tree_util.tree_map_with_path


@dataclasses.dataclass(frozen=True)
class OptimSpec:
    """Configures the update rule. Epochs are completed epochs, from 0, and may be fractions."""

    optimizer: str = "momentum"  # the paper's rule (section 5), or 'lars' for very large batches
    learning_rate: float = 0.01  # the rate at the start (paper, section 5)
    momentum: float = 0.9  # factor that keeps the velocity (paper, section 5)
    weight_decay: float = 5e-4  # of kernels, times the rate (section 5; source, layer.cu:565)
    bias_rate: float = 1.0  # factor on the learning rate of biases; 2 in the 2012 code
    schedule: str = "plateau"  # 'constant', 'plateau', 'epochs' or 'dexp'
    drop_factor: float = 10.0  # divisor of a rate at each drop of 'plateau' and 'epochs'
    drop_epochs: tuple = ()  # the epochs at which 'epochs' drops the rate
    patience_epochs: int = 5  # epochs without a better error after which 'plateau' drops the rate
    min_delta: float = 0.0  # percentage points by which an error must be better for 'plateau'
    max_drops: int = 3  # the most drops of 'plateau' (paper, section 5)
    dexp_factor: float = 250.0  # the first rate of 'dexp' divided by its last (2012 code, net #170)
    dexp_stages: int = 4  # the number of equal parts of the run, each with its own rate of 'dexp'
    bias_schedule: str = "weights"  # 'weights': biases follow the kernels' schedule; or 'epochs'
    bias_drop_epochs: tuple = ()  # the epochs at which the biases' own schedule 'epochs' drops
    warmup_epochs: float = 0.0  # the epochs over which the rate rises linearly
    layer_rates: tuple = ()  # (layer, factor, from_epoch): the latest applies; 0 freezes the layer
    layer_decays: tuple = ()  # (layer, weight decay) of layers that have another
    trust_coefficient: float = 0.001  # trust coefficient of 'lars' (the default of optax.lars)


def _staircase(values: Sequence[float], starts: Sequence[int]) -> optax.Schedule:
    """Returns a schedule of values[0], then values[i + 1] from step starts[i] on.

    Where two entries start at the same step, the later one applies.
    """

    def value_at(step):
        value = jnp.asarray(values[0], dtype=float)
        for start, later in zip(starts, values[1:], strict=True):
            value = jnp.where(step >= start, later, value)
        return value

    return value_at


def _to_steps(epochs: Sequence[float], steps_per_epoch: int) -> list[int]:
    return [round(min(epoch * steps_per_epoch, _LAST_STEP)) for epoch in epochs]


def make_schedule(spec: OptimSpec, *, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """Returns the function from a step, counted from 0, to the learning rate of kernels.

    It does not include `layer_rates`, and it is constant for 'plateau', whose drops depend on the
    run and are in `PlateauState.scale`.
    """
    start = spec.learning_rate
    if spec.schedule == "epochs":
        values = [start / spec.drop_factor**i for i in range(len(spec.drop_epochs) + 1)]
        rate = _staircase(values, _to_steps(spec.drop_epochs, steps_per_epoch))
    elif spec.schedule == "dexp":
        n = spec.dexp_stages
        values = [start * spec.dexp_factor ** (-i / (n - 1)) for i in range(n)]
        rate = _staircase(values, dexp_drops(spec, total_steps))
    else:
        rate = _staircase([start], [])
    (warmup_steps,) = _to_steps([spec.warmup_epochs], steps_per_epoch)
    if not warmup_steps:
        return rate
    return lambda step: rate(step) * jnp.minimum(1.0, (step + 1) / warmup_steps)


def rate_change(
    spec: OptimSpec, *, steps_per_epoch: int, total_steps: tuple[int, int], start: int
) -> tuple[int, float, float] | None:
    """Finds where another length changes the learning rate of a run.

    Args:
        spec: the run's update rule; only its schedule 'dexp' depends on the run's length.
        steps_per_epoch: the number of steps in an epoch of the run.
        total_steps: the number of all steps, as planned before and now.
        start: the number of steps that the run has made.

    Returns:
        The first step (from 0, at or after `start`) whose rate differs, the rate that it would
        have had, and the rate that it has now. None if no rate changes.
    """
    before, now = (
        make_schedule(spec, steps_per_epoch=steps_per_epoch, total_steps=total)
        for total in total_steps
    )
    drops = {drop for total in total_steps for drop in dexp_drops(spec, total)}
    for step in sorted({start, *drops}):
        rates = float(before(step)), float(now(step))
        if step >= start and rates[0] != rates[1]:
            return step, *rates
    return None


def dexp_drops(spec: OptimSpec, total_steps: int) -> list[int]:
    """Returns the steps at which 'dexp' drops the rate."""
    return [math.ceil(i * total_steps / spec.dexp_stages) for i in range(1, spec.dexp_stages)]


class RatesState(NamedTuple):
    """Holds the only counter of the optimizer: the number of updates made so far, int32."""

    count: jax.Array


def make_optimizer(
    spec: OptimSpec, *, steps_per_epoch: int, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Makes the update rule over parameters {layer: {'kernel', 'bias'}} of any float dtype.

    `update(gradients, state, params, lr_scale=1.0)` returns what is to be added to the parameters,
    and the new state. The gradients are those of the mean loss of a batch, and `lr_scale` is the
    factor of the plateau schedule. The state has one counter, `optax.tree.get(state, "count")`, and
    one tree of the parameters' shapes, the velocity: `optax.tree.get(state, "trace")`. `update`
    must be called outside shard_map, because LARS takes the norms of whole kernels.
    """
    own = {layer: decay for layer, decay in spec.layer_decays}
    decays = [
        optax.add_decayed_weights(spec.weight_decay, _kernels_of(lambda name: name not in own))
    ]
    for layer, decay in own.items():
        decays.append(optax.add_decayed_weights(decay, _kernels_of(layer.__eq__)))
    parts = [optax.chain(*decays)]
    if spec.optimizer == "lars":
        trust = optax.scale_by_trust_ratio(trust_coefficient=spec.trust_coefficient)
        parts.append(optax.masked(trust, _kernels_of(lambda _: True)))
    rates = _scale_by_rates(spec, steps_per_epoch, total_steps)
    moving = optax.chain(rates, optax.trace(spec.momentum))
    return optax.chain(*parts, _unless_frozen(moving, spec, steps_per_epoch))


def _scale_by_rates(
    spec: OptimSpec, steps_per_epoch: int, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each kernel and bias by minus its learning rate at the current step."""
    length = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
    kernel_rate = bias_rate = make_schedule(spec, **length)
    if spec.bias_schedule == "epochs":
        own = {"schedule": "epochs", "drop_epochs": spec.bias_drop_epochs}
        bias_rate = make_schedule(dataclasses.replace(spec, **own), **length)

    def rate(path, count, lr_scale):
        layer, leaf = _names(path)
        if leaf == "bias":
            own = spec.bias_schedule == "epochs"
            scheduled = bias_rate(count) * spec.bias_rate * (1.0 if own else lr_scale)
        else:
            scheduled = kernel_rate(count) * lr_scale
        return scheduled * _multiplier(spec, layer, steps_per_epoch)(count)

    def init(_):
        return RatesState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, *, lr_scale=1.0, **_):
        del params

        def scale(path, x):
            # With the negation last, a fused multiply-add rounds as in momentum * v - rate * x.
            return -(jnp.asarray(rate(path, state.count, lr_scale), x.dtype) * x)

        return _map_with_path(scale, updates), RatesState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _unless_frozen(
    moving: optax.GradientTransformationExtraArgs, spec: OptimSpec, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Freezes a layer while its multiplier is 0, as epsW = 0 does in the source (weights.cu).

    Its update is then exactly 0 and its velocity does not change, whatever its gradients are.
    """
    freezing = {layer for layer, value, _ in spec.layer_rates if value == 0}

    def update(updates, state, params=None, **extra):
        count, before = (optax.tree.get(state, name) for name in ("count", "trace"))
        updates, state = moving.update(updates, state, params, **extra)

        def keep(path, new, otherwise):
            layer, _ = _names(path)
            if layer not in freezing:
                return new
            frozen = _multiplier(spec, layer, steps_per_epoch)(count) == 0
            return jnp.where(frozen, otherwise, new)

        trace = _map_with_path(keep, optax.tree.get(state, "trace"), before)
        updates = _map_with_path(lambda path, new: keep(path, new, 0), updates)
        return updates, optax.tree.set(state, trace=trace)

    return optax.GradientTransformationExtraArgs(moving.init, update)


def _multiplier(spec: OptimSpec, layer: str, steps_per_epoch: int) -> optax.Schedule:
    """Returns the function from a step to the factor on the learning rate of a layer."""
    entries = [entry for entry in spec.layer_rates if entry[0] == layer]
    starts = _to_steps([epoch for _, _, epoch in entries], steps_per_epoch)
    return _staircase([1.0, *(value for _, value, _ in entries)], starts)


def _names(path) -> tuple[str, str]:
    """Returns (layer, 'kernel' or 'bias') from the path of a parameter in its tree."""
    return path[-2].key, path[-1].key


def _kernels_of(taken: Callable[[str], bool]) -> Callable:
    """Makes a mask of the kernels of the layers for whose name `taken` returns true."""

    def mask(tree):
        return _map_with_path(
            lambda path, _: _names(path)[1] == "kernel" and taken(_names(path)[0]), tree
        )

    return mask


class PlateauState(NamedTuple):
    """Holds the state of the plateau schedule as NumPy scalars, which are saved with the run."""

    best_error: np.ndarray  # float32, in percent
    evaluations_since_best: np.ndarray  # int32, or since the last drop if that was later
    drops: np.ndarray  # int32
    scale: np.ndarray  # float32, the factor on the learning rate


def _plateau_state(best_error, evaluations, drops, scale) -> PlateauState:
    values = np.float32(best_error), np.int32(evaluations), np.int32(drops), np.float32(scale)
    return PlateauState(*map(np.asarray, values))


def init_plateau() -> PlateauState:
    """Returns the state before any evaluation."""
    return _plateau_state(np.inf, 0, 0, 1.0)


def update_plateau(state: PlateauState, error: float, spec: OptimSpec) -> PlateauState:
    """Returns the state after one more evaluation with this validation error in percent.

    The rate drops once `patience_epochs` evaluations in a row have not improved the best error by
    more than `min_delta`. A NaN is not an improvement.
    """
    best, evaluations, drops, _ = state
    error, evaluations, drops = np.float32(error), int(evaluations) + 1, int(drops)
    if error < best - np.float32(spec.min_delta):
        best, evaluations = error, 0
    elif evaluations >= spec.patience_epochs and drops < spec.max_drops:
        evaluations, drops = 0, drops + 1
    return _plateau_state(best, evaluations, drops, spec.drop_factor**-drops)


_AT_LEAST = dict.fromkeys(
    ("learning_rate", "weight_decay", "bias_rate", "min_delta", "max_drops", "trust_coefficient"), 0
) | {"drop_factor": 1, "dexp_factor": 1, "patience_epochs": 1, "dexp_stages": 2}
_ENTRIES = {
    "layer_rates": ("layer", "multiplier", "from_epoch"),
    "layer_decays": ("layer", "weight_decay"),
}


def check(spec: OptimSpec, layer_names: Sequence[str]) -> None:
    """Checks the fields of a spec for a net with these layers.

    Raises:
        UserError: a field has an impossible value or names an unknown layer.
    """
    choose(spec.optimizer, OPTIMIZERS, "optim.optimizer")
    choose(spec.schedule, SCHEDULES, "optim.schedule")
    choose(spec.bias_schedule, BIAS_SCHEDULES, "optim.bias_schedule")
    for field, low in _AT_LEAST.items():
        if not getattr(spec, field) >= low:
            raise UserError(f"optim.{field} is {getattr(spec, field)}: it must be {low} or more")
    if not 0 <= spec.momentum < 1:
        raise UserError(f"optim.momentum is {spec.momentum}: it must be at least 0 and below 1")
    _check_epochs("optim.warmup_epochs", (spec.warmup_epochs,))
    if spec.schedule == "epochs":
        if not spec.drop_epochs:
            raise UserError("optim.schedule='epochs' needs the epochs of its drops in drop_epochs")
        _check_epochs("optim.drop_epochs", spec.drop_epochs)
    if spec.bias_schedule == "epochs":
        _check_epochs("optim.bias_drop_epochs", spec.bias_drop_epochs)
    for field, form in _ENTRIES.items():
        for entry in getattr(spec, field):
            if not isinstance(entry, tuple | list) or len(entry) != len(form):
                raise UserError(f"optim.{field} holds {entry!r}: write ({', '.join(form)})")
            choose(entry[0], layer_names, f"layer in optim.{field}")
            if not (isinstance(entry[1], int | float) and entry[1] >= 0):
                raise UserError(f"optim.{field} holds {entry!r}: {form[1]} must be 0 or more")
    for layer in layer_names:
        epochs = [epoch for name, _, epoch in spec.layer_rates if name == layer]
        _check_epochs(f"optim.layer_rates of {layer}", epochs)


def unreached(spec: OptimSpec, num_epochs: float) -> list[str]:
    """Lists the settings of a spec for epochs at or after the end of a run of `num_epochs`.

    Such settings have no effect, so that every configuration can be run for fewer epochs.
    """
    dated = [("optim.drop_epochs", epoch) for epoch in spec.drop_epochs]
    if spec.schedule != "epochs":
        dated = []
    if spec.bias_schedule == "epochs":
        dated += [("optim.bias_drop_epochs", epoch) for epoch in spec.bias_drop_epochs]
    dated += [(f"optim.layer_rates of {layer}", epoch) for layer, _, epoch in spec.layer_rates]
    late = {}
    for field, epoch in dated:
        if epoch >= num_epochs:
            late.setdefault(field, []).append(f"{epoch:g}")
    return [f"{field} at {', '.join(epochs)}" for field, epochs in late.items()]


def _check_epochs(field: str, epochs: Sequence[float]) -> None:
    for epoch in epochs:
        if not (isinstance(epoch, int | float) and 0 <= epoch < math.inf):
            raise UserError(f"{field}: {epoch!r} is not an epoch: write numbers from 0")
    if any(later <= epoch for epoch, later in itertools.pairwise(epochs)):
        raise UserError(f"{field} {tuple(epochs)}: the epochs must increase")
