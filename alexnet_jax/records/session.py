"""Records what happens in one session of a run: logged steps, epochs, evaluations, checkpoints."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from alexnet_jax import console
from alexnet_jax.assemble import Run
from alexnet_jax.config import Config, config_dict
from alexnet_jax.console.progress import Progress
from alexnet_jax.errors import UserError
from alexnet_jax.records import checkpoint, metrics, nonfinite, saved_state, watch
from alexnet_jax.step import TrainState


@dataclass(frozen=True)
class Session:
    """Represents one session of a run, from its first or restored step until it ends or stops.

    Attributes:
        run: what the configuration describes.
        workdir: the run's directory.
        saved: its checkpoints.
        writer: its metrics, which process 0 writes for all.
        progress: the progress that is shown on the screen.
        watching: the functions for what TensorBoard shows of the net.
    """

    run: Run
    workdir: Path
    saved: checkpoint.Checkpoints
    writer: metrics.Writer
    progress: Progress
    watching: watch.Watch

    def check_finite(self, done: list, key: jax.Array) -> None:
        """Ends the run if one of the finished steps, each (step, batch, sums), was not finite.

        Raises:
            UserError: a step was not finite, and `on_nonfinite` is 'stop'.
        """
        for step, batch, sums in done:
            if not sums["finite"] and self.run.config.on_nonfinite == "stop":
                self.finish_saving()
                raise nonfinite.stopped(self.workdir, step, batch, sums, key)

    def log(self, state: TrainState, step: int) -> TrainState:
        """Writes the mean metrics since the last logged step; returns a state with new sums."""
        run = self.run
        values = _mean(state.since_log)
        values["images_per_second"] = self.progress.update(step, values["loss"])
        values["learning_rate"] = float(run.schedule(step - 1) * state.plateau.scale)
        if skipped := int(state.nonfinite):
            values["skipped"] = skipped
        norms = self.watching.norms(state.params, state.opt_state)
        with self._write_errors():
            self.writer.write(step, step / run.steps_per_epoch, "train", values)
            self.writer.scalars(step, jax.device_get(norms))
        if step % run.log_every_steps:  # The run ends here, and may be made longer later.
            return state
        return state.replace(since_log=run.zero_sums())

    def end_epoch(self, state: TrainState, step: int, last: dict | None) -> TrainState:
        """Prints the line of an epoch; returns a state with new sums.

        Args:
            state: the training state.
            step: the number of steps done.
            last: the last evaluation, if there was one.
        """
        run = self.run
        trained = _mean(state.since_epoch)
        kernels = jax.device_get(self.watching.kernels(state.params))
        with self._write_errors():
            self.writer.image("conv1", watch.kernel_grid(kernels, run.model.towers), step)
        self.progress.say_epoch(
            -(-step // run.steps_per_epoch),
            -(-run.total_steps // run.steps_per_epoch),
            trained,
            last if last and last["step"] == step else None,
            split=run.eval_split_name,
            num_classes=run.model.num_classes,
        )
        if step % run.steps_per_epoch:  # The run ends within the epoch, and may be made longer.
            return state
        return state.replace(since_epoch=run.zero_sums())

    def write_evaluation(self, step: int, found: dict) -> None:
        """Writes the errors that an evaluation found."""
        run = self.run
        with self._write_errors():
            self.writer.write(step, step / run.steps_per_epoch, run.eval_split_name, found)

    def save(self, state: TrainState, step: int, history: dict) -> None:
        """Saves all that decides the rest of the run, after all metrics so far are on the disk."""
        last = history["last"]
        error = last["top1_error"] if last and last["step"] == step else None
        meta = {"history": history | {"nonfinite": int(state.nonfinite)}}
        self.finish_saving()  # If the previous save failed, this one is still tried.
        with self._write_errors():
            self.writer.sync()
            rest = saved_state.to_saved(state)
            checkpoint.save(self.saved, step, state.params, rest, meta, error)

    def finish_saving(self) -> None:
        """Returns once what is being saved is on the disk."""
        with self._write_errors():
            checkpoint.finish(self.saved)

    @contextlib.contextmanager
    def saved_if_it_fails(self, state: TrainState, step: int, history: dict) -> Iterator[None]:
        """Saves the state of a step if its evaluation fails, which a resumed run then repeats.

        Of several processes one alone may have failed, and cannot save without the others.
        """
        try:
            yield
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            if jax.process_count() == 1:
                self.save(state, step, history)
                self.finish_saving()
            raise

    def close(self) -> None:
        """Closes the metrics."""
        with self._write_errors():
            self.writer.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Prints a UserError as a warning if `on_save_error` is 'continue'."""
        try:
            yield
        except UserError as error:
            if self.run.config.on_save_error == "stop":
                raise
            console.say(f"warning: {error}", enabled=jax.process_index() == 0)


def open_session(
    run: Run, resolved: Config, workdir: Path, saved: checkpoint.Checkpoints, step: int
) -> Session:
    """Opens the records of a run as they stood at `step`, from which it goes on.

    Args:
        run: what the configuration describes.
        resolved: the configuration with the preset's values, which TensorBoard shows.
        workdir: the run's directory.
        saved: its checkpoints.
        step: the number of steps done.

    Raises:
        UserError: see `metrics.open_writer`.
    """
    first = jax.process_index() == 0
    writer = metrics.open_writer(workdir, resume_step=step, enabled=first)
    progress = Progress(run.total_steps, run.config.batch_size, start_step=step, enabled=first)
    watching = watch.make_watch(run.model, run.layout)
    writer.text("config", f"```\n{config_dict(resolved)}\n```")
    return Session(run, workdir, saved, writer, progress, watching)


def _mean(sums: dict) -> dict[str, float]:
    """Returns `metrics.summarize(sums)`, or NaN where every step or image was skipped."""
    if not float(sums["count"]) > 0:
        return dict.fromkeys(("loss", "top1_error", "top5_error"), math.nan)
    return metrics.summarize(sums)
