"""The training state in the form that checkpoints have had since the first.

The optimizer's chain may change without a change to the files: they keep its counter and its
velocity by these names, whatever it calls them.
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
    """What a checkpoint keeps of the optimizer: updates made (int32), and the velocity."""

    count: jax.Array
    velocity: optax.Params


def to_saved(state: TrainState) -> dict:
    """Returns what a checkpoint keeps beside the parameters.

    `nonfinite` is not in it: it is younger than the form, and stands in the checkpoint's meta.
    """
    rest = {name: x for name, x in vars(state).items() if name not in ("params", "nonfinite")}
    count, velocity = (optax.tree.get(state.opt_state, name) for name in ("count", "trace"))
    middle = state.opt_state[1:-1]  # of LARS, without arrays
    opt_state = (optax.EmptyState(), *middle, VelocityState(count, velocity))
    return rest | {"params": {}, "opt_state": opt_state}


def restore_latest(
    run: Run, saved: checkpoint.Checkpoints, workdir: Path, log: checkpoint.Log
) -> tuple[TrainState, dict] | None:
    """Restores the newest whole checkpoint of a run.

    Args:
        run: the run.
        saved: its checkpoints.
        workdir: its directory.
        log: called with each line to say.

    Returns:
        The state to go on from, and the history: the 'last' and the 'best' evaluation before it.
        None where nothing was ever saved.

    Raises:
        UserError: see `checkpoint.verify`; the run has made more steps than were asked for, or has
            ended and its checkpoints are gone.
    """
    abstract = run.abstract_state()
    restored = checkpoint.restore_latest(saved, abstract.params, to_saved(abstract), log)
    if restored is None:
        if result.final_step(workdir) is not None:
            raise UserError(
                f"'{workdir}' holds the result of a run and no checkpoint of it: choose another "
                "--workdir, or move its result.json away to train anew"
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
    nonfinite = jnp.int32(history.pop("nonfinite", 0))  # earlier checkpoints lack it
    kept = rest["opt_state"][-1]
    rest |= {
        "params": params,
        "opt_state": optax.tree.set(abstract.opt_state, count=kept.count, trace=kept.velocity),
        "nonfinite": jax.device_put(nonfinite, run.layout.replicated()),
    }
    return TrainState(**rest), history
