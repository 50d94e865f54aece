"""Checkpoints of a run, and the only room that knows Orbax.

    WORKDIR/checkpoints/120/              one directory per saved step
        params/  state/                   arrays: the parameters, and all else that decides the run
        meta/metadata                     JSON: format, step, error, versions, and what the run adds
        SHA256SUMS                        digest of every other file; `sha256sum -c` reads it too
    WORKDIR/checkpoints/120.corrupt-1/    a damaged checkpoint, moved aside, never deleted
    WORKDIR/checkpoints/deleted/          one no longer kept, until the next save or `finish`

Orbax writes a step into a temporary directory and renames it when it is whole. The digest is
written and everything is synced to the disk just before that rename, so a step that has its name
also has its digest, whenever the process is killed. Orbax itself does not notice a flipped byte:
nothing is restored here before its digest agrees.
"""

import asyncio
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.path import atomicity

from alexnet_jax.errors import UserError, check_utf8

FORMAT = 1
"""Layout of a checkpoint. Raise it when an older program could misread what is written."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

_DIRECTORY = "checkpoints"
_DIGEST = "SHA256SUMS"
_TEMPORARY = atomicity.TMP_DIR_SUFFIX
_TRASH = "deleted"
_STEP_NAME = re.compile(r"0|[1-9][0-9]*")
_CORRUPT_NAME = re.compile(r"[0-9]+\.corrupt-[0-9]+")

_NO_CHECKPOINT, _NONE_READABLE = -1, -2
_KIND_BY_WORDS = {"uint32[2]": "threefry2x32", "uint32[4]": "rbg"}

PyTree = Any
Log = Callable[[str], None]


@dataclasses.dataclass
class Checkpoints:
    """A run's checkpoints, open for writing by the training process."""

    directory: Path
    manager: ocp.CheckpointManager
    verified: bool = False
    saving: int | None = None


# Writing


def open_checkpoints(workdir: str | os.PathLike, *, keep: int) -> Checkpoints:
    """Opens `workdir` for saving, creates it where needed, and clears what a kill left half done.

    The latest `keep` checkpoints stay, and beside them the one of lowest validation error.
    Every process of the run calls this, and no other process may (see `lock`).

    Raises:
      UserError: `keep` is below one, or the directory can't be created or written.
    """
    if keep < 1:
        raise UserError(f"the number of checkpoints to keep is {keep}: it must be at least 1")
    directory = _directory(workdir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {directory}: {error.strerror or error}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {directory}: check its permissions")
    _silence_orbax_tracebacks()
    if jax.process_index() == 0:
        _remove_leftovers(directory)

    policies = checkpoint_managers
    manager = ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            # best_fn makes Orbax store each step's error; the policy alone decides what stays.
            best_fn=_rank,
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=_rank,
                        reverse=True,  # the best comes last: the lowest error, the later of equals
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            temporary_path_class=_DigestedPath,
            # Renamed, then deleted: a kill while deleting then leaves no half checkpoint behind.
            todelete_subdir=_TRASH,
            # A damaged metrics file would end in a traceback here; `verify` looks first.
            lightweight_initialize=True,
        ),
    )
    return Checkpoints(directory, manager)


def save(
    checkpoints: Checkpoints,
    step: int,
    params: PyTree,
    state: PyTree,
    meta: dict[str, Any],
    error: float | None,
) -> None:
    """Starts saving a step and returns once its arrays are copied; they may then be donated.

    Waits for the save before it. Does nothing where the step is saved already.

    Args:
      checkpoints: from `open_checkpoints`.
      step: training steps done, at least 0.
      params: the parameters, a pytree of `jax.Array`s, none of zero size.
      state: all else that decides the rest of the run: `jax.Array`s, PRNG keys of either kind and
        Python numbers. (A 64-bit NumPy array would come back as 32-bit without x64.)
      meta: JSON values to keep beside them; format, step, error, versions and the kinds of the
        PRNG keys are added.
      error: validation error that ranks the checkpoint (the lowest is kept), None if not known.

    Raises:
      UserError: this or the previous save could not be written (either way this one is not
        saved); the earlier ones are whole.
    """
    reserved = {"format", "step", "error", "versions", "key_kinds"} & meta.keys()
    if reserved:
        raise ValueError(f"meta may not hold {sorted(reserved)}: save writes them")
    if not checkpoints.verified:  # nor does Orbax know the errors of the steps before
        raise RuntimeError("call verify or restore_latest before the first save")
    finish(checkpoints)
    step = int(step)
    if step in checkpoints.manager.all_steps():
        return
    error = float(error) if error is not None and math.isfinite(error) else None
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    meta = {"format": FORMAT, "step": step, "error": error, "versions": versions} | meta
    meta["key_kinds"] = _key_kinds(state)
    checkpoints.saving = step
    try:
        checkpoints.manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                state=ocp.args.StandardSave(state),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics={"error": error},
            force=True,
        )
    except Exception as problem:
        raise _save_failed(checkpoints, problem) from problem


def finish(checkpoints: Checkpoints) -> None:
    """Waits until the last save is on the disk. More saves may follow.

    Raises:
      UserError: it could not be written; the earlier checkpoints are whole.
    """
    try:
        checkpoints.manager.wait_until_finished()
    except Exception as problem:
        raise _save_failed(checkpoints, problem) from problem
    checkpoints.saving = None
    if jax.process_index() == 0:
        shutil.rmtree(checkpoints.directory / _TRASH, ignore_errors=True)


def _save_failed(checkpoints: Checkpoints, problem: Exception) -> UserError:
    """Gives the disk space back, and the line to raise."""
    path = checkpoints.directory / str(checkpoints.saving)
    if jax.process_index() == 0:
        _remove_leftovers(checkpoints.directory)
        time.sleep(1)  # TensorStore's threads don't know yet and go on writing
        _remove_leftovers(checkpoints.directory)
    # Orbax has already struck the steps it meant to delete off its list.
    checkpoints.manager.reload()
    return UserError(
        f"saving checkpoint {path} failed ({_reason(problem)}): earlier ones are whole"
    )


class _DigestedPath(atomicity.AtomicRenameTemporaryPath):
    """Orbax's temporary directory, whose digest is written before the rename that commits it."""

    async def finalize(self) -> None:
        final = self.get_final()
        if _TEMPORARY in final.parent.name:  # an item inside a step, not a step
            await super().finalize()
            return
        store = self._checkpoint_metadata_store
        await asyncio.to_thread(store.wait_until_finished)
        await asyncio.to_thread(
            store.update,
            file_path=self.get() / "_CHECKPOINT_METADATA",
            commit_timestamp_nsecs=time.time_ns(),
        )
        await asyncio.to_thread(store.wait_until_finished)
        await asyncio.to_thread(_seal, Path(self.get()), Path(final))


def _seal(temporary: Path, final: Path) -> None:
    """Writes the digest, brings everything to the disk and gives the directory its name."""
    lines = []
    for name, path in _files(temporary).items():
        lines.append(f"{_sha256(path)}  {name}\n")
        _sync(path)
    listing = "".join(lines).encode()
    # The last line guards the list itself; `sha256sum -c` skips it as a comment.
    listing += b"# " + hashlib.sha256(listing).hexdigest().encode() + b"\n"
    (temporary / _DIGEST).write_bytes(listing)
    _sync(temporary / _DIGEST)
    for folder, _, _ in os.walk(temporary, topdown=False):
        _sync(folder)
    os.rename(temporary, final)
    _sync(final.parent)


def _sync(path: str | Path) -> None:
    """Brings a file or a directory's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems sync no directory
            raise
    finally:
        os.close(descriptor)


def _remove_leftovers(directory: Path) -> None:
    """Removes unfinished saves and half-finished deletions."""
    for path in directory.iterdir():
        if _TEMPORARY in path.name or path.name == _TRASH:
            shutil.rmtree(path, ignore_errors=True)


def _rank(metrics: dict[str, Any]) -> float:
    error = metrics.get("error")
    return math.inf if error is None else error


# Verifying and restoring, for the training process


def restore_latest(
    checkpoints: Checkpoints, abstract_params: PyTree, abstract_state: PyTree, log: Log
) -> tuple[PyTree, PyTree, dict[str, Any]] | None:
    """`verify`, then `restore` of what it found; None where no checkpoint was ever saved."""
    step = verify(checkpoints, log)
    return None if step is None else restore(checkpoints, step, abstract_params, abstract_state)


def verify(checkpoints: Checkpoints, log: Log) -> int | None:
    """Checks every checkpoint against its digest and returns the newest step, None if none is.

    A checkpoint that is truncated, altered or lacks a file is renamed to STEP.corrupt-N, and
    `log` gets a line that names the file.

    Raises:
      UserError: there are or were checkpoints, but none is readable; or one is of a later format.
    """
    verdict = _verdict(checkpoints.directory, log) if jax.process_index() == 0 else 0
    if jax.process_count() > 1:
        verdict = int(multihost_utils.broadcast_one_to_all(np.int32(verdict)))
    if verdict == _NONE_READABLE:
        raise UserError(
            f"no checkpoint in {checkpoints.directory} is readable (damaged ones are the folders "
            "named STEP.corrupt-N): to start the run afresh, choose another --workdir"
        )
    if verdict != _NO_CHECKPOINT:
        for step in _steps(checkpoints.directory):
            _refuse_later_format(checkpoints.directory / str(step))
    try:
        checkpoints.manager.reload()  # reads the errors
    except Exception as error:  # of files that are whole, yet not Orbax's own
        reason = f"cannot read the checkpoints in {checkpoints.directory}: {_reason(error)}"
        raise UserError(reason) from error
    checkpoints.verified = True
    return None if verdict == _NO_CHECKPOINT else verdict


def _verdict(directory: Path, log: Log) -> int:
    """Moves damaged checkpoints aside; the newest whole step, _NO_CHECKPOINT or _NONE_READABLE."""
    for step in reversed(_steps(directory)):
        path = directory / str(step)
        damage = _damage(path)
        if damage and not _is_undigested_later_format(path):
            aside = _move_aside(path)
            log(f"checkpoint {path} is damaged ({damage}): moved aside to {aside.name}")
    whole = _steps(directory)
    if whole:
        return whole[-1]
    corrupt = any(_CORRUPT_NAME.fullmatch(path.name) for path in directory.iterdir())
    return _NONE_READABLE if corrupt else _NO_CHECKPOINT


def restore(
    checkpoints: Checkpoints, step: int, abstract_params: PyTree, abstract_state: PyTree
) -> tuple[PyTree, PyTree, dict[str, Any]]:
    """Restores a verified step onto the devices that the abstract trees name.

    Args:
      checkpoints: from `open_checkpoints`.
      step: a step that `verify` has returned.
      abstract_params: `jax.ShapeDtypeStruct`s with shardings, in the tree that was saved; the
        devices and the layout may differ from those it was saved on.
      abstract_state: likewise.

    Returns:
      The parameters, the state and the meta.

    Raises:
      UserError: the arrays are not those of the abstract trees; the first that differ are named.
    """
    path = checkpoints.directory / str(step)
    meta = _read_meta(path)
    params = _restore_item(path, "params", abstract_params)
    state = _restore_item(path, "state", abstract_state, meta)
    return params, state, meta


def _restore_item(
    path: Path, item: str, abstract: PyTree, meta: dict[str, Any] | None = None
) -> PyTree:
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
    except Exception as error:  # whatever Orbax makes of files that are whole, yet not its own
        raise UserError(f"cannot restore {path / item}: {_reason(error)}") from error


def _key_kinds(tree: PyTree) -> dict[str, str]:
    """Path of each typed PRNG key → the name of its generator, such as 'threefry2x32'."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): str(jax.random.key_impl(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if _is_key(leaf)
    }


def _with_saved_keys(saved: PyTree, abstract: PyTree, kinds: dict[str, str]) -> PyTree:
    """`abstract` with the generators that its PRNG keys were saved with.

    A run goes on with its own generator, whatever JAX_DEFAULT_PRNG_IMPL is by then. Checkpoints
    that don't name their `kinds` tell them by the number of words that a key has.
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
    """Raises UserError where shapes or dtypes differ, or an array is on one side only."""
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
    """Path of each array → its dtype and shape; a PRNG key counts as the words it is stored in."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if _is_key(leaf):
            leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        if hasattr(leaf, "shape") and not isinstance(leaf, ocp.metadata.value.ScalarMetadata):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            shapes[name] = f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    return shapes


# Reading, for evaluation: nothing here writes to the directory


def restore_params(
    workdir: str | os.PathLike, abstract_params: PyTree, step: int | str | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """Restores the parameters alone of a step of the run in `workdir`.

    Reads only: a damaged checkpoint is an error and stays where it is.

    Args:
      workdir: the run's directory.
      abstract_params: see `restore`.
      step: a saved step; None, the latest; or 'best', the one of lowest validation error, which
        is the latest where none has an error.

    Returns:
      The parameters, placed as `abstract_params` says (see `restore`), and the meta.

    Raises:
      UserError: there is no such checkpoint, it is damaged, of a later format or of another net.
    """
    path = _step_path(workdir, best_step(workdir) if step == "best" else step)
    _require_whole(path, ("params", "meta"))
    return _restore_item(path, "params", abstract_params), _read_meta(path)


def steps(workdir: str | os.PathLike) -> list[int]:
    """Steps saved in `workdir`, ascending; UserError where there is no such directory."""
    if not Path(workdir).is_dir():
        raise UserError(f"there is no work directory {workdir}")
    return _steps(_directory(workdir))


def best_step(workdir: str | os.PathLike) -> int | None:
    """The step of lowest validation error, the later one of equals.

    Where none has an error it is the latest; None where nothing is saved.
    """
    saved = steps(workdir)
    errors = {step: read_meta(workdir, step).get("error") for step in saved}
    errors = {step: error for step, error in errors.items() if isinstance(error, float)}
    return min(errors, key=lambda step: (errors[step], -step), default=max(saved, default=None))


def read_meta(workdir: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
    """The meta of a step, or of the latest one; UserError where it is missing or damaged."""
    path = _step_path(workdir, step)
    _require_whole(path, ("meta",))
    return _read_meta(path)


def _directory(workdir: str | os.PathLike) -> Path:
    check_utf8(workdir)
    return Path(workdir).absolute() / _DIRECTORY


def _step_path(workdir: str | os.PathLike, step: int | None) -> Path:
    saved = steps(workdir)
    if not saved:
        raise UserError(f"there is no checkpoint in {_directory(workdir)}")
    if step is not None and step not in saved:
        raise UserError(
            f"there is no checkpoint of step {step} in {_directory(workdir)}: "
            f"those there are {_listing(saved)}"
        )
    return _directory(workdir) / str(saved[-1] if step is None else step)


def _require_whole(path: Path, items: tuple[str, ...]) -> None:
    damage = _damage(path, items)
    if damage and not _is_undigested_later_format(path):
        others = [step for step in _steps(path.parent) if str(step) != path.name]
        raise UserError(
            f"checkpoint {path} is damaged ({damage}); other steps there: {_listing(others)}"
        )
    _refuse_later_format(path)


def _listing(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


# Files of one step


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if _STEP_NAME.fullmatch(p.name))


def _files(path: Path) -> dict[str, Path]:
    return {
        file.relative_to(path).as_posix(): file
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def _damage(path: Path, items: tuple[str, ...] | None = None) -> str | None:
    """What is wrong with the files of a step (of `items` alone, where given), None if nothing."""
    files = _files(path)
    if _DIGEST not in files:
        return f"{_DIGEST} is missing"
    name = _DIGEST
    try:
        listing, _, own_digest = files[name].read_bytes().rpartition(b"# ")
        if hashlib.sha256(listing).hexdigest().encode() + b"\n" != own_digest:
            return f"{name} is not as it was written"
        for line in listing.decode(errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            if items and name.split("/")[0] not in items:
                continue
            if name not in files:  # nor is anything outside the step ever opened
                return f"{name} is missing"
            if _sha256(files[name]) != digest:
                return f"{name} is not as it was written"
    except PermissionError as error:  # not the checkpoint's fault: leave it where it is
        raise UserError(f"cannot read {path / name}: permission denied") from error
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
        _sync(path.parent)
    except OSError as error:
        raise UserError(f"cannot move the damaged {path} aside: {error.strerror}") from error
    return aside


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / "meta" / "metadata").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"checkpoint {path} is damaged: meta/metadata cannot be read") from error
    if not isinstance(meta, dict):
        raise UserError(f"checkpoint {path} is damaged: meta/metadata holds no JSON object")
    return meta


def _is_undigested_later_format(path: Path) -> bool:
    """Whether a later program wrote it, and its digest elsewhere: not for us to call damaged."""
    try:
        return not (path / _DIGEST).exists() and _read_meta(path)["format"] > FORMAT
    except (UserError, KeyError, TypeError):
        return False


def _refuse_later_format(path: Path) -> None:
    version = _read_meta(path).get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(
            f"checkpoint {path} is of format {version}, this program reads up to {FORMAT}: "
            "use the version of alexnet_jax that wrote it, or a later one"
        )


# Orbax's messages


def _silence_orbax_tracebacks() -> None:
    """A failed save is told of by Orbax, twice, by asyncio for each array, and by TensorStore's
    threads, whose event loop is gone: all with tracebacks. We say it once."""
    logger = absl_logging.get_absl_logger()
    if not any(isinstance(known, _OrbaxTracebacks) for known in logger.filters):
        logger.addFilter(_OrbaxTracebacks())
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # nothing else here uses it
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _pass_over_closed_loops


def _pass_over_closed_loops(unraisable) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


class _OrbaxTracebacks(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        told = record.exc_info or "already exists. Removing existing" in record.getMessage()
        return not (told and "orbax" in record.pathname)


def _reason(error: BaseException) -> str:
    """One line for an error of Orbax or TensorStore, the system's own words where it has them."""
    code = error.errno if isinstance(error, OSError) else None
    if match := re.search(r"os_error_code='(\d+)'", str(error)):
        code = int(match[1])
    if code:
        return os.strerror(code)
    return str(error).strip().split("\n")[0] or type(error).__name__
