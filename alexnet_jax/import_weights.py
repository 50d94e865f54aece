"""Imports the weights of another program for `classify`, `features`, `export` and `init_from`.

python -m alexnet_jax.import_weights --from=caffe|torchvision|cuda_convnet FILE --out=DIR
    [--mean=FILE]

It writes DIR/weights.safetensors and DIR/weights.json, which describes the net, the preprocessing
of its input, its classes and its origin. Code that the file may contain is never executed.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from absl import flags

from alexnet_jax import cli, console, models
from alexnet_jax.errors import UserError, choose, local_path, missing
from alexnet_jax.trained.pretrained import (
    DESCRIPTION,
    WEIGHTS,
    Pretrained,
    write_weights,
)
from alexnet_jax.trained.recipe import Recipe, check_levels
from alexnet_jax.weights import caffe, cuda_convnet, torchvision
from alexnet_jax.weights.net import Found, fit

READERS = {"caffe": caffe.read, "torchvision": torchvision.read, "cuda_convnet": cuda_convnet.read}


def import_weights(program: str, path: str | Path, out: str | Path, mean: str | None = None) -> str:
    """Reads the net in a file of another program and writes it to the directory `out`.

    Args:
        program: the program that wrote the file, a key of `READERS`.
        path: the file.
        out: the directory, which is made if it is missing. It may hold an import of the same file.
        mean: a file with the mean to subtract, instead of ImageNet's channel means: Caffe's
            .binaryproto, cuda-convnet's batches.meta, or .npy of [R, R, 3] or [3], RGB.

    Returns:
        A line that describes the net, and one about the channel means that it subtracts where
        `mean` is None and the program keeps its mean in another file.

    Raises:
        UserError: a file is missing, damaged, of another format or of another net; or `out`
            contains something else.
    """
    path, out = local_path(path), local_path(out)
    choose(program, READERS, "--from")
    _require_file(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _check_out(out, digest)
    found = READERS[program](path)
    recipe, found = _recipe(found, local_path(mean) if mean else None)
    try:
        name, fields, params = fit(found)
        _check_finite(params)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from None
    model = models.create(name, **fields)
    if model.num_classes < 2:
        raise UserError(f"'{path}': the net has one output, and an answer needs one for each class")
    net = Pretrained(model, params, recipe, found.class_names, recipe)
    source = {"program": program, "file": path.name, "sha256": digest}
    source["channel_order"] = found.channel_order
    write_weights(out / WEIGHTS, net, name, fields, source)
    count = sum(x.size for layer in params.values() for x in layer.values())
    said = f"{name}, {count:,} parameters, {model.num_classes} classes, {found.image_size} pixels"
    said += f"; {found.note}" if found.note else ""
    guess = {"caffe": caffe.MEAN, "cuda_convnet": cuda_convnet.MEAN}.get(program)
    if mean or not guess:
        return said
    whose = "ImageNet's channel means" if tuple(found.mean) == guess else "as the file says"
    numbers = ", ".join(f"{x:g}" for x in found.mean)
    return f"{said}\nmean: {numbers} (RGB), {whose}; --mean=FILE subtracts the net's own instead"


def _check_finite(params: dict) -> None:
    """Raises UserError if a weight is NaN or infinite: every answer of the net would be, too."""
    bad = [
        f"{count:,} in the {kind} of {layer}"
        for layer, arrays in params.items()
        for kind, array in arrays.items()
        if (count := np.count_nonzero(~np.isfinite(array)))
    ]
    if bad:
        raise UserError(
            f"it has weights that are NaN or infinite ({', '.join(bad)}): the training diverged, "
            "or the file is damaged"
        )


def _recipe(found: Found, mean_file: Path | None) -> tuple[Recipe, Found]:
    mean = np.asarray(found.mean, np.float32)
    if mean_file:
        mean, class_names = _read_mean(mean_file)
        outputs = found.layers[-1].bias.shape[-1]
        if class_names and len(class_names) != outputs:
            raise UserError(
                f"'{mean_file}' names {len(class_names)} classes, and the net has {outputs}: "
                "give the mean of the data that the net was trained on"
            )
        found = dataclasses.replace(found, class_names=class_names or found.class_names)
        if mean.shape[-1:] != (3,) or mean.ndim not in (1, 3):
            raise UserError(f"'{mean_file}' has a mean of shape {mean.shape}, not [R, R, 3] or [3]")
        if mean.ndim == 3:
            if mean.shape[0] != mean.shape[1] or len(mean) < found.image_size:
                raise UserError(
                    f"'{mean_file}' has a mean image of {mean.shape[0]} x {mean.shape[1]} pixels: "
                    f"the net needs a square of {found.image_size} or more"
                )
            found = dataclasses.replace(found, resize_size=len(mean))
        try:
            check_levels(mean)
        except ValueError as error:
            raise UserError(f"'{mean_file}': {error}") from None
    recipe = Recipe(
        image_size=found.image_size,
        resize_size=found.resize_size,
        mean=mean,
        mean_under_crop=found.mean_under_crop,
        scale=np.asarray(found.scale, np.float32),
    )
    return recipe, found


def _read_mean(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    _require_file(path)
    if path.suffix == ".binaryproto":
        return caffe.read_mean(path), ()
    if path.suffix != ".npy":
        return cuda_convnet.read_mean(path)
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32), ()
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"'{path}' does not hold an array of numbers: {error}") from None


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise missing(path)


def _check_out(out: Path, digest: str) -> None:
    """Raises UserError unless `out` is new, empty, or holds an import of the same file."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out={out} is a file: name a directory")
    try:
        same = json.loads((out / DESCRIPTION).read_text())["source"]["sha256"] == digest
    except (OSError, ValueError, KeyError, TypeError):
        same = not any(out.iterdir())
    if not same:
        raise UserError(f"--out={out} contains something else: name another directory")


def main(files):
    """Imports the file and prints a line about its net."""
    if len(files) != 1:
        raise UserError(f"name one file to import after the options, not {len(files)}")
    given = flags.FLAGS
    said = import_weights(given["from"].value, files[0], given.out, given.mean)
    console.say(f"weights: {given.out}  {said}")
    console.say(f"try: python -m alexnet_jax.classify --weights={given.out} IMAGE")


if __name__ == "__main__":
    flags.DEFINE_enum("from", None, list(READERS), "The program that wrote the file.")
    cli.define_path("out", None, "The directory to write.")
    cli.define_path(
        "mean", None, "A file with the mean to subtract: .binaryproto, batches.meta or .npy (RGB)."
    )
    cli.run(main, takes_files=True, required=("from", "out"))
