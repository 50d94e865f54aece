"""Writes result.json, the result of a finished run, and prints a summary of it."""

import json
from pathlib import Path

from alexnet_jax import console
from alexnet_jax.assemble import Run
from alexnet_jax.records import files, restore

NAME = "result.json"


def final_step(workdir: Path) -> int | None:
    """Returns the last step of the finished run in `workdir`, or None if there is none."""
    try:
        return json.loads((workdir / NAME).read_text())["final"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def set_aside(workdir: Path) -> None:
    """Renames the result of an earlier, shorter length, which isn't that of the run any more."""
    if (step := final_step(workdir)) is not None:
        earlier = workdir / f"result-{step}.json"
        (workdir / NAME).replace(earlier)
        console.say(f"the result of the {step} steps that the run had is now {earlier}")


def write(run: Run, workdir: Path, history: dict, measured: dict, produced: dict) -> None:
    """Writes result.json, and prints the errors and what was left out.

    Args:
        run: the run.
        workdir: its directory.
        history: its 'last' and 'best' evaluation, each with its 'step' and 'epoch'.
        measured: 'images_per_second' and 'skipped_steps'.
        produced: see `provenance.collect`.

    Raises:
        UserError: the file cannot be written.
    """
    final, best, taken = history["last"], history["best"], restore.best_step(workdir)
    kept = taken == best["step"]
    for split, bad in sorted(run.data.bad.items()):
        for _, reason in sorted(bad.items()):
            console.say(f"image of {split} left out: {reason}")
    if measured["skipped_steps"]:
        console.say(f"steps left out as not finite: {measured['skipped_steps']}")
    for name, value in (("final", final), ("best", best)):
        errors = console.errors(value, run.model.num_classes)
        console.say(f"{name}: step {value['step']}  {run.eval_split_name} {errors}")
    if not kept:
        instead = "none is saved" if taken is None else f"evaluate and classify take step {taken}"
        console.say(f"no checkpoint of step {best['step']} is kept as the best: {instead}")
    result = {
        "final": final,
        "best": best | {"kept": kept},
        "epochs": final["step"] / run.steps_per_epoch,
        **measured,
        "bad_images": {split: len(bad) for split, bad in sorted(run.data.bad.items())},
        "seed": run.config.seed,
        **produced,
    }
    files.write_json(workdir / NAME, result)
    console.say(f"result: {workdir / NAME}")
