"""Writes, verifies and restores the checkpoints of a run, in the training process.

    WORKDIR/checkpoints/120/              one directory per saved step
        params/  state/                   arrays: the parameters, and all else that decides the run
        meta/metadata                     JSON: format, step, error, versions, and what the run adds
        SHA256SUMS                        digest of every other file; `sha256sum -c` reads it too
    WORKDIR/checkpoints/120.corrupt-1/    a damaged checkpoint, moved aside and never deleted
    WORKDIR/checkpoints/deleted/          one no longer kept, until the next save or `finish`

Orbax writes a step into a temporary directory and renames it when it is complete. The digest is
written and everything is synced to the disk just before that rename, so that a step with its final
name also has its digest, whenever the process is killed. Orbax itself does not notice a flipped
byte, so nothing is restored before its digest has been checked.
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
    """Holds a run's checkpoints, open for writing by the training process."""

    directory: Path
    manager: ocp.CheckpointManager
    verified: bool = False
    saving: int | None = None
    # Orbax's messages are hidden from the start of a save until one has finished, because it may
    # report a failed save much later.
    silence: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)


def open_checkpoints(workdir: str | os.PathLike, *, keep: int) -> Checkpoints:
    """Opens `workdir` for saving, creates it if needed, and removes saves that a kill interrupted.

    The latest `keep` checkpoints are kept, and the one with the lowest validation error. Every
    process of the run must call this function, and no other process may (see `lock`).

    Raises:
        UserError: `keep` is below one, or the directory cannot be created or written.
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
            # best_fn makes Orbax store each step's error; only the policy decides what is kept.
            best_fn=_rank,
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=_rank,
                        reverse=True,  # The best comes last: the lowest error, of equals the later.
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            temporary_path_class=_DigestedPath,
            # A checkpoint is renamed before it is deleted, so that a kill leaves no half of it.
            todelete_subdir=_TRASH,
            # A damaged metrics file would raise here; `verify` checks the files first.
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
    """Starts saving a step, and returns once its arrays are copied, so that they may be donated.

    It waits for the previous save. If the step is saved already, it does nothing, except that one
    saved without its error, because its evaluation had failed, is replaced by one with it.

    Args:
        checkpoints: the checkpoints that `open_checkpoints` has opened.
        step: the number of training steps done, at least 0.
        params: the parameters, a pytree of `jax.Array`s of which none is empty.
        state: everything else that decides the rest of the run: `jax.Array`s, PRNG keys of either
            kind and Python numbers. (A 64-bit NumPy array would be restored as 32-bit without x64.)
        meta: further JSON values; format, step, error, versions and the kinds of the PRNG keys are
            added to them.
        error: the validation error that ranks the checkpoint (the lowest is kept), or None.

    Raises:
        UserError: this or the previous save could not be written. This step is then not saved; the
            earlier checkpoints are complete.
    """
    reserved = {"format", "step", "error", "versions", "key_kinds"} & meta.keys()
    if reserved:
        raise ValueError(f"meta may not hold {sorted(reserved)}: save writes them")
    if not checkpoints.verified:  # Orbax does not know the errors of the earlier steps either.
        raise RuntimeError("call verify or restore_latest before the first save")
    finish(checkpoints)
    step = int(step)
    error = float(error) if error is not None and math.isfinite(error) else None
    if step in checkpoints.manager.all_steps():
        if error is None or _rank(checkpoints.manager.metrics(step) or {}) < math.inf:
            return
        checkpoints.manager.delete(step)
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
    """Waits until the last save is on the disk; further saves may follow.

    Raises:
        UserError: it could not be written; the earlier checkpoints are complete.
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
    """Frees the disk space of a failed save, and returns the error to raise.

    TensorStore's threads may go on writing for a while; `finish` removes what they write.
    """
    path = checkpoints.directory / str(checkpoints.saving)
    if jax.process_index() == 0:
        _remove_leftovers(checkpoints.directory)
    # Orbax has already removed the steps that it wanted to delete from its list.
    checkpoints.manager.reload()
    reason = orbax_messages.reason(problem)
    return UserError(f"saving checkpoint {path} failed ({reason}): earlier ones are complete")


class _DigestedPath(atomicity.AtomicRenameTemporaryPath):
    """Writes the digest of Orbax's temporary directory before the rename that commits it."""

    async def finalize(self) -> None:
        final = self.get_final()
        if _TEMPORARY in final.parent.name:  # This is an item inside a step, not a step.
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
    """Restores the newest step that `verify` finds; returns None if none was ever saved."""
    step = verify(checkpoints, log)
    return None if step is None else restore(checkpoints, step, abstract_params, abstract_state)


def verify(checkpoints: Checkpoints, log: Log) -> int | None:
    """Checks every checkpoint against its digest; returns the newest step, or None without any.

    A checkpoint with a truncated, altered or missing file is renamed to STEP.corrupt-N, and `log`
    is called with a line that names the file.

    Raises:
        UserError: there are or were checkpoints, but none is readable; or one has a later format.
    """
    verdict = _verdict(checkpoints.directory, log) if jax.process_index() == 0 else 0
    if jax.process_count() > 1:
        verdict = int(multihost_utils.broadcast_one_to_all(np.int32(verdict)))
    if verdict == _NONE_READABLE:
        raise UserError(
            f"no checkpoint in {checkpoints.directory} is readable (damaged ones are the folders "
            "named STEP.corrupt-N): to train again from scratch, choose another --workdir"
        )
    if verdict != _NO_CHECKPOINT:
        for step in steps_in(checkpoints.directory):
            refuse_later_format(checkpoints.directory / str(step))
    try:
        checkpoints.manager.reload()  # This reads the errors of the steps.
    except Exception as error:  # The files are as they were written, but not by Orbax.
        raise UserError(
            f"cannot read the checkpoints in {checkpoints.directory}: "
            f"{orbax_messages.reason(error)}"
        ) from error
    checkpoints.verified = True
    return None if verdict == _NO_CHECKPOINT else verdict


def _verdict(directory: Path, log: Log) -> int:
    """Moves damaged checkpoints aside; returns the newest step, or a negative number."""
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
        checkpoints: the checkpoints that `open_checkpoints` has opened.
        step: a step that `verify` has returned.
        abstract_params: the parameters as `jax.ShapeDtypeStruct`s with shardings. The devices and
            the layout may differ from those of the save.
        abstract_state: the state in the same form.

    Returns:
        The parameters, the state and the meta.

    Raises:
        UserError: the arrays differ from the abstract trees; the line names the first that do.
    """
    path = checkpoints.directory / str(step)
    meta = meta_of(path)
    params = restore_item(path, "params", abstract_params)
    state = restore_item(path, "state", abstract_state, meta)
    return params, state, meta
