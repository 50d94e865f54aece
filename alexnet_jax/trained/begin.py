"""Makes the state from which a run trains: a saved one, another net's weights, or a new one."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alexnet_jax.assemble import Run
from alexnet_jax.console.progress import counter
from alexnet_jax.data.identity import normal_name, some
from alexnet_jax.errors import UserError
from alexnet_jax.models import AlexNet, Operation, operations
from alexnet_jax.models.table import canonical, number
from alexnet_jax.records import checkpoint, saved_state
from alexnet_jax.step import TrainState
from alexnet_jax.trained import names
from alexnet_jax.trained.kept import recipe_of
from alexnet_jax.trained.pretrained import open_pretrained
from alexnet_jax.trained.recipe import Recipe


def restore_or_start(
    run: Run, saved: checkpoint.Checkpoints, workdir: Path, log: Callable[[str], None]
) -> tuple[TrainState, dict]:
    """Restores the newest checkpoint of a run, or initialises its state.

    Args:
        run: what the configuration describes.
        saved: the run's checkpoints.
        workdir: the run's directory.
        log: a function that prints a line.

    Returns:
        The state, and the 'last' and the 'best' evaluation before it, which may be None.

    Raises:
        UserError: see `saved_state.restore_latest` and `begin_from`.
    """
    if restored := saved_state.restore_latest(run, saved, workdir, log):
        return restored
    with counter(enabled=jax.process_index() == 0) as progress:
        progress("initialising the parameters", 0, 0)
        state = run.fresh_state()
    if path := run.config.init_from:
        state = state.replace(params=begin_from(path, run, state.params, log))
    return state, {"last": None, "best": None}


def begin_from(path: str | Path, run: Run, params: dict, log: Callable[[str], None]) -> dict:
    """Returns the parameters of a run with the values of another net.

    The outputs of the last layer are matched to the classes by their names. The last layer keeps
    its initial values if the other net has other classes.

    Args:
        path: where the other net is: a run, or a folder made by import_weights.
        run: the run.
        params: the run's initial parameters.
        log: a function that prints a line.

    Raises:
        UserError: `open_pretrained` raises it, or another layer than the last does not fit; the
            message then lists the layers of both nets.
    """
    net = open_pretrained(path)
    theirs, ours, last = _layer_shapes(net.params), _layer_shapes(params), run.model.layers[-1].name
    unfit = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
    other_classes = last in theirs and theirs[last][:-1] == ours[last][:-1]
    if unfit - ({last} if other_classes else set()):
        lists = [
            "\n".join(f"    {name} {' x '.join(map(str, shape))}" for name, shape in shapes.items())
            for shapes in (theirs, ours)
        ]
        raise UserError(
            f"init_from={path}: {', '.join(sorted(unfit))} of that net and of this one differ; set "
            f"config.model to that net\n  in {path}:\n{lists[0]}\n  this net:\n{lists[1]}"
        )
    loaded = dict(net.params)
    if unfit:
        classes = f"{theirs[last][-1]} classes there, {ours[last][-1]} here"
        about = f"{last} keeps its initial weights: {classes}"
    else:
        order, about = _matched(net.class_names, run.data.class_names, last)
        if order is None:
            unfit = {last}
        else:
            order = np.array([*order, *range(len(order), ours[last][-1])])
            loaded[last] = {kind: np.asarray(x)[..., order] for kind, x in loaded[last].items()}
    log(f"initial weights: {len(ours) - len(unfit)} layers of {path}")
    if about:
        log(f"  {about}")
    lines = _differences(net.model, run.model, run.config.data.image_size)
    for line in [*lines, *_other_input(net.recipe, recipe_of(run))]:
        log(f"  {line}")

    def put(values, old):
        values = np.asarray(values, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: values[index])

    taken = {name: loaded[name] for name in ours if name not in unfit}
    return params | {name: jax.tree.map(put, taken[name], params[name]) for name in taken}


def _differences(theirs: AlexNet, ours: AlexNet, image_size: int) -> list[str]:
    """Returns a line for each thing in which two nets of the same weights compute differently."""

    def described(net: AlexNet) -> dict[str, Any]:
        table = operations(net, image_size)
        found = {"activation": net.activation, "pool_overhang": net.pool_overhang}
        for layer, group in itertools.groupby(table, key=lambda op: op.layer):
            ops = {op.name.removesuffix(number(layer)): op for op in group}
            maximum = any(op.kind == "max_pool" for op in ops.values())
            found[layer] = ", ".join(_sized(ops[name]) for name in canonical(ops, maximum))
        found |= {f"the padding of {op.name}": op.padding for op in table if op.kind == "conv"}
        kinds = {op.kind for op in table}
        for kind in ("lrn", "norm"):
            names = [name for name in vars(net) if kind in kinds and name.startswith(f"{kind}_")]
            found |= {name: getattr(net, name) for name in names}
        kept = 1 if net.inverted_dropout else 1 - net.dropout
        return found | {"the factor on fc6 and fc7 in testing": f"{kept:g}"}

    there, here = described(theirs), described(ours)
    return [
        f"{name} is {there[name]} in that net: here it is {here[name]}"
        for name in there
        if name in here and there[name] != here[name]
    ]


def _sized(op: Operation) -> str:
    return f"{op.name} {op.window}/{op.stride}" if op.window > 1 else op.name


def _other_input(theirs: Recipe, own: Recipe) -> list[str]:
    """Returns a line for each thing in which two nets' inputs differ."""
    lines = []
    if not np.allclose(theirs.scale, own.scale, rtol=0.1):
        there, here = float(np.mean(theirs.scale)), own.scale[0]
        lines.append(f"it was trained on grey levels times {there:.4g}: here data.scale={here:.4g}")
    if np.any(theirs.mean) != np.any(own.mean):
        there, here = ("a" if np.any(each.mean) else "no" for each in (theirs, own))
        lines.append(
            f"it was trained with {there} mean subtracted: here {here} mean is (data.mean)"
        )
    return lines


def _matched(
    theirs: Sequence[str], ours: Sequence[str], layer: str
) -> tuple[list[int] | None, str]:
    """Matches the classes of two nets.

    Args:
        theirs: the names of the other net's classes; none if they are not known.
        ours: the names of this net's classes.
        layer: the name of the last layer.

    Returns:
        The other net's output for each of our classes, or None if the classes differ; and a line
        that says so, which may be empty.
    """
    if not theirs:
        return [], f"{layer} keeps its outputs in their order: their classes are not known"
    known, wanted = ([normal_name(n) for n in names.english(each)] for each in (theirs, ours))
    if known == wanted:
        return [], ""
    if sorted(known) == sorted(wanted) and len(set(known)) == len(known):
        order = [known.index(name) for name in wanted]
        return order, f"{layer} keeps its outputs by the names of the classes, in this run's order"
    classes = f"the classes there are {some(theirs)}, here {some(ours)}"
    return None, f"{layer} keeps its initial weights: {classes}"


def _layer_shapes(params: dict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(arrays["kernel"].shape) for name, arrays in params.items()}
