"""The training loop: batch, step, and now and then log, evaluate, save."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from alexnet_jax import console, data, distributed, optim
from alexnet_jax.assemble import Run, assemble, notes, opening_lines, resolve
from alexnet_jax.config import NEVER, Config, check_same_run, config_dict, flatten, to_dict
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import evaluate, report_best
from alexnet_jax.records import (
    checkpoint,
    files,
    lock,
    metrics,
    nonfinite,
    profile,
    provenance,
    restore,
    result,
    saved_state,
    watch,
)
from alexnet_jax.runtime import process
from alexnet_jax.runtime.ahead import Ahead
from alexnet_jax.step import TrainState
from alexnet_jax.trained import resume
from alexnet_jax.trained.begin import begin_from
from alexnet_jax.trained.kept import write_recipe

STEPS_AHEAD = 2  # steps dispatched before the oldest has finished; more would only hold memory


def train(config: Config, workdir: str | Path, *, traced: tuple[int, int] | None = None) -> int:
    """Trains to the end, or goes on from the last checkpoint in `workdir`; writes result.json.

    Args:
        config: every field of configs/base.py.
        workdir: the run's directory, made where it is missing.
        traced: first and last step, counted from 1, of a profiler's trace into WORKDIR/profile.

    Returns:
        The exit status: 0, or 75 (EX_TEMPFAIL) after a signal, with the state saved.

    Raises:
        UserError: see `assemble`; `workdir` is another run's, in use or not writable; a loss or
            gradient isn't finite; an image isn't decodable; `traced` are steps that it won't make.
    """
    workdir, produced = Path(workdir), provenance.collect()
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        with console.counter(enabled=first) as progress, distributed.together():
            lock.check(workdir)
            opened = resume.open_data(config, workdir, progress)
            run = assemble(config, opened, progress=progress)
            if first:
                stack.enter_context(lock.acquire(workdir))
            resolved = resolve(run.config, run.model)
            check_same_run(resolved, workdir)
            kept = resume.check_same_data(workdir, run)
        fields = flatten(resolved) | {"data.data_dir": kept.train.fingerprint}
        distributed.check_alike(repr(sorted(fields.items())), workdir, lock.NAME)
        for line in (f"work directory: {workdir}", *opening_lines(run)):
            console.say(line, enabled=first)
        size = config.data.image_size
        console.layer_table(run.model, (size, size, 3), enabled=first)
        saved = checkpoint.open_checkpoints(workdir, keep=config.keep_checkpoints)
        state, history = _restore_or_start(run, saved, workdir)
        if distributed.any_process(
            first and int(state.step) == run.total_steps == result.final_step(workdir)
        ):
            _say(f"the run has ended: {workdir / 'result.json'} stays as it is")
            return 0
        profile.check(traced, done=int(state.step), total=run.total_steps)
        if first:
            for line in notes(config, run, workdir, int(state.step)):
                _say(line)
            files.write_json(workdir / "config.json", to_dict(resolved))
            write_recipe(workdir, kept)
        stop = stack.enter_context(process.noted())  # until all is written and closed
        writer = metrics.open_writer(workdir, resume_step=int(state.step), enabled=first)
        stack.callback(_save_errors(config)(writer.close))
        writer.text("config", f"```\n{config_dict(resolved)}\n```")
        progress = console.Progress(
            run.total_steps, run.config.batch_size, start_step=int(state.step), enabled=first
        )
        watching = watch.make_watch(run.model, run.layout)
        session = Session(run, workdir, saved, writer, progress, watching, traced)
        state, history, stopped_by = _loop(session, state, history, stop)
        return _end(session, state, history, stopped_by, produced)


@dataclasses.dataclass(frozen=True)
class Session:
    """What one start of a run works with, beside the training state.

    Attributes:
        run: what the configuration describes.
        workdir: the run's directory.
        saved: its checkpoints.
        writer: its metrics, of which process 0 writes all.
        progress: how far it is, on the screen.
        watching: what TensorBoard shows of the net.
        traced: first and last step of the profiler's trace, which process 0 makes.
    """

    run: Run
    workdir: Path
    saved: checkpoint.Checkpoints
    writer: metrics.Writer
    progress: console.Progress
    watching: watch.Watch
    traced: tuple[int, int] | None


def _say(line: str) -> None:
    console.say(line, enabled=jax.process_index() == 0)


def _restore_or_start(run: Run, saved: checkpoint.Checkpoints, workdir: Path):
    """The state to go on from, and the last and best evaluation before it."""
    if restored := saved_state.restore_latest(run, saved, workdir, _say):
        return restored
    with console.counter(enabled=jax.process_index() == 0) as progress:
        progress("initialising the parameters", 0, 0)
        state = run.fresh_state()
    if path := run.config.init_from:
        state = state.replace(params=begin_from(path, run, state.params, _say))
    return state, {"last": None, "best": None}


@dataclasses.dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    log: bool
    evaluate: bool
    end_epoch: bool
    save: bool


def _due(run: Run, step: int) -> Due:
    """What is due after `step` steps. At the end of the run all is."""
    config, end = run.config, step == run.total_steps
    epoch_ends = step % run.steps_per_epoch == 0

    def every(steps: int | None) -> bool:
        if end or steps == NEVER:
            return end
        return epoch_ends if steps is None else step % steps == 0

    return Due(
        log=every(_log_steps(run)),
        # The plateau schedule counts the evaluations at the ends of epochs: it needs them all.
        evaluate=every(config.eval_every_steps)
        or (epoch_ends and config.optim.schedule == "plateau"),
        end_epoch=end or epoch_ends,
        save=every(config.checkpoint_every_steps),
    )


def _log_steps(run: Run) -> int:
    """Steps from one logged step to the next: at most an epoch."""
    return min(run.config.log_every_steps, run.steps_per_epoch)


def _loop(session: Session, state: TrainState, history: dict, stop: list[str]):
    """Trains to the end, or until `stop` has got a signal's name.

    Returns:
        The state, the last and best evaluation, and the signal's name, None at the end.
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
    traced = session.traced if jax.process_index() == 0 else None
    tracing = profile.tracing(traced, session.workdir / "profile")
    with session.progress, tracing as begun:
        begun(step, state)
        while step < run.total_steps and not stopping:
            batch = next(batches)
            state, sums = run.train_step(state, batch)
            step += 1
            _check(session, ahead.add((step, batch, sums)), state.key)
            session.progress.advance(step)
            begun(step, state)
            due = _due(run, step)
            # Read once: a signal may come at any instant. Several processes, of which it may have
            # reached only one, agree where they wait for each other anyway.
            if jax.process_count() == 1 or due.log:
                stopping = distributed.any_process(bool(stop))
            if stopping or any(dataclasses.astuple(due)):
                _check(session, ahead.finish(), state.key)
            if due.log:
                state = _log(session, state, step)
            if due.evaluate:
                with session.progress.paused():
                    state, history = _evaluate(session, state, step, history)
            if due.end_epoch:
                state = _end_epoch(session, state, step, history["last"])
            if due.save or stopping or _keeps_as_best(run, step, history["best"]):
                with session.progress.paused():
                    _save(session, state, step, history)
    return state, history, (stop[0] if stop else "a signal") if step < run.total_steps else None


def _check(session: Session, done: list, key) -> None:
    """Ends the run if one of the steps that are done (step, batch, sums) was not finite."""
    for step, batch, sums in done:
        if not sums["finite"] and session.run.config.on_nonfinite == "stop":
            with _save_errors(session.run.config):
                checkpoint.finish(session.saved)
            raise nonfinite.stopped(session.workdir, step, batch, sums, key)


def _log(session: Session, state: TrainState, step: int) -> TrainState:
    """Records the mean of the training sums since the last logged step, and begins them anew."""
    run, writer = session.run, session.writer
    values = _mean(state.since_log)
    values["images_per_second"] = session.progress.update(step, values["loss"])
    values["learning_rate"] = float(run.schedule(step - 1) * state.plateau.scale)
    if skipped := int(state.nonfinite):
        values["skipped"] = skipped
    norms = session.watching.norms(state.params, state.opt_state)
    with _save_errors(run.config):
        writer.write(step, step / run.steps_per_epoch, "train", values)
        writer.scalars(step, jax.device_get(norms))
    if step % _log_steps(run):  # the run ends here, and may be made longer
        return state
    return state.replace(since_log=run.zero_sums())


def _end_epoch(session: Session, state: TrainState, step: int, last: dict | None) -> TrainState:
    """Says how the epoch went, and begins its sums anew."""
    run = session.run
    trained = _mean(state.since_epoch)
    kernels = jax.device_get(session.watching.kernels(state.params))
    with _save_errors(run.config):
        session.writer.image("conv1", watch.kernel_grid(kernels, run.model.towers), step)
    session.progress.say_epoch(
        -(-step // run.steps_per_epoch),
        -(-run.total_steps // run.steps_per_epoch),
        trained,
        last if last and last["step"] == step else None,
        split=run.eval_split_name,
        num_classes=run.model.num_classes,
    )
    if step % run.steps_per_epoch:  # the run ends in the middle of it, and may be made longer
        return state
    return state.replace(since_epoch=run.zero_sums())


def _mean(sums: dict) -> dict[str, float]:
    """`metrics.summarize`, or NaN where every step or image was skipped."""
    if not float(sums["count"]) > 0:
        return dict.fromkeys(("loss", "top1_error", "top5_error"), math.nan)
    return metrics.summarize(sums)


def _evaluate(session: Session, state: TrainState, step: int, history: dict):
    """Evaluates, records it, and lets the plateau schedule act on the error at an epoch's end."""
    run = session.run
    with console.counter(enabled=jax.process_index() == 0, at_once=False) as progress:
        found = evaluate(run, state.params, progress=progress)
    epoch = step / run.steps_per_epoch
    with _save_errors(run.config):
        session.writer.write(step, epoch, run.eval_split_name, found)
    last = {"step": step, "epoch": epoch, **found}
    best = history["best"]
    if best is None or last["top1_error"] <= best["top1_error"]:
        best = last
    if run.config.optim.schedule == "plateau" and step % run.steps_per_epoch == 0:
        plateau = optim.update_plateau(state.plateau, found["top1_error"], run.config.optim)
        state = state.replace(plateau=jax.device_put(plateau, run.layout.replicated()))
    return state, {"last": last, "best": best}


def _keeps_as_best(run: Run, step: int, best: dict | None) -> bool:
    """Whether the net of this step is the best so far, to be saved whatever the cadence."""
    found = best is not None and best["step"] == step
    return found and run.config.checkpoint_every_steps != NEVER


def _save(session: Session, state: TrainState, step: int, history: dict) -> None:
    """Saves all that decides the rest of the run, once the metrics up to here are on the disk."""
    last = history["last"]
    error = last["top1_error"] if last and last["step"] == step else None
    meta = {"history": history | {"nonfinite": int(state.nonfinite)}}
    with _save_errors(session.run.config):
        checkpoint.finish(session.saved)  # where the last save failed, this one may not
    with _save_errors(session.run.config):
        session.writer.sync()
        checkpoint.save(session.saved, step, state.params, saved_state.to_saved(state), meta, error)


@contextlib.contextmanager
def _save_errors(config: Config) -> Iterator[None]:
    """What cannot be written ends the run, or is a warning with on_save_error='continue'."""
    try:
        yield
    except UserError as error:
        if config.on_save_error == "stop":
            raise
        console.say(f"warning: {error}", enabled=jax.process_index() == 0)


def _end(
    session: Session, state: TrainState, history: dict, stopped_by: str | None, produced: dict
) -> int:
    """Waits for what is being saved and writes result.json; returns the exit status."""
    run, step = session.run, int(state.step)
    if stopped_by is None and (history["last"] or {}).get("step") != step:  # made to end here
        state, history = _evaluate(session, state, step, history)
    with _save_errors(run.config):
        checkpoint.finish(session.saved)
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
