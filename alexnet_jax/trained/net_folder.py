"""Describes a net that is stored in a folder without its run, with weights in float16.

The folder has the files of imported weights, `weights.safetensors` and `weights.json`. A section
`run` of the latter describes the run: its configuration, its data, its errors, and what produced
them.
"""

import dataclasses
import json
import shlex
from pathlib import Path

from alexnet_jax.config import Config, from_dict, read_config, to_dict
from alexnet_jax.data.identity import Identity
from alexnet_jax.errors import UserError
from alexnet_jax.trained.kept import Kept, read_recipe
from alexnet_jax.trained.pretrained import locate, open_pretrained, read_description

# Flags that name places on the machine of the run, which others do not need.
_PLACES = ("--workdir", "--config.data.data_dir", "--config.data.copies")


def describe_run(workdir: Path, step: int | None = None) -> dict:
    """Returns the description of the run in `workdir` for weights.json.

    Args:
        workdir: the directory of a run that has ended.
        step: the step of the checkpoint, which is the last or the best one; None for the one that
            `open_pretrained` takes, the best of those that are saved.

    Raises:
        UserError: the run has not ended, kept nothing of its data, or kept no error of that step.
    """
    from alexnet_jax.records import restore  # Importing Orbax takes a second.

    kept = read_recipe(workdir)
    # Not the best step of result.json, of which no checkpoint may have been saved.
    step = restore.best_step(workdir) if step is None else step
    try:
        result = json.loads((workdir / "result.json").read_text("utf-8"))
        known = {result[which]["step"]: result[which] for which in ("final", "best")}
        errors = known.get(step)
    except FileNotFoundError:
        raise UserError(f"the run in '{workdir}' has not ended: it has no result.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{workdir / 'result.json'}' cannot be read: {error}") from None
    if errors is None:
        saved = " and ".join(str(each) for each in restore.steps(workdir) if each in known)
        others = f"but of {saved}: choose one with --step" if saved else "nor of any that is saved"
        raise UserError(f"'{workdir}' kept no error of step {step}, {others}")
    if kept is None or kept.train is None or kept.evaluation is None:
        raise UserError(
            f"'{workdir}' is a run of an earlier commit, which kept too little of its data"
        )
    config = read_config(workdir)
    places = dataclasses.replace(config.data, data_dir="", copies="")
    return {
        "result": {"split": config.data.eval_split}
        | {key: value for key, value in errors.items() if key != "kept"},
        "command": _without_places(result["command"]),
        **{key: result[key] for key in ("seed", "commit", "date", "hardware", "versions")},
        "data": {
            "train": _without_files(kept.train),
            "evaluation": _without_files(kept.evaluation),
        },
        "config": to_dict(dataclasses.replace(config, data=places)),
    }


def _without_places(command: str) -> str:
    """Returns a command without the flags of `_PLACES`, written --FLAG=VALUE or --FLAG VALUE."""
    kept, words = [], iter(shlex.split(command))
    for word in words:
        if word in _PLACES:
            next(words, None)
        elif word.partition("=")[0] not in _PLACES:
            kept.append(word)
    return shlex.join(kept)


def _without_files(split: Identity) -> dict:
    """Returns the identity of a split without the names of its files, which may be private."""
    return dataclasses.asdict(dataclasses.replace(split, files=()))


def read_trained(path: str | Path) -> tuple[Config, Kept | None]:
    """Returns the configuration of a run, or of a net from a run, and what was kept of its data.

    Args:
        path: the name or the place of the net (see `pretrained.locate`).

    Raises:
        UserError: `pretrained.locate` raises it, or the net was imported or is damaged.
    """
    place = locate(path)
    if place.is_dir():
        return read_config(place), read_recipe(place)
    net, where = open_pretrained(place), f"'{place.with_suffix('.json')}'"
    run = read_description(place).get("run")
    if run is None:
        raise UserError(f"'{place}' was not trained here: {where} says nothing of its data")
    try:
        splits = [_split(run["data"][name]) for name in ("train", "evaluation")]
        return from_dict(run["config"], where), Kept(net.recipe, net.class_names, *splits)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where} cannot be read: {error!r}") from None


def step_of(file: Path) -> int:
    """Returns the step of the checkpoint from which a net was made."""
    return int(read_description(file)["run"]["result"]["step"])


def _split(told: dict) -> Identity:
    lists = {name: tuple(told[name]) for name in ("class_names", "files")}
    return Identity(**told | lists)
