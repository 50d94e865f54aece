"""The training loop: batch, step, and now and then log, evaluate, save."""

import collections
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from alexnet_jax import checkpoint, console, data, lock, metrics, optim
from alexnet_jax.assemble import Run, assemble, resolve
from alexnet_jax.config import check_same_run
from alexnet_jax.evaluate import evaluate
from alexnet_jax.step import TrainState

STEPS_AHEAD = 2  # steps dispatched before the oldest has finished; more would only hold memory


def train(config: ConfigDict, workdir: str | Path) -> int:
    """Trains to the end, or goes on from the last checkpoint in `workdir`; writes result.json.

    Returns:
        The exit status: 0, or 75 (EX_TEMPFAIL) after a signal, with the state saved.

    Raises:
        UserError: see `assemble`; or `workdir` is another configuration's, in use or not writable.
    """
    workdir = Path(workdir)
    run = assemble(config)
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(lock.acquire(workdir))
        resolved = resolve(config, run.model)
        check_same_run(resolved, workdir)
        if first:
            metrics.write_json(workdir / "config.json", resolved.to_dict())
        console.say(f"work directory: {workdir}", enabled=first)
        size = config.data.image_size
        console.layer_table(run.model, (size, size, 3), enabled=first)
        saved = checkpoint.open_checkpoints(workdir, keep=config.keep_checkpoints)
        state, history = _restore_or_start(run, saved, first)
        writer = metrics.open_writer(workdir, resume_step=int(state.step), enabled=first)
        stack.callback(writer.close)
        writer.text("config", f"```\n{resolved}\n```")
        return _loop(run, workdir, state, history, saved, writer, first)


def _restore_or_start(run: Run, saved: checkpoint.Checkpoints, first: bool):
    """The state to go on from, and the last and best evaluation before it."""

    def log(line):
        console.say(line, enabled=first)

    abstract = run.abstract_state()
    restored = checkpoint.restore_latest(saved, abstract.params, abstract.replace(params={}), log)
    if restored is None:
        return run.fresh_state(), {"last": None, "best": None}
    params, rest, meta = restored
    log(f"goes on from step {meta['step']} of {run.total_steps}")
    return rest.replace(params=params), meta["history"]


def _loop(run: Run, workdir, state: TrainState, history: dict, saved, writer, first: bool) -> int:
    config, per_epoch, total = run.config, run.steps_per_epoch, run.total_steps
    step = int(state.step)
    progress = console.Progress(total, config.batch_size, start_step=step, enabled=first)
    batches = data.train_batches(
        run.data,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=step,
        shardings=run.layout.batch_shardings(),
    )
    dispatched = collections.deque()

    def due(every_steps: int) -> bool:
        return step % (every_steps or per_epoch) == 0 or step == total

    with progress, _stop_on_signal() as stop:
        while step < total and not stop:
            state, sums = run.train_step(state, next(batches))
            step += 1
            dispatched.append(sums)
            if len(dispatched) > STEPS_AHEAD:
                jax.block_until_ready(dispatched.popleft())

            if due(config.log_every_steps):
                values = metrics.summarize(state.since_log)
                values["images_per_second"] = progress.update(step, values["loss"])
                values["learning_rate"] = float(run.schedule(step - 1) * state.plateau.scale)
                writer.write(step, step / per_epoch, "train", values)
                state = state.replace(since_log=run.zero_sums())
            if due(config.eval_every_steps):
                with progress.paused():
                    state, history = _evaluate(run, state, step, history, writer)
            if due(every_steps=0):
                trained = metrics.summarize(state.since_epoch)
                state = state.replace(since_epoch=run.zero_sums())
                _say_epoch(run, step, trained, history["last"], progress, first)
            if due(config.checkpoint_every_steps) or stop:
                with progress.paused():
                    _save(saved, writer, step, state, history)

        if step == total and (history["last"] or {}).get("step") != step:
            # A run that had ended, and was made shorter or longer since.
            state, history = _evaluate(run, state, step, history, writer)
    checkpoint.finish(saved)
    if step < total:
        console.say(
            f"stopped by {stop[0]} at step {step} of {total} and saved there; "
            "the same command goes on",
            enabled=first,
        )
        return os.EX_TEMPFAIL
    if first:
        _write_result(run, workdir, step, history, progress.images_per_second)
    return 0


def _evaluate(run: Run, state: TrainState, step: int, history: dict, writer):
    """Evaluates, records it, and lets the plateau schedule act on the error."""
    result = evaluate(run, state.params)
    epoch = step / run.steps_per_epoch
    writer.write(step, epoch, run.eval_split_name, result)
    last = {"step": step, "epoch": epoch, **result}
    best = history["best"]
    if best is None or last["top1_error"] <= best["top1_error"]:
        best = last
    if run.optim.schedule == "plateau":
        plateau = optim.update_plateau(state.plateau, result["top1_error"], run.optim)
        state = state.replace(plateau=jax.device_put(plateau, run.layout.replicated()))
    return state, {"last": last, "best": best}


def _save(saved, writer, step: int, state: TrainState, history: dict) -> None:
    """Saves all that decides the rest of the run, once the metrics up to here are on the disk."""
    writer.sync()
    last = history["last"]
    error = last["top1_error"] if last and last["step"] == step else None
    rest = state.replace(params={})
    checkpoint.save(saved, step, state.params, rest, {"history": history}, error)


def _say_epoch(run: Run, step: int, trained: dict, last: dict | None, progress, first) -> None:
    epoch = -(-step // run.steps_per_epoch)
    num_epochs = -(-run.total_steps // run.steps_per_epoch)
    evaluated = last if last and last["step"] == step else None
    rate = progress.images_per_second
    line = console.epoch_line(
        epoch, num_epochs, step, trained, evaluated, rate, split=run.eval_split_name
    )
    console.say(line, enabled=first)


def _write_result(run: Run, workdir: Path, step: int, history: dict, rate: float) -> None:
    result = {
        "final": history["last"],
        "best": history["best"],
        "epochs": step / run.steps_per_epoch,
        "images_per_second": rate,
        "seed": run.config.seed,
        **metrics.provenance(),
    }
    metrics.write_json(workdir / "result.json", result)
    for name, value in (("final", history["last"]), ("best", history["best"])):
        console.say(
            f"{name}: step {value['step']}  {run.eval_split_name} loss {value['loss']:.4f}  "
            f"top-1 error {value['top1_error']:.2f}%  top-5 error {value['top5_error']:.2f}%"
        )
    console.say(f"result: {workdir / 'result.json'}")


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[list[str]]:
    """A list that gets the name of a SIGTERM or SIGINT; a second SIGINT stops at once."""
    received = []

    def handle(number, _):
        received.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
