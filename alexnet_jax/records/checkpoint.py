"""Checkpoints of a run, written, verified and restored by the training process.

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
import contextlib
import dataclasses
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.path import atomicity

from alexnet_jax.errors import UserError
from alexnet_jax.records import digests, files, orbax_messages, provenance
from alexnet_jax.records.restore import (
    FORMAT,
    PyTree,
    directory_of,
    is_undigested_later_format,
    key_kinds,
    meta_of,
    refuse_later_format,
    restore_item,
    steps_in,
)

_TEMPORARY = atomicity.TMP_DIR_SUFFIX
_TRASH = "deleted"
_CORRUPT_NAME = re.compile(r"[0-9]+\.corrupt-[0-9]+")

_NO_CHECKPOINT, _NONE_READABLE = -1, -2

Log = Callable[[str], None]


@dataclasses.dataclass
class Checkpoints:
    """A run's checkpoints, open for writing by the training process."""

    directory: Path
    manager: ocp.CheckpointManager
    verified: bool = False
    saving: int | None = None
    # From the start of a save until one has finished: one that failed is told of later still.
    silence: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)


def open_checkpoints(workdir: str | os.PathLike, *, keep: int) -> Checkpoints:
    """Opens `workdir` for saving, creates it where needed, and clears what a kill left half done.

    The latest `keep` checkpoints stay, and beside them the one of lowest validation error.
    Every process of the run calls this, and no other process may (see `lock`).

    Raises:
        UserError: `keep` is below one, or the directory can't be created or written.
    """
    if keep < 1:
        raise UserError(f"the number of checkpoints to keep is {keep}: it must be at least 1")
    directory = directory_of(workdir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {directory}: {error.strerror or error}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {directory}: check its permissions")
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
    versions = provenance.versions()
    meta = {"format": FORMAT, "step": step, "error": error, "versions": versions} | meta
    meta["key_kinds"] = key_kinds(state)
    checkpoints.saving = step
    checkpoints.silence = orbax_messages.silence()
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
    checkpoints.silence.close()
    if jax.process_index() == 0:
        _remove_leftovers(checkpoints.directory)


def _save_failed(checkpoints: Checkpoints, problem: Exception) -> UserError:
    """Gives the disk space back, and the line to raise.

    TensorStore's threads may not know yet and go on writing: `finish` removes what they leave.
    """
    path = checkpoints.directory / str(checkpoints.saving)
    if jax.process_index() == 0:
        _remove_leftovers(checkpoints.directory)
    # Orbax has already struck the steps it meant to delete off its list.
    checkpoints.manager.reload()
    reason = orbax_messages.reason(problem)
    return UserError(f"saving checkpoint {path} failed ({reason}): earlier ones are whole")


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
        await asyncio.to_thread(digests.seal, Path(self.get()), Path(final))


def _remove_leftovers(directory: Path) -> None:
    """Removes unfinished saves and half-finished deletions."""
    for path in directory.iterdir():
        if _TEMPORARY in path.name or path.name == _TRASH:
            shutil.rmtree(path, ignore_errors=True)


def _rank(metrics: dict[str, Any]) -> float:
    error = metrics.get("error")
    return math.inf if error is None else error


def restore_latest(
    checkpoints: Checkpoints, abstract_params: PyTree, abstract_state: PyTree, log: Log
) -> tuple[PyTree, PyTree, dict[str, Any]] | None:
    """Restores the newest step that `verify` finds; None where no checkpoint was ever saved."""
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
        for step in steps_in(checkpoints.directory):
            refuse_later_format(checkpoints.directory / str(step))
    try:
        checkpoints.manager.reload()  # reads the errors
    except Exception as error:  # of files that are whole, yet not Orbax's own
        raise UserError(
            f"cannot read the checkpoints in {checkpoints.directory}: "
            f"{orbax_messages.reason(error)}"
        ) from error
    checkpoints.verified = True
    return None if verdict == _NO_CHECKPOINT else verdict


def _verdict(directory: Path, log: Log) -> int:
    """Moves damaged checkpoints aside; the newest whole step, _NO_CHECKPOINT or _NONE_READABLE."""
    for step in reversed(steps_in(directory)):
        path = directory / str(step)
        damage = digests.damage(path)
        if damage and not is_undigested_later_format(path):
            aside = _move_aside(path)
            log(f"checkpoint {path} is damaged ({damage}): moved aside to {aside.name}")
    whole = steps_in(directory)
    if whole:
        return whole[-1]
    corrupt = any(_CORRUPT_NAME.fullmatch(path.name) for path in directory.iterdir())
    return _NONE_READABLE if corrupt else _NO_CHECKPOINT


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
        files.sync(path.parent)
    except OSError as error:
        raise UserError(f"cannot move the damaged {path} aside: {error.strerror}") from error
    return aside


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
    meta = meta_of(path)
    params = restore_item(path, "params", abstract_params)
    state = restore_item(path, "state", abstract_state, meta)
    return params, state, meta
