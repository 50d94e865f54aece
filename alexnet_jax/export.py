"""Exports a net for programs that do not use this package.

python -m alexnet_jax.export [--workdir=RUN [--step=N] | --weights=NAME|DIR]
    --to=stablehlo|safetensors|torchvision|net --out=FILE [--input=uint8|float32]

stablehlo    writes a serialised `jax.export` function that includes the weights and takes any
             batch size, on CPUs and NVIDIA GPUs. jax.export.deserialize(bytes).call(images) gives
             the logits of uint8 pictures [N, R, R, 3], and does the preprocessing itself; with
             --input=float32 it takes images as `preprocess` makes them.
safetensors  writes the weights under this package's names, with a .json file beside them that
             describes the net; --weights can read it again.
torchvision  writes the state dict of torchvision's AlexNet, in PyTorch's format (.pth, which needs
             PyTorch) or as safetensors (.safetensors).
net          writes a folder like those of the nets that come with this package: the weights of a
             run in float16, everything that `classify`, `evaluate` and a run that starts from it
             need, its errors and what produced them; --weights can read it.

The nets of the last two formats take images as `preprocess` makes them. The last line that is
printed describes the input. ONNX is not offered: jax2onnx 0.17.1 converts these nets into max
pooling that ONNX Runtime refuses ("Unsupported pooling size"), and cannot convert the untied layers
for a batch of any size.
"""

import dataclasses
import importlib.util
import io
from pathlib import Path

import jax
import safetensors.numpy
from absl import flags
from jax import export as jax_export

from alexnet_jax import cli, console, models
from alexnet_jax.config import read_config
from alexnet_jax.errors import UserError, choose, local_path, writing
from alexnet_jax.models import AlexNet
from alexnet_jax.models.presets import OWT
from alexnet_jax.records import files
from alexnet_jax.trained import net_folder, pictures
from alexnet_jax.trained.pretrained import (
    WEIGHTS,
    Pretrained,
    locate,
    open_pretrained,
    read_description,
    write_weights,
)
from alexnet_jax.trained.recipe import Recipe
from alexnet_jax.weights import torchvision

INPUTS = ("uint8", "float32")
FORMATS = ("stablehlo", "safetensors", "torchvision", "net")
PLATFORMS = ("cpu", "cuda")


def export(
    path: str | Path,
    to: str,
    out: str | Path,
    given: str | None = None,
    step: int | None = None,
) -> str:
    """Writes the net at `path` to the file `out` in the format `to`.

    Args:
        path: a run's directory or weights, as `open_pretrained` takes them.
        to: one of `FORMATS`.
        out: the file to write, or for "net" the folder. Beside safetensors, a .json file of the
            same name is written.
        given: the input of a StableHLO function, one of `INPUTS`; None for the first of them.
        step: the step of a run's checkpoint; None for the best one.

    Returns:
        A line that describes the input of the exported net.

    Raises:
        UserError: `open_pretrained` raises it; the format cannot hold the net; or `out` is not
            writable or does not have the suffix of the format.
    """
    choose(to, FORMATS, "--to")
    if given is not None and to != "stablehlo":
        raise UserError(f"--input={given} is for --to=stablehlo: {to} holds only weights")
    given = choose(given or INPUTS[0], INPUTS, "--input")
    out = local_path(out)
    net = open_pretrained(path, step)
    if to == "stablehlo":
        _write(out, stablehlo(net, given))
        if given == "uint8":
            return picture_line(net.recipe)
    elif to == "safetensors":
        _require_suffix(out, to, ".safetensors")
        refuse_own_functions(net.model, to)
        _check_beside(out)
        name, fields = _description(net.model, locate(path))
        write_weights(out, net, name, fields, {"exported_from": str(path)})
    elif to == "net":
        refuse_own_functions(net.model, to)
        _write_folder(out, locate(path), net, step)
    else:
        _require_suffix(out, to, ".pth", ".safetensors")
        refuse_own_functions(net.model, to)
        _check_torchvision(net)
        tensors = torchvision.to_torchvision(net.params)
        _write(out, _pth(tensors) if out.suffix == ".pth" else safetensors.numpy.save(tensors))
    return input_line(net.recipe)


def _write_folder(out: Path, workdir: Path, net: Pretrained, step: int | None) -> None:
    if not workdir.is_dir():
        raise UserError(f"--to=net is for runs: '{workdir}' is weights already")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: --to=net writes a folder")
    if (out / "config.json").exists():
        raise UserError(
            f"--out={out} holds a run's config.json, and commands would read that instead of the "
            "net: name another folder"
        )
    _check_beside(out / WEIGHTS)
    run = net_folder.describe_run(workdir, step)
    source = {"exported_from": workdir.name, "step": run["result"]["step"]}
    name, fields = _description(net.model, workdir)
    write_weights(out / WEIGHTS, net, name, fields, source, run=run, half=True)


def _check_beside(file: Path) -> None:
    """Raises UserError if the .json beside a .safetensors is there, and describes no net."""
    beside = file.with_suffix(".json")
    if not beside.exists():
        return
    try:
        known = {"model", "weights"} <= read_description(file).keys()
    except (OSError, ValueError, AttributeError):
        known = False
    if not known:
        raise UserError(
            f"'{beside}' is there and describes no net, and the description of this one would "
            "replace it: name another --out"
        )


def stablehlo(net: Pretrained, given: str) -> bytes:
    """Returns the net as a serialised function from images to logits [N, classes], for any N.

    If `given` is "uint8", the function takes pictures [N, R, R, 3]. If it is "float32", it takes
    images [N, S, S, 3] as `preprocess` makes them.
    """
    recipe = net.recipe
    model = net.model.clone(fused_kernel=False)  # Pallas knows no batch of any size.

    def logits(images):
        if given == "uint8":
            images = recipe.of_squares(images)
        return model.apply({"params": net.params}, images)[0]

    size = recipe.resize_size if given == "uint8" else recipe.image_size
    shape = jax_export.symbolic_shape(f"n, {size}, {size}, 3")
    images = jax.ShapeDtypeStruct(shape, given)
    exported = jax_export.export(jax.jit(logits), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


def refuse_own_functions(model: AlexNet, to: str) -> None:
    """Checks that a format which holds only weights can describe the net.

    Raises:
        UserError: A row of the net's table carries its own function, which the line names.
    """
    own = [
        f"{entry.name} after {row.name}"
        for row in model.layers
        for entry in row.then
        if isinstance(entry, models.Stateless)
    ]
    if own:
        raise UserError(
            f"--to={to} cannot hold the table's own functions ({', '.join(own)}): "
            "--to=stablehlo takes any net"
        )


def _description(model: AlexNet, place: Path) -> tuple[str, dict]:
    """Returns the preset with the model's layers, and the fields that `models.create` also needs.

    They are those that differ from the preset's, and the module that adds the preset, which the
    run or the weights at `place` name.
    """
    name = next(
        n for n, preset in models.PRESETS.items() if preset.fields["layers"] == model.layers
    )
    preset = models.create(name)
    fields = [field.name for field in dataclasses.fields(model)]
    own = {n: getattr(model, n) for n in fields if n not in ("parent", "name", "placement")}
    fields = {n: value for n, value in own.items() if getattr(preset, n) != value}
    module = (
        read_config(place).model.module
        if place.is_dir()
        else read_description(place)["model"].get("module")
    )
    return name, fields | ({"module": module} if module else {})


def _check_torchvision(net: Pretrained) -> None:
    """Raises UserError unless the net is torchvision's AlexNet, up to its width."""
    model = net.model
    wanted = {
        "layers": OWT,
        "towers": 1,
        "lrn": False,
        "skip": (),
        "activation": "relu",
        "pooling": "max",
        "pool_window": 3,
        "pool_stride": 2,
        "pool_overhang": False,
        "conv1_kernel": None,
        "conv1_stride": None,
        "conv1_padding": None,
    }
    wrong = [name for name, value in wanted.items() if getattr(model, name) != value]
    if model.dropout and not model.inverted_dropout:
        wrong.append("inverted_dropout")
    if wrong:
        raise UserError(
            f"torchvision's AlexNet cannot hold this net, for its {', '.join(wrong)}: it is "
            "model.name=torchvision; --to=stablehlo takes any net"
        )
    maps, inputs = net.params["conv5"]["bias"].shape[-1], net.params["fc6"]["kernel"].shape[0]
    side = torchvision.POOLED
    if inputs != maps * side**2:
        raise UserError(
            f"torchvision's AlexNet reads {side} x {side} pixels of each map in fc6, and this net "
            f"{inputs // maps} in all: train it at 224 pixels, not {net.recipe.image_size}"
        )


def _pth(tensors: dict) -> bytes:
    if importlib.util.find_spec("torch") is None:
        raise UserError("a .pth file needs PyTorch: pip install torch, or name a .safetensors file")
    import torch

    file = io.BytesIO()
    torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, file)
    return file.getvalue()


def _require_suffix(out: Path, to: str, *suffixes: str) -> None:
    if out.suffix not in suffixes:
        raise UserError(
            f"--out={out}: --to={to} writes a file that ends in {' or '.join(suffixes)}"
        )


def _write(out: Path, data: bytes) -> None:
    with writing(out):
        files.replace(out, data)


def picture_line(recipe: Recipe) -> str:
    """Returns a line about the input of a function that does the preprocessing itself."""
    size = recipe.resize_size
    return (
        f"input: uint8 [N, {size}, {size}, 3], RGB: each picture's central square, its shorter "
        f"side resized to {size} with antialiasing; mean, crop and scale are inside"
    )


def input_line(recipe: Recipe) -> str:
    """Returns a line about the input of a net without preprocessing, and how to make it."""
    size, mean = recipe.image_size, "the mean image"
    if recipe.mean.ndim == 1:
        mean = ", ".join(f"{x:g}" for x in recipe.mean)
    factors = ", ".join(f"{x:g}" for x in dict.fromkeys(recipe.scale.tolist()))
    return (
        f"input: float32 [N, {size}, {size}, 3], RGB grey levels 0..255 of the centre of a picture "
        f"resized to {recipe.resize_size}, minus {mean}, times {factors}"
    )


def main(_):
    """Exports the net that the flags name."""
    given = flags.FLAGS
    said = export(pictures.net_path(), given.to, given.out, given.input, given.step)
    written = local_path(given.out)
    written = written / WEIGHTS if given.to == "net" else written
    console.say(f"exported: {written}  {written.stat().st_size:,} bytes")
    console.say(said)


if __name__ == "__main__":
    pictures.define_flags()
    flags.DEFINE_enum("to", None, FORMATS, "The format.")
    cli.define_path("out", None, "The file to write; with --to=net the folder.")
    flags.DEFINE_integer("step", None, "The checkpoint of the run; the best one if not given.")
    flags.DEFINE_enum("input", None, INPUTS, "Input of a stablehlo function; uint8 if not given.")
    cli.run(main, required=("to", "out"))
