"""The initial weights of a run: those of another trained net, as far as they fit."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from alexnet_jax.data.identity import normal_name, some
from alexnet_jax.errors import UserError
from alexnet_jax.trained import names
from alexnet_jax.trained.kept import recipe_of
from alexnet_jax.trained.pretrained import open_pretrained


def begin_from(path: str | Path, run, params: dict, log: Callable[[str], None]) -> dict:
    """Returns `params`, the initial ones of `run`, with the values of the net in `path`.

    The last layer's outputs are matched to the classes by name. It stays as it is where that net
    has another number of classes, or others.

    Raises:
        UserError: see `open_pretrained`; another layer doesn't fit: the message lists both nets'.
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
            f"init_from={path}: {', '.join(sorted(unfit))} of it and of this net differ; set "
            f"config.model to that net\n  in {path}:\n{lists[0]}\n  this net:\n{lists[1]}"
        )
    loaded = dict(net.params)
    if unfit:
        about = f"{last} starts afresh: {theirs[last][-1]} classes there, {ours[last][-1]} here"
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
    own = recipe_of(run).scale
    if not np.allclose(net.recipe.scale, own, rtol=0.1):
        scale = float(np.mean(net.recipe.scale))
        log(f"  it was trained on grey levels times {scale:.4g}: here data.scale={own[0]:.4g}")

    def put(values, old):
        values = np.asarray(values, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: values[index])

    taken = {name: loaded[name] for name in ours if name not in unfit}
    return params | {name: jax.tree.map(put, taken[name], params[name]) for name in taken}


def _matched(
    theirs: Sequence[str], ours: Sequence[str], layer: str
) -> tuple[list[int] | None, str]:
    """Returns their output for each of our classes, None where it starts afresh, and a line."""
    if not theirs:
        return [], f"{layer} keeps its outputs in their order: their classes are not known"
    known, wanted = ([normal_name(n) for n in names.english(each)] for each in (theirs, ours))
    if known == wanted:
        return [], ""
    if sorted(known) == sorted(wanted) and len(set(known)) == len(known):
        order = [known.index(name) for name in wanted]
        return order, f"{layer} keeps its outputs by the names of the classes, in this run's order"
    return None, (f"{layer} starts afresh: the classes there are {some(theirs)}, here {some(ours)}")


def _layer_shapes(params: dict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(arrays["kernel"].shape) for name, arrays in params.items()}
