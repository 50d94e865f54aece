"""Reads and writes recipe.npz, in which a run keeps what its net needs of the data set.

For a folder of images, evaluation_files.txt lists the files on which the run is evaluated.
"""

import dataclasses
import sys
import zlib
from pathlib import Path

import numpy as np

from alexnet_jax.data import cache
from alexnet_jax.data.identity import Identity, normal_name
from alexnet_jax.errors import writing
from alexnet_jax.preprocess import Preprocess
from alexnet_jax.records import files
from alexnet_jax.trained.recipe import Recipe

RECIPE, EVALUATED = "recipe.npz", "evaluation_files.txt"


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Holds what a run keeps of its data set.

    Attributes:
        recipe: the preprocessing of an image, with the mean of the training split.
        class_names: the names of the classes, in the order of the net's outputs.
        train: the identity of the training split; None in a run of an early commit.
        evaluation: the identity of the evaluation split; None in a run of an early commit.
    """

    recipe: Recipe
    class_names: tuple[str, ...]
    train: Identity | None
    evaluation: Identity | None


def kept_of(run) -> Kept:
    """Returns what `run` has to keep; its splits must be open."""
    spec = run.data.spec
    return Kept(
        recipe=recipe_of(run),
        class_names=run.data.class_names,
        train=run.data.identity(spec.train_split),
        evaluation=run.data.identity(spec.eval_split),
    )


def write_recipe(workdir: Path, kept: Kept) -> None:
    """Writes what the net of a run needs of its data set into the run's directory.

    Raises:
        UserError: the file cannot be written.
    """
    arrays = {"mean": kept.recipe.mean, "scale": kept.recipe.scale}
    meta = describe(kept.recipe, kept.class_names)
    for name, split in (("train", kept.train), ("evaluation", kept.evaluation)):
        if split is not None:
            fields = dataclasses.asdict(split)
            text = "\n".join(fields.pop("files")).encode("utf-8", "surrogateescape")
            arrays[f"{name}_files"] = np.frombuffer(zlib.compress(text, 1), np.uint8)
            meta[name] = fields
    with writing(workdir / RECIPE):
        cache.store(workdir / RECIPE, arrays, meta)
    if kept.evaluation and kept.evaluation.files:
        lines = (line.partition("\0")[0] + "\n" for line in kept.evaluation.files)
        with writing(workdir / EVALUATED):
            files.replace(workdir / EVALUATED, "".join(lines).encode("utf-8", "surrogateescape"))


def read_recipe(workdir: Path) -> Kept | None:
    """Returns what the run in `workdir` kept, or None if the file is missing or damaged.

    Runs of early commits have no such file. A damaged file is reported on stderr.
    """
    path = Path(workdir) / RECIPE
    try:
        arrays, meta = cache.read(path)
        splits = dict.fromkeys(("train", "evaluation"))
        for name in splits.keys() & meta.keys():
            text = zlib.decompress(arrays[f"{name}_files"].tobytes())
            lines = tuple(text.decode("utf-8", "surrogateescape").split("\n")) if text else ()
            class_names = tuple(meta[name].pop("class_names"))
            splits[name] = Identity(**meta[name], class_names=class_names, files=lines)
        recipe = Recipe(
            image_size=meta["image_size"],
            resize_size=meta["resize_size"],
            mean=arrays["mean"],
            mean_under_crop=meta["mean_under_crop"],
            scale=arrays["scale"],
        )
        return Kept(recipe, tuple(map(normal_name, meta["class_names"])), **splits)
    except (TypeError, KeyError, AttributeError, ValueError, zlib.error):
        if path.exists():
            line = f"warning: '{path}' is damaged: mean and classes are taken from the data set"
            print(line, file=sys.stderr)
        return None


def recipe_of(run) -> Recipe:
    """Returns the recipe by which `run` makes its net's input."""
    prep: Preprocess = run.preprocess
    return Recipe(
        image_size=run.config.data.image_size,
        resize_size=run.data.resize_size,
        mean=np.asarray(prep.mean, np.float32),
        mean_under_crop=prep.mean_under_crop,
        scale=np.full(3, prep.scale, np.float32),
    )


def describe(recipe: Recipe, class_names: tuple[str, ...]) -> dict:
    """Returns the JSON object of a recipe and its classes, without the recipe's arrays."""
    return {
        "image_size": recipe.image_size,
        "resize_size": recipe.resize_size,
        "mean_under_crop": recipe.mean_under_crop,
        "class_names": list(class_names),
    }
