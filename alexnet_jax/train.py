"""Runs the training loop, which makes a step with each batch and at times evaluates and saves."""

import contextlib
import dataclasses
import os
from pathlib import Path

import jax

from alexnet_jax import console, data, distributed, optim
from alexnet_jax.assemble import Due, Run, assemble, resolve
from alexnet_jax.config import NEVER, Config, check_same_run, to_dict
from alexnet_jax.console.progress import counter
from alexnet_jax.evaluate import evaluate, report_best
from alexnet_jax.records import (
    checkpoint,
    files,
    lock,
    profile,
    provenance,
    restore,
    result,
)
from alexnet_jax.records.notes import notes, opening_lines
from alexnet_jax.records.session import Session, open_session
from alexnet_jax.runtime import process
from alexnet_jax.runtime.ahead import Ahead
from alexnet_jax.step import TrainState
from alexnet_jax.trained import resume
from alexnet_jax.trained.begin import restore_or_start
from alexnet_jax.trained.kept import write_recipe

STEPS_AHEAD = 2  # steps dispatched before the oldest has ended; more would only use more memory


def train(config: Config, workdir: str | Path, *, traced: tuple[int, int] | None = None) -> int:
    """Trains from scratch, or from the last checkpoint in `workdir`, and writes result.json.

    Args:
        config: the configuration of the run.
        workdir: the run's directory, which is made if it is missing.
        traced: the first and the last step, counted from 1, that the profiler traces into
            WORKDIR/profile.

    Returns:
        The exit status: 0, or 75 (EX_TEMPFAIL) after a signal, once the state is saved.

    Raises:
        UserError: `assemble` raises it; `workdir` belongs to another run, is in use or is not
            writable; a loss or gradient is not finite; an image cannot be decoded; or the run will
            not make the steps of `traced`.
    """
    workdir, produced = Path(workdir), provenance.collect()
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        with counter(enabled=first) as progress, distributed.together():
            lock.check(workdir)
            opened = resume.open_data(config, workdir, progress)
            run = assemble(config, opened, progress=progress)
            if first:
                stack.enter_context(lock.acquire(workdir))
            resolved = resolve(run.config, run.model)
            # Pictures that were added change a batch size of None too, but are the news.
            check_same_run(resolved, workdir, but=() if config.batch_size else ("batch_size",))
            kept = resume.check_same_data(workdir, run)
            check_same_run(resolved, workdir)
        distributed.check_alike(resume.as_read_here(resolved, run, kept), workdir, lock.NAME)
        if first:
            for line in (f"work directory: {workdir}", *opening_lines(run)):
                _say(line)
            console.layer_table(run.model, config.data.image_size)
        saved = checkpoint.open_checkpoints(workdir, keep=config.keep_checkpoints)
        state, history = restore_or_start(run, saved, workdir, _say)
        if distributed.any_process(
            first and int(state.step) == run.total_steps == result.final_step(workdir)
        ):
            _say(f"the run has ended: {workdir / 'result.json'} stays as it is")
            return 0
        profile.check(traced, done=int(state.step), total=run.total_steps)
        if first:
            for line in notes(config, run, workdir, int(state.step)):
                _say(line)
            result.set_aside(workdir)
            files.write_json(workdir / "config.json", to_dict(resolved))
            write_recipe(workdir, kept)
        stop = stack.enter_context(process.noted())  # until everything is written and closed
        session = open_session(run, resolved, workdir, saved, int(state.step))
        stack.callback(session.close)
        tracing = profile.tracing(traced if first else None, workdir / "profile")
        state, history, stopped_by = _loop(session, state, history, stop, tracing)
        return _end(session, state, history, stopped_by, produced)


def _say(line: str) -> None:
    console.say(line, enabled=jax.process_index() == 0)


def _loop(session: Session, state: TrainState, history: dict, stop: list[str], tracing):
    """Trains until the last step, or until `stop` holds the name of a signal.

    Returns:
        The state, the last and the best evaluation, and the name of the signal that stopped the
        loop, which is None after the last step.
    """
    run, step = session.run, int(state.step)
    batches = data.train_batches(
        run.data,
        seed=run.config.seed,
        batch_size=run.config.batch_size,
        start_step=step,
        shardings=run.layout.batch_shardings(),
    )
    ahead = Ahead(STEPS_AHEAD)
    stopping = False
    with session.progress, tracing as begun:
        begun(step, state)
        due = run.due(step)
        if step and due.evaluate and (history["last"] or {}).get("step") != step:
            # The evaluation failed before, or the run was stopped here and has now to end here.
            ends = due.end_epoch and float(state.since_epoch["count"]) > 0  # as yet without a line
            due = dataclasses.replace(due, end_epoch=ends)
            state, history = _follow(session, state, step, history, due)
        while step < run.total_steps and not stopping:
            batch = next(batches)
            state, sums = run.train_step(state, batch)
            step += 1
            session.check_finite(ahead.add((step, batch, sums)), state.key)
            session.progress.advance(step)
            begun(step, state)
            due = run.due(step)
            # `stop` is read once, because a signal may come at any instant. Several processes agree
            # on it at a logged step, where they wait for each other anyway: a signal may have
            # reached only one of them.
            if jax.process_count() == 1 or due.log:
                stopping = distributed.any_process(bool(stop))
            if stopping or any(dataclasses.astuple(due)):
                session.check_finite(ahead.finish(), state.key)
            if due.log:
                state = session.log(state, step)
            due = dataclasses.replace(due, save=due.save or stopping)
            state, history = _follow(session, state, step, history, due)
    return state, history, (stop[0] if stop else "a signal") if step < run.total_steps else None


def _follow(session: Session, state: TrainState, step: int, history: dict, due: Due):
    """Does what is due after a step and its log."""
    if due.evaluate:
        with session.progress.paused():
            state, history = _evaluate(session, state, step, history)
    if due.end_epoch:
        state = session.end_epoch(state, step, history["last"])
    if due.save or _keeps_as_best(session.run, step, history["best"]):
        with session.progress.paused():
            session.save(state, step, history)
    return state, history


def _evaluate(session: Session, state: TrainState, step: int, history: dict):
    """Evaluates and writes the errors; at an epoch's end it also updates the plateau schedule."""
    run = session.run
    shown = counter(enabled=jax.process_index() == 0, at_once=False)
    with session.saved_if_it_fails(state, step, history), shown as progress:
        found = evaluate(run, state.params, progress=progress)
    epoch = step / run.steps_per_epoch
    session.write_evaluation(step, found)
    last = {"step": step, "epoch": epoch, **found}
    best = history["best"]
    if best is None or last["top1_error"] <= best["top1_error"]:
        best = last
    if run.config.optim.schedule == "plateau" and step % run.steps_per_epoch == 0:
        plateau = optim.update_plateau(state.plateau, found["top1_error"], run.config.optim)
        state = state.replace(plateau=jax.device_put(plateau, run.layout.replicated()))
    return state, {"last": last, "best": best}


def _keeps_as_best(run: Run, step: int, best: dict | None) -> bool:
    """Returns whether this step's net is the best so far and is therefore to be saved."""
    found = best is not None and best["step"] == step
    return found and run.config.checkpoint_every_steps != NEVER


def _end(
    session: Session, state: TrainState, history: dict, stopped_by: str | None, produced: dict
) -> int:
    """Waits until everything is saved and writes result.json; returns the exit status."""
    run, step = session.run, int(state.step)
    session.finish_saving()
    if stopped_by:
        last = max(restore.steps(session.workdir), default=0)
        _say(
            f"stopped by {stopped_by} at step {step} of {run.total_steps}; "
            f"the same command goes on from step {last}, which is saved"
        )
        return os.EX_TEMPFAIL
    if jax.process_index() == 0:
        measured = {
            "images_per_second": session.progress.images_per_second or None,
            "skipped_steps": int(state.nonfinite),
        }
        result.write(run, session.workdir, history, measured, produced)
    if run.config.per_class:
        report_best(run, session.workdir)
    return 0
