"""Converts the training state to and from the form that all checkpoints have.

The optimizer's chain of transforms may change without a change of the files, which always store its
counter and its velocity under the names of `VelocityState`.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.assemble import Run
from alexnet_jax.errors import UserError
from alexnet_jax.records import checkpoint, result
from alexnet_jax.step import TrainState


class VelocityState(NamedTuple):
    """Holds what a checkpoint stores of the optimizer: the updates made (int32), the velocity."""

    count: jax.Array
    velocity: optax.Params


def to_saved(state: TrainState) -> dict:
    """Returns what a checkpoint stores beside the parameters.

    It does not include `nonfinite`, which the first checkpoints did not have and which is stored in
    the checkpoint's meta.
    """
    rest = {name: x for name, x in vars(state).items() if name not in ("params", "nonfinite")}
    count, velocity = (optax.tree.get(state.opt_state, name) for name in ("count", "trace"))
    middle = state.opt_state[1:-1]  # the state of LARS, which has no arrays
    opt_state = (optax.EmptyState(), *middle, VelocityState(count, velocity))
    return rest | {"params": {}, "opt_state": opt_state}


def restore_latest(
    run: Run, saved: checkpoint.Checkpoints, workdir: Path, log: checkpoint.Log
) -> tuple[TrainState, dict] | None:
    """Restores the newest undamaged checkpoint of a run.

    Args:
        run: the run.
        saved: its checkpoints.
        workdir: its directory.
        log: a function that prints a line.

    Returns:
        The restored state, and the history: the 'last' and the 'best' evaluation before it. None if
        nothing was ever saved.

    Raises:
        UserError: `checkpoint.verify` raises it; the run has made more steps than were asked for;
            or it has ended and its checkpoints are gone.
    """
    abstract = run.abstract_state()
    restored = checkpoint.restore_latest(saved, abstract.params, to_saved(abstract), log)
    if restored is None:
        if result.final_step(workdir) is not None:
            raise UserError(
                f"'{workdir}' holds the result of a run but no checkpoint of it: choose another "
                "--workdir, or move its result.json away to train again from scratch"
            )
        return None
    params, rest, meta = restored
    step = meta["step"]
    if step > run.total_steps:
        raise UserError(
            f"the run in {workdir} has made {step} steps, and was asked to end after "
            f"{run.total_steps}: raise num_epochs or num_train_steps, or choose another --workdir"
        )
    log(f"goes on from step {step} of {run.total_steps}")
    history = meta["history"]
    nonfinite = jnp.int32(history.pop("nonfinite", 0))  # Early checkpoints do not have it.
    kept = rest["opt_state"][-1]
    rest |= {
        "params": params,
        "opt_state": optax.tree.set(abstract.opt_state, count=kept.count, trace=kept.velocity),
        "nonfinite": jax.device_put(nonfinite, run.layout.replicated()),
    }
    return TrainState(**rest), history
