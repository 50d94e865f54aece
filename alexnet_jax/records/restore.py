"""Lists checkpoints, checks that they are undamaged, and reads their arrays; it writes nothing.

A checkpoint is refused if its files differ from their digest, or if a later program wrote it in a
format that this one could misread.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from alexnet_jax.errors import UserError, check_utf8
from alexnet_jax.records import digests
from alexnet_jax.records.orbax_messages import reason

FORMAT = 1
"""The version of the layout, which is raised if an older program could misread a new one."""

PyTree = Any

_DIRECTORY = "checkpoints"
_STEP_NAME = re.compile(r"0|[1-9][0-9]*")
_KIND_BY_WORDS = {"uint32[2]": "threefry2x32", "uint32[4]": "rbg"}


def restore_params(
    workdir: str | os.PathLike, abstract_params: PyTree, step: int | str | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """Restores only the parameters of a checkpoint of the run in `workdir`.

    A damaged checkpoint is an error and stays where it is.

    Args:
        workdir: the run's directory.
        abstract_params: the parameters as shapes with shardings (see `restore_item`).
        step: a saved step; None for the latest; or 'best' for the one with the lowest validation
            error, which is the latest if none has an error.

    Returns:
        The parameters, on the devices that `abstract_params` names, and the meta.

    Raises:
        UserError: the checkpoint does not exist, is damaged, has a later format, or is of another
            net.
    """
    path = _step_path(workdir, best_step(workdir) if step == "best" else step)
    _require_whole(path, ("params", "meta"))
    return restore_item(path, "params", abstract_params), meta_of(path)


def steps(workdir: str | os.PathLike) -> list[int]:
    """Lists the steps saved in `workdir` in ascending order.

    Raises:
        UserError: `workdir` does not exist.
    """
    if not Path(workdir).is_dir():
        raise UserError(f"there is no work directory {workdir}")
    return steps_in(directory_of(workdir))


def best_step(workdir: str | os.PathLike) -> int | None:
    """Returns the step with the lowest validation error, and of equals the later one.

    If no step has an error, it returns the latest; if nothing is saved, None.
    """
    saved = steps(workdir)
    errors = {step: read_meta(workdir, step).get("error") for step in saved}
    errors = {step: error for step, error in errors.items() if isinstance(error, float)}
    return min(errors, key=lambda step: (errors[step], -step), default=max(saved, default=None))


def read_meta(workdir: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
    """Reads the meta of a step, or of the latest one.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    path = _step_path(workdir, step)
    _require_whole(path, ("meta",))
    return meta_of(path)


def restore_item(
    path: Path, item: str, abstract: PyTree, meta: dict[str, Any] | None = None
) -> PyTree:
    """Restores one tree of a step onto the devices that `abstract` names.

    Args:
        path: the step's directory.
        item: 'params' or 'state'.
        abstract: the tree as `jax.ShapeDtypeStruct`s with shardings. The devices and the layout may
            differ from those of the save.
        meta: the step's meta, which names the generators of PRNG keys, if the tree has any.

    Raises:
        UserError: the arrays differ from `abstract`; the line names the first that do.
    """
    handler = ocp.StandardCheckpointHandler()
    try:
        saved = handler.metadata(epath.Path(path / item)).tree
        if meta is not None:
            abstract = _with_saved_keys(saved, abstract, meta.get("key_kinds", {}))
        _check_shapes(path, item, saved, abstract)
        with ocp.Checkpointer(handler) as checkpointer:
            return checkpointer.restore(path / item, args=ocp.args.StandardRestore(abstract))
    except UserError:
        raise
    except Exception as error:  # The files are as they were written, but not by Orbax.
        raise UserError(f"cannot restore {path / item}: {reason(error)}") from error


def key_kinds(tree: PyTree) -> dict[str, str]:
    """Maps the path of each typed PRNG key to its generator's name, such as 'threefry2x32'."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): str(jax.random.key_impl(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if _is_key(leaf)
    }


def _with_saved_keys(saved: PyTree, abstract: PyTree, kinds: dict[str, str]) -> PyTree:
    """Returns `abstract` with the generators with which its PRNG keys were saved.

    A resumed run keeps its generator, whatever JAX_DEFAULT_PRNG_IMPL is by then. If a checkpoint
    does not name the `kinds` of its keys, they follow from the number of words in a key.
    """
    shapes = _shapes(saved)

    def as_saved(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not _is_key(leaf) or name not in shapes:
            return leaf
        kind = kinds.get(name)
        if kind is None and shapes[name] == _shapes({name: leaf})[name]:
            return leaf
        kind = kind or _KIND_BY_WORDS.get(shapes[name], "threefry2x32")
        key = jax.eval_shape(lambda: jax.random.key(0, impl=kind))
        return jax.ShapeDtypeStruct(leaf.shape, key.dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(as_saved, abstract)


def _is_key(leaf) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _check_shapes(path: Path, item: str, saved: PyTree, abstract: PyTree) -> None:
    """Raises UserError if shapes or dtypes differ, or an array is only in one of the trees."""
    have, want = _shapes(saved), _shapes(abstract)
    differing = [
        f"{name} is {have.get(name, 'absent')}, expected {want.get(name, 'absent')}"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"checkpoint {path} is of another net: {len(differing)} arrays of its {item} differ "
            f"({'; '.join(differing[:3])}{more})"
        )


def _shapes(tree: PyTree) -> dict[str, str]:
    """Maps the path of each array to its dtype and shape; PRNG keys count as arrays of words."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if _is_key(leaf):
            leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        if hasattr(leaf, "shape") and not isinstance(leaf, ocp.metadata.value.ScalarMetadata):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            shapes[name] = f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    return shapes


def directory_of(workdir: str | os.PathLike) -> Path:
    """Returns the folder of the checkpoints of `workdir`.

    Raises:
        UserError: Orbax cannot open a folder of this name.
    """
    check_utf8(workdir)
    return Path(workdir).absolute() / _DIRECTORY


def steps_in(directory: Path) -> list[int]:
    """Lists the steps saved in a folder of checkpoints in ascending order."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if _STEP_NAME.fullmatch(p.name))


def meta_of(path: Path) -> dict[str, Any]:
    """Reads the meta of the step in `path`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        meta = json.loads((path / "meta" / "metadata").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"checkpoint {path} is damaged: meta/metadata cannot be read") from error
    if not isinstance(meta, dict):
        raise UserError(f"checkpoint {path} is damaged: meta/metadata holds no JSON object")
    return meta


def _step_path(workdir: str | os.PathLike, step: int | None) -> Path:
    saved = steps(workdir)
    if not saved:
        raise UserError(f"there is no checkpoint in {directory_of(workdir)}")
    if step is not None and step not in saved:
        raise UserError(
            f"there is no checkpoint of step {step} in {directory_of(workdir)}: "
            f"those there are {_listing(saved)}"
        )
    return directory_of(workdir) / str(saved[-1] if step is None else step)


def _require_whole(path: Path, items: tuple[str, ...]) -> None:
    damage = digests.damage(path, items)
    if damage and not is_undigested_later_format(path):
        others = [step for step in steps_in(path.parent) if str(step) != path.name]
        raise UserError(
            f"checkpoint {path} is damaged ({damage}); other steps there: {_listing(others)}"
        )
    refuse_later_format(path)


def _listing(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def is_undigested_later_format(path: Path) -> bool:
    """Returns whether a later program wrote the step in `path` without a digest that we know.

    Such a step is not damaged, as far as this program can tell.
    """
    try:
        return not (path / digests.NAME).exists() and meta_of(path)["format"] > FORMAT
    except (UserError, KeyError, TypeError):
        return False


def refuse_later_format(path: Path) -> None:
    """Raises UserError if the step in `path` has a format that this program cannot read."""
    version = meta_of(path).get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(
            f"checkpoint {path} is of format {version}, this program reads up to {FORMAT}: "
            "use the version of alexnet_jax that wrote it, or a later one"
        )
