"""Opens a trained net: of a run, of a folder of weights, or one that comes with the package."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn

from alexnet_jax import models
from alexnet_jax.config import read_config
from alexnet_jax.errors import UserError, local_path, nearest, writing
from alexnet_jax.records import files, provenance
from alexnet_jax.trained import shipped
from alexnet_jax.trained.kept import describe, read_recipe, recipe_of
from alexnet_jax.trained.recipe import Recipe

WEIGHTS, DESCRIPTION = "weights.safetensors", "weights.json"  # in import_weights' --out


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """Holds a net with its weights; `model, params, preprocess = net` unpacks it.

    Attributes:
        model: the module; `model.apply({"params": params}, x, train=False)` returns logits and
            activations.
        params: the parameters, {layer: {'kernel', 'bias'}}.
        preprocess: a function `preprocess(image, views=1)` from a picture to the net's input,
            float32 [views, S, S, 3]: its centre, or 9 or 10 crops (see `data.plan.views`). The
            picture is a uint8 array [H, W, 3] of RGB values (of NumPy, JAX, PyTorch or TensorFlow),
            a PIL image, or the bytes of an image file. Only bytes give exactly the pixels of
            training and evaluation, because a large JPEG is shrunk while it is decoded. It raises
            UserError for other arrays, and decode.BadImage for bytes that are not an image.
        class_names: the name of each class, or () if they are not known.
        recipe: the numbers of `preprocess`.
    """

    model: nn.Module
    params: dict
    preprocess: Callable
    class_names: tuple[str, ...]
    recipe: Recipe

    def __iter__(self):
        return iter((self.model, self.params, self.preprocess))


def load(path: str | Path) -> Pretrained:
    """Opens a net that comes with the package, such as 'imagenette', or one of your own.

    Your own net is named by the directory of its run, of which the best weights are taken, or by
    the folder that `import_weights` or `export` wrote.

    `net.model.apply({"params": net.params}, net.preprocess(image))` returns logits [1, classes] and
    activations; `net.class_names` are the names of the logits.

    Raises:
        UserError: see `open_pretrained`.
    """
    return open_pretrained(path)


def open_pretrained(path: str | Path, step: int | None = None) -> Pretrained:
    """Opens the net of a run, of a folder of weights, or one that comes with the package.

    Args:
        path: the name or the place of the net (see `locate`).
        step: the step of the run's checkpoint; None for the best one.

    Raises:
        UserError: there is no such net, or it is damaged.
    """
    place = locate(path)
    if place.is_dir():
        return _open_run(place, step)
    if step is not None:
        raise UserError(f"'{path}' is no run: it has one state of its weights, and no step {step}")
    return _open_weights(place)


def locate(path: str | Path) -> Path:
    """Finds what a run or weights are called by.

    Args:
        path: a run's directory; the directory of an import or a file in it; or the name of a net
            that comes with the package, where there is neither of that name.

    Returns:
        The run's directory, or a .safetensors that has its description beside it.

    Raises:
        UserError: there is nothing of the kind.
    """
    path = local_path(path)
    if (path / "config.json").is_file():
        return path
    file = _weights_at(path)
    if file.is_file() and file.with_suffix(".json").is_file():
        return file
    if str(path) in shipped.names():
        return shipped.FOLDER / path / WEIGHTS
    if not path.exists():
        near = ""
        if path.parent == Path():  # it may be meant as a name
            near = f", nor a net of that name; {nearest(str(path), shipped.names())}"
        raise UserError(
            f"no run and no weights in '{path}': there is no such file or directory{near}"
        )
    raise _incomplete(path, file)


def _incomplete(path: Path, file: Path) -> UserError:
    """Returns the error for a path that is there, and of whose two files one or both are not."""
    beside = file.with_suffix(".json")
    again = "import the weights with python -m alexnet_jax.import_weights, and name its --out"
    if beside.is_file():
        return UserError(f"'{beside}' describes a net, and its {file.name} is not there: copy both")
    if file.is_file():
        return UserError(f"'{file}' has no {beside.name} beside it that describes the net: {again}")
    if path.is_dir():
        return UserError(f"no run and no weights in '{path}': no config.json and no {WEIGHTS}")
    return UserError(f"'{path}' is no run and no net that export or import_weights wrote: {again}")


def _weights_at(path: Path) -> Path:
    """Returns the .safetensors that a path names: in its folder, itself, or beside its .json."""
    if path.is_dir():
        return path / WEIGHTS
    if path.suffix in (".safetensors", ".json"):
        return path.with_suffix(".safetensors")
    # Not with_suffix: alexnet.pth is another net than alexnet.safetensors, and so is net.v2.
    return path.with_name(f"{path.name}.safetensors")


def _open_run(workdir: Path, step: int | None) -> Pretrained:
    from alexnet_jax import evaluate
    from alexnet_jax.assemble import make_model
    from alexnet_jax.records import restore  # Importing Orbax takes a second.

    kept = read_recipe(workdir)
    if kept is None:  # An early commit kept nothing: the data set has everything.
        run, params, _ = evaluate.load_run(workdir, step)
        recipe, class_names, model = recipe_of(run), run.data.class_names, run.model
        return Pretrained(model, _on_one_device(params), recipe, class_names, recipe)
    config, recipe, class_names = read_config(workdir), kept.recipe, kept.class_names
    model = make_model(config, len(class_names))
    abstract = _abstract(model, recipe.image_size)
    params, _ = restore.restore_params(workdir, abstract, "best" if step is None else step)
    return Pretrained(model, params, recipe, class_names, recipe)


def _abstract(model: nn.Module, image_size: int) -> dict:
    """Returns the shapes of the parameters, all on one device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def _on_one_device(params: dict) -> dict:
    return jax.device_put(jax.device_get(params), jax.local_devices()[0])


def write_weights(
    file: Path,
    net: Pretrained,
    name: str,
    fields: dict,
    source: dict,
    *,
    run: dict | None = None,
    half: bool = False,
) -> None:
    """Writes a net to `file`, a .safetensors file, and its description to the .json beside it.

    Each file appears complete or not at all, and the second refers to the first by its digest.

    Args:
        file: the .safetensors file to write.
        net: the net with its parameters, preprocessing and class names.
        name: the preset from which `models.create` made the model.
        fields: the fields that replaced those of the preset.
        source: the origin of the weights, for the .json file.
        run: the description of their run, for the .json file (see `net_folder`).
        half: whether to round the parameters to float16, which halves the file.

    Raises:
        UserError: a file cannot be written.
    """
    recipe = net.recipe
    tensors = {
        f"{layer}.{kind}": np.ascontiguousarray(array, np.float16 if half else None)
        for layer, arrays in net.params.items()
        for kind, array in jax.device_get(arrays).items()
    }
    mean, scale = (
        [float(str(x)) for x in array.ravel()[:3]] for array in (recipe.mean, recipe.scale)
    )
    if recipe.mean.ndim == 3:
        mean, tensors["mean"] = "an image, among the tensors", np.ascontiguousarray(recipe.mean)
    data = safetensors.numpy.save(tensors)
    meta = describe(recipe, net.class_names)
    description = {
        "model": {"name": name, **fields},
        "preprocess": {"channel_order": "rgb", "mean": mean, "scale": scale}
        | {key: meta[key] for key in ("mean_under_crop", "resize_size", "image_size")},
        "class_names": meta["class_names"],
        "source": source,
        "weights": {"file": file.name, "sha256": hashlib.sha256(data).hexdigest()},
        "versions": provenance.versions(),
    }
    if run is not None:
        description["run"] = run
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace(file, data)
    files.write_json(file.with_suffix(".json"), description)


def read_description(file: Path) -> dict:
    """Returns what stands in the .json beside a .safetensors."""
    return json.loads(file.with_suffix(".json").read_text("utf-8"))


def _open_weights(file: Path) -> Pretrained:
    beside = file.with_suffix(".json")
    try:
        description = read_description(file)
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != description["weights"]["sha256"]:
            raise ValueError(f"it is not the file that {beside.name} describes")
        tensors = safetensors.numpy.load(data)
        told = description["preprocess"]
        mean = tensors.pop("mean", told["mean"])
        recipe = Recipe(
            image_size=int(told["image_size"]),
            resize_size=int(told["resize_size"]),
            mean=np.asarray(mean, np.float32),
            mean_under_crop=bool(told["mean_under_crop"]),
            scale=np.asarray(told["scale"], np.float32),
        )
        try:
            recipe.check()
        except ValueError as error:
            raise ValueError(f"preprocess in {beside.name}: {error}") from None
        told = description["model"]
        if told["name"] == "alexnet_owt" and description["source"].get("program") == "torchvision":
            told = told | {"name": "torchvision"}  # Imports had another name for it before 0.1.
        model = models.create(**told)
        class_names = tuple(description["class_names"])
        if len(class_names) > model.num_classes:
            outputs = f"the net has {model.num_classes} outputs"
            raise ValueError(f"{beside.name} names {len(class_names)} classes, and {outputs}")
        params = {}
        for key, array in tensors.items():
            layer, kind = key.split(".")
            half = array.dtype == np.float16
            params.setdefault(layer, {})[kind] = array.astype(np.float32) if half else array
        if jax.tree.map(np.shape, params) != jax.tree.map(
            np.shape, _abstract(model, recipe.image_size)
        ):
            raise ValueError(f"{beside.name} describes another net")
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"'{file}' cannot be read: {' '.join(str(reason).split())}") from None
    return Pretrained(model, jax.device_put(params), recipe, class_names, recipe)
