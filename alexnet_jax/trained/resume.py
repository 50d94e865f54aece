"""Checks that a resumed run reads the data that it was started with."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from alexnet_jax import data
from alexnet_jax.assemble import Run
from alexnet_jax.config import Config, flatten, is_folder, read_config
from alexnet_jax.data.identity import Identity, differences
from alexnet_jax.data.sources import OtherClasses, plain_name
from alexnet_jax.errors import UserError
from alexnet_jax.trained.kept import Kept, kept_of, read_recipe

# Runs of early commits kept no fingerprint of their data. The means of the same images differ by
# less than this, in grey levels, between versions of the decoder.
_SAME_MEAN = 0.1


def open_data(config: Config, workdir: Path, progress: data.Progress) -> data.Data:
    """Opens the data of `config`, with the classes in the order of the run in `workdir`, if any.

    Args:
        config: the configuration of the run that starts or is resumed.
        workdir: the run's directory, which may be missing.
        progress: a function that is called with (what, done, total) during long tasks.

    Raises:
        UserError: `data.open_data` raises it, or the data have classes that the run does not have.
    """
    spec, class_names = config.data, None
    if (workdir / "config.json").exists() and (kept := read_recipe(workdir)):
        old = read_config(workdir).data
        known = (plain_name(old.name), old.train_split) == (plain_name(spec.name), spec.train_split)
        if known or (is_folder(old.name) and is_folder(spec.name)):
            class_names = kept.class_names
    progress(f"opening {config.data.name}", 0, 0)
    try:
        return data.open_data(spec, class_names=class_names, progress=progress)
    except OtherClasses as error:
        if class_names is None:
            raise
        raise _other_data(workdir, str(error)) from None


def check_same_data(workdir: Path, run: Run) -> Kept:
    """Compares the data of `run` with those of the run in `workdir`, if there is one.

    Returns:
        What the run keeps of its data from now on: what it kept before, and what is newly known.

    Raises:
        UserError: the data differ; the line says how.
    """
    now = kept_of(run)
    if not (workdir / "config.json").exists():
        return now
    kept, old_name = read_recipe(workdir), read_config(workdir).data.name
    if kept is None:
        if plain_name(old_name) != run.data.spec.name:
            reason = f"they were {old_name!r} and are now {run.data.spec.name!r}"
            raise _other_data(workdir, reason)
        return now
    pairs = (kept.train, now.train), (kept.evaluation, now.evaluation)
    found = [f"split {new.split!r}: {what}" for old, new in pairs if (what := _changes(old, new))]
    if not found and kept.class_names != now.class_names:
        found.append(f"its classes were {', '.join(kept.class_names)}")
    if not found and not (kept.train and kept.train.contents and now.train.contents):
        far = float(np.abs(kept.recipe.mean - now.recipe.mean).max())
        if not far <= _SAME_MEAN:
            found.append(f"the mean of its training images differs by {far:.2g} grey levels")
    if found:
        raise _other_data(workdir, ". ".join(found))
    return replace(kept, train=_joined(*pairs[0]), evaluation=_joined(*pairs[1]))


def as_read_here(config: Config, run: Run, kept: Kept) -> str:
    """Returns what the processes of a run must have alike: its fields, its data and their reader.

    Each process chooses by its own memory what data.backend='auto' stands for, and may have a copy
    of the data of its own; where these differ, one process would wait for ever for another.
    """
    data_here = [kept.train.fingerprint, kept.evaluation.fingerprint]
    fields = flatten(config) | {"data.backend": run.data.spec.backend, "data.data_dir": data_here}
    return repr(sorted(fields.items()))


def _changes(then: Identity | None, now: Identity) -> str:
    return differences(then, now) if then else ""


def _joined(then: Identity | None, now: Identity) -> Identity:
    return replace(then, contents=then.contents or now.contents) if then else now


def _other_data(workdir: Path, reason: str) -> UserError:
    return UserError(
        f"'{workdir}' holds a run on other data: {reason}. Restore the previous data, or choose "
        "another --workdir"
    )
