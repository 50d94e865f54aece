"""Writes WORKDIR/nonfinite/STEP.npz, the input of a step whose results were not finite."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from alexnet_jax import distributed
from alexnet_jax.data import cache
from alexnet_jax.errors import UserError
from alexnet_jax.records import restore


def stopped(workdir: Path, step: int, batch: dict, sums: dict, key: jax.Array) -> UserError:
    """Writes the batch of a step that was not finite, and returns the error that ends the run.

    The file has the ids, labels, crops and mask of the batch, the key of the step, its loss, and as
    `meta` the step from which to replay. Every process must call this function.

    Args:
        workdir: the run's directory, with every checkpoint on the disk.
        step: the number of steps done, including this one.
        batch: the batch of the step.
        sums: the sums of the step (see `step.make_train_step`).
        key: the run's random key.
    """
    names = ("ids", "labels", "crops", "mask")
    arrays = {name: multihost_utils.process_allgather(batch[name], tiled=True) for name in names}
    arrays["key"] = jax.random.key_data(jax.random.fold_in(key, step - 1))
    arrays["loss"] = sums["loss"] / jnp.maximum(sums["count"], 1)
    last = max(restore.steps(workdir), default=0)
    where = workdir / "nonfinite" / f"{step}.npz"
    reason = ""
    if jax.process_index() == 0:
        try:
            cache.store(where, jax.device_get(arrays), {"step": step, "replay_from": last})
        except OSError as error:
            reason = f" ({error.strerror or error})"
    written = f"its batch is in {where}"
    if distributed.any_process(bool(reason)):
        written = f"its batch could not be written to {where}{reason}"
    return UserError(
        f"step {step} is not finite in its loss, gradient or update (loss "
        f"{float(arrays['loss']):g}): {written}, and the same command replays it "
        f"from step {last}; lower optim.learning_rate in a new --workdir, or set "
        "--config.on_nonfinite=skip"
    )
