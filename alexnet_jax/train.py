"""The training loop: batch, step, and now and then log, evaluate, save."""

import collections
import contextlib
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alexnet_jax import console, data, distributed, optim
from alexnet_jax.assemble import Run, assemble, resolve
from alexnet_jax.config import check_same_run, flatten
from alexnet_jax.data import cache
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import evaluate
from alexnet_jax.records import checkpoint, lock, metrics, watch
from alexnet_jax.step import TrainState
from alexnet_jax.trained import pretrained

STEPS_AHEAD = 2  # steps dispatched before the oldest has finished; more would only hold memory


def train(config: ConfigDict, workdir: str | Path) -> int:
    """Trains to the end, or goes on from the last checkpoint in `workdir`; writes result.json.

    Returns:
        The exit status: 0, or 75 (EX_TEMPFAIL) after a signal, with the state saved.

    Raises:
        UserError: see `assemble`; `workdir` is another configuration's, in use or not writable;
            a step's loss or gradient is not finite; an image cannot be decoded.
    """
    workdir, provenance = Path(workdir), metrics.provenance()
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        with console.counter(enabled=first) as progress, distributed.together():
            run = assemble(config, progress=progress)
            if first:
                stack.enter_context(lock.acquire(workdir))
            resolved = resolve(config, run.model)
            check_same_run(resolved, workdir)
        fields = flatten(resolved) | {"data.data_dir": run.data.fingerprint}
        distributed.check_alike(repr(sorted(fields.items())), workdir, lock.NAME)
        console.say(f"work directory: {workdir}", enabled=first)
        for split, lines in run.data.left_out.items():
            for line in lines:
                console.say(f"left out of {split}: {line}", enabled=first)
        size = config.data.image_size
        console.layer_table(run.model, (size, size, 3), enabled=first)
        saved = checkpoint.open_checkpoints(workdir, keep=config.keep_checkpoints)
        state, history = _restore_or_start(run, saved, first)
        if first:
            metrics.write_json(workdir / "config.json", resolved.to_dict())
            pretrained.write_recipe(workdir, run)
        writer = metrics.open_writer(workdir, resume_step=int(state.step), enabled=first)
        stack.callback(_close, writer, config)
        writer.text("config", f"```\n{resolved}\n```")
        return _loop(run, workdir, state, history, saved, writer, provenance)


def _restore_or_start(run: Run, saved: checkpoint.Checkpoints, first: bool):
    """The state to go on from, and the last and best evaluation before it."""

    def log(line):
        console.say(line, enabled=first)

    abstract = run.abstract_state()
    restored = checkpoint.restore_latest(saved, abstract.params, _rest(abstract), log)
    if restored is None:
        log("initialising the parameters")
        state = run.fresh_state()
        if path := run.config.init_from:
            state = state.replace(params=pretrained.begin_from(path, run, state.params, log))
        return state, {"last": None, "best": None}
    params, rest, meta = restored
    log(f"goes on from step {meta['step']} of {run.total_steps}")
    history = meta["history"]
    nonfinite = jnp.int32(history.pop("nonfinite", 0))  # earlier checkpoints lack it
    nonfinite = jax.device_put(nonfinite, run.layout.replicated())
    return TrainState(**rest | {"params": params, "nonfinite": nonfinite}), history


def _rest(state: TrainState) -> dict:
    """What a checkpoint keeps beside the parameters; `nonfinite`, younger, is in its meta."""
    return {name: x for name, x in vars(state).items() if name != "nonfinite"} | {"params": {}}


def _loop(
    run: Run, workdir, state: TrainState, history: dict, saved, writer, provenance: dict
) -> int:
    first = jax.process_index() == 0
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
    watching = watch.make_watch(run.model, run.layout)
    dispatched = collections.deque()  # (step, batch, sums), the oldest first

    def due(every_steps: int) -> bool:
        return step % (every_steps or per_epoch) == 0 or step == total

    def wait(ahead: int) -> None:
        """Until all steps but the last `ahead` are done; ends the run if one was not finite."""
        while len(dispatched) > ahead:
            oldest, batch, sums = dispatched.popleft()
            if not sums["finite"] and config.on_nonfinite == "stop":
                _stop_at_nonfinite(workdir, oldest, batch, sums, state.key, saved)

    with progress, _stop_on_signal() as stop:
        stopping = False
        while step < total and not stopping:
            batch = next(batches)
            state, sums = run.train_step(state, batch)
            step += 1
            dispatched.append((step, batch, sums))
            wait(ahead=STEPS_AHEAD)
            progress.advance(step)

            if due(config.log_every_steps):
                wait(ahead=0)
                values = _mean(state.since_log)
                values["images_per_second"] = progress.update(step, values["loss"])
                values["learning_rate"] = float(run.schedule(step - 1) * state.plateau.scale)
                if skipped := int(state.nonfinite):
                    values["skipped"] = skipped
                norms = watching.norms(state.params, state.opt_state)
                with _save_errors(config):
                    writer.write(step, step / per_epoch, "train", values)
                    writer.scalars(step, jax.device_get(norms))
                state = state.replace(since_log=run.zero_sums())
            # Read once: a signal may come at any instant. Several processes, of which it may have
            # reached only one, agree where they wait for each other anyway.
            if jax.process_count() == 1 or due(config.log_every_steps):
                stopping = distributed.any_process(bool(stop))
            if due(config.eval_every_steps):
                wait(ahead=0)
                with progress.paused():
                    state, history = _evaluate(run, state, step, history, writer)
            if due(every_steps=0):
                wait(ahead=0)
                trained = _mean(state.since_epoch)
                kernels = jax.device_get(watching.kernels(state.params))
                with _save_errors(config):
                    writer.image("conv1", watch.kernel_grid(kernels, run.model.towers), step)
                state = state.replace(since_epoch=run.zero_sums())
                _say_epoch(run, step, trained, history["last"], progress, first)
            if due(config.checkpoint_every_steps) or stopping:
                wait(ahead=0)
                with progress.paused():
                    _save(run, saved, writer, step, state, history)

        if step == total and (history["last"] or {}).get("step") != step:
            # A run that had ended, and was made shorter or longer since.
            state, history = _evaluate(run, state, step, history, writer)
    with _save_errors(config):
        checkpoint.finish(saved)
    if step < total:
        last = max(checkpoint.steps(workdir), default=0)
        console.say(
            f"stopped by {stop[0] if stop else 'a signal'} at step {step} of {total}; "
            f"the same command goes on from step {last}, which is saved",
            enabled=first,
        )
        return os.EX_TEMPFAIL
    if first:
        result = {
            "final": history["last"],
            "best": history["best"],
            "epochs": step / per_epoch,
            "images_per_second": progress.images_per_second,
            "skipped_steps": int(state.nonfinite),
            "bad_images": {split: len(bad) for split, bad in sorted(run.data.bad.items())},
            "seed": config.seed,
            **provenance,
        }
        _write_result(run, workdir, result)
    return 0


def _mean(sums: dict) -> dict[str, float]:
    """`metrics.summarize`, or NaN where every step or image was skipped."""
    if not float(sums["count"]) > 0:
        return dict.fromkeys(("loss", "top1_error", "top5_error"), math.nan)
    return metrics.summarize(sums)


def _stop_at_nonfinite(workdir: Path, step: int, batch: dict, sums: dict, key, saved) -> None:
    """Ends the run, whose last checkpoint stays; WORKDIR/nonfinite/STEP.npz says what came in.

    The file has the batch's ids, labels, crops and mask, the key that the step split, its loss,
    and as `meta` the step to replay from.
    """
    names = ("ids", "labels", "crops", "mask")
    arrays = {name: multihost_utils.process_allgather(batch[name], tiled=True) for name in names}
    arrays["key"] = jax.random.key_data(jax.random.fold_in(key, step - 1))
    arrays["loss"] = sums["loss"] / jnp.maximum(sums["count"], 1)
    checkpoint.finish(saved)
    last = max(checkpoint.steps(workdir), default=0)
    where = workdir / "nonfinite" / f"{step}.npz"
    if jax.process_index() == 0:
        cache.write(where, jax.device_get(arrays), {"step": step, "replay_from": last})
    raise UserError(
        f"step {step} is not finite in its loss, gradient or update (loss "
        f"{float(arrays['loss']):g}): its batch is in {where}, and the same command replays it "
        f"from step {last}; lower optim.learning_rate in a new --workdir, or set "
        "--config.on_nonfinite=skip"
    )


def _evaluate(run: Run, state: TrainState, step: int, history: dict, writer):
    """Evaluates, records it, and lets the plateau schedule act on the error."""
    result = evaluate(run, state.params)
    epoch = step / run.steps_per_epoch
    with _save_errors(run.config):
        writer.write(step, epoch, run.eval_split_name, result)
    last = {"step": step, "epoch": epoch, **result}
    best = history["best"]
    if best is None or last["top1_error"] <= best["top1_error"]:
        best = last
    if run.optim.schedule == "plateau":
        plateau = optim.update_plateau(state.plateau, result["top1_error"], run.optim)
        state = state.replace(plateau=jax.device_put(plateau, run.layout.replicated()))
    return state, {"last": last, "best": best}


def _save(run: Run, saved, writer, step: int, state: TrainState, history: dict) -> None:
    """Saves all that decides the rest of the run, once the metrics up to here are on the disk."""
    last = history["last"]
    error = last["top1_error"] if last and last["step"] == step else None
    meta = {"history": history | {"nonfinite": int(state.nonfinite)}}
    with _save_errors(run.config):
        checkpoint.finish(saved)  # where the last save failed, this one may not
    with _save_errors(run.config):
        writer.sync()
        checkpoint.save(saved, step, state.params, _rest(state), meta, error)


@contextlib.contextmanager
def _save_errors(config: ConfigDict) -> Iterator[None]:
    """What cannot be written ends the run, or is a warning with on_save_error='continue'."""
    try:
        yield
    except UserError as error:
        if config.on_save_error == "stop":
            raise
        console.say(f"warning: {error}", enabled=jax.process_index() == 0)


def _close(writer: metrics.Writer, config: ConfigDict) -> None:
    with _save_errors(config):
        writer.close()


def _say_epoch(run: Run, step: int, trained: dict, last: dict | None, progress, first) -> None:
    epoch = -(-step // run.steps_per_epoch)
    num_epochs = -(-run.total_steps // run.steps_per_epoch)
    evaluated = last if last and last["step"] == step else None
    rate = progress.images_per_second
    line = console.epoch_line(
        epoch, num_epochs, step, trained, evaluated, rate, split=run.eval_split_name
    )
    console.say(line, enabled=first)


def _write_result(run: Run, workdir: Path, result: dict) -> None:
    for split, bad in sorted(run.data.bad.items()):
        for _, reason in sorted(bad.items()):
            console.say(f"image of {split} left out: {reason}")
    if result["skipped_steps"]:
        console.say(f"steps left out as not finite: {result['skipped_steps']}")
    for name in ("final", "best"):
        value = result[name]
        console.say(
            f"{name}: step {value['step']}  {run.eval_split_name} loss {value['loss']:.4f}  "
            f"top-1 error {value['top1_error']:.2f}%  top-5 error {value['top5_error']:.2f}%"
        )
    metrics.write_json(workdir / "result.json", result)
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
