"""A trained net, ready to use: from a run's directory, or from what `import_weights` wrote."""

import dataclasses
import hashlib
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn
from PIL import Image

from alexnet_jax import models
from alexnet_jax.config import read_config
from alexnet_jax.data import cache, decode
from alexnet_jax.data.identity import Identity, normal_name
from alexnet_jax.data.plan import views as crops_of
from alexnet_jax.errors import UserError, local_path, writing
from alexnet_jax.preprocess import Preprocess
from alexnet_jax.records import files, provenance

RECIPE = "recipe.npz"  # in a run's directory, since it was begun
WEIGHTS, DESCRIPTION = "weights.safetensors", "weights.json"  # in import_weights' --out


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """How a picture becomes the net's input; in grey levels 0..255, RGB.

    image_size: side S of the net's input, in pixels.
    resize_size: side R of the square that it is cut from.
    mean: subtracted; float32 [R, R, 3], or [3] for each channel.
    mean_under_crop: subtract the part of a mean image under each crop, else its centre.
    scale: factor on what is left; float32 [3].
    """

    image_size: int
    resize_size: int
    mean: np.ndarray
    mean_under_crop: bool
    scale: np.ndarray

    def __call__(self, image, views: int = 1) -> np.ndarray:
        """The net's input of a picture; see `Pretrained.preprocess`."""
        square = _square(image, self.resize_size)
        crops = []
        for y, x, flipped in crops_of(views, self.resize_size - self.image_size):
            crop = self._cut(square, y, x).astype(np.float32)
            crop = crop[:, ::-1] if flipped else crop
            crops.append((crop - self._mean(y, x, flipped)) * self.scale)
        return np.stack(crops)

    def of_squares(self, squares):
        """The net's input of uint8 [N, R, R, 3], their centres; JAX can trace it."""
        ((y, x, _),) = crops_of(1, self.resize_size - self.image_size)
        crop = squares[:, y : y + self.image_size, x : x + self.image_size]
        return (crop.astype(np.float32) - self._mean(y, x, 0)) * self.scale

    def _cut(self, square: np.ndarray, y: int, x: int) -> np.ndarray:
        return square[y : y + self.image_size, x : x + self.image_size]

    def _mean(self, y: int, x: int, flipped: int) -> np.ndarray:
        if self.mean.ndim == 1:
            return self.mean
        if not self.mean_under_crop:
            y = x = (self.resize_size - self.image_size) // 2
            return self._cut(self.mean, y, x)
        mean = self._cut(self.mean, y, x)
        return mean[:, ::-1] if flipped else mean


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A net with its weights; `model, params, preprocess = net` takes it apart.

    model: `model.apply({"params": params}, x, train=False)` gives logits and activations.
    params: {layer: {'kernel', 'bias'}}, arrays.
    preprocess: `preprocess(image, views=1)` gives the net's input of a picture, float32
        [views, S, S, 3]: its centre, or 9 or 10 crops (see `data.plan.views`). The picture is
        uint8 [H, W, 3] RGB of any size (NumPy's, JAX's, PyTorch's or TensorFlow's), a PIL image, or
        the bytes of an image file, which gives exactly the pixels of training and evaluation: a
        large JPEG is shrunk as it is decoded. Raises UserError for another array, and
        decode.BadImage for bytes that are no image.
    class_names: one for each class, or () where they are not known.
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
    """The net of a run's directory or of `import_weights --out`, with its best weights.

    `net.model.apply({"params": net.params}, net.preprocess(image))` gives logits [1, classes] and
    activations; `net.class_names` says what the logits stand for. Raises UserError: see
    `open_pretrained`.
    """
    return open_pretrained(path)


def open_pretrained(path: str | Path, step: int | None = None) -> Pretrained:
    """The net of a run's directory, or of an import: its directory, or a file in it.

    Args:
        step: the checkpoint of the run; the best one if not given.

    Raises:
        UserError: there is nothing of the kind, or it is damaged.
    """
    path = local_path(path)
    if (path / "config.json").is_file():
        return _open_run(path, step)
    file = path / WEIGHTS if path.is_dir() else path.with_suffix(".safetensors")
    if file.is_file() and file.with_suffix(".json").is_file():
        return _open_weights(file)
    if not path.exists():
        raise UserError(f"no run and no weights in '{path}': there is no such file or directory")
    if path.is_dir():
        raise UserError(f"no run and no weights in '{path}': no config.json and no {WEIGHTS}")
    raise UserError(
        f"'{path}' has no {file.stem}.json beside it that says what net it is: bring weights in "
        "with python -m alexnet_jax.import_weights, and name its --out"
    )


# Of a run


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """What a run keeps of its data set.

    recipe: with the mean of its training split.
    class_names: in the order of its outputs.
    train, evaluation: what its splits were; None of a run of an earlier commit.
    """

    recipe: Recipe
    class_names: tuple[str, ...]
    train: Identity | None
    evaluation: Identity | None


def kept_of(run) -> Kept:
    """Returns what `run`, whose splits have been opened, has to keep."""
    spec = run.data.spec
    return Kept(
        recipe=recipe_of(run),
        class_names=run.data.class_names,
        train=run.data.identity(spec.train_split),
        evaluation=run.data.identity(spec.eval_split),
    )


def write_recipe(workdir: Path, kept: Kept) -> None:
    """Keeps in `workdir` what the net of a run needs of its data set.

    Raises:
        UserError: it cannot be written.
    """
    arrays = {"mean": kept.recipe.mean, "scale": kept.recipe.scale}
    meta = _meta(kept.recipe, kept.class_names)
    for name, split in (("train", kept.train), ("evaluation", kept.evaluation)):
        if split is not None:
            fields = dataclasses.asdict(split)
            files = "\n".join(fields.pop("files")).encode("utf-8", "surrogateescape")
            arrays[f"{name}_files"] = np.frombuffer(zlib.compress(files, 1), np.uint8)
            meta[name] = fields
    with writing(workdir / RECIPE):
        cache.store(workdir / RECIPE, arrays, meta)


def read_recipe(workdir: Path) -> Kept | None:
    """Returns what the run in `workdir` kept; None where that is missing or damaged.

    Runs from before it was kept have none. A damaged one is named on stderr.
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
            said = f"warning: '{path}' is damaged: mean and classes are those of the data as it is"
            print(said, file=sys.stderr)
        return None


def recipe_of(run) -> Recipe:
    """Returns how `run` makes its net's input."""
    prep: Preprocess = run.preprocess
    return Recipe(
        image_size=run.config.data.image_size,
        resize_size=run.data.resize_size,
        mean=np.asarray(prep.mean, np.float32),
        mean_under_crop=prep.own_place,
        scale=np.full(3, prep.scale, np.float32),
    )


def _open_run(workdir: Path, step: int | None) -> Pretrained:
    from alexnet_jax import evaluate
    from alexnet_jax.assemble import make_model
    from alexnet_jax.records import restore  # Orbax takes a second to import

    kept = read_recipe(workdir)
    if kept is None:  # the data set has it all
        run, params, _ = evaluate.load_run(workdir, step)
        recipe, class_names, model = recipe_of(run), run.data.class_names, run.model
        return Pretrained(model, _on_one_device(params), recipe, class_names, recipe)
    config, recipe, class_names = read_config(workdir), kept.recipe, kept.class_names
    model = make_model(config, len(class_names))
    abstract = _abstract(model, recipe.image_size)
    params, _ = restore.restore_params(workdir, abstract, "best" if step is None else step)
    return Pretrained(model, params, recipe, class_names, recipe)


def _abstract(model: nn.Module, image_size: int) -> dict:
    """Shapes of the parameters, all on one device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def _on_one_device(params: dict) -> dict:
    return jax.device_put(jax.device_get(params), jax.local_devices()[0])


def _meta(recipe: Recipe, class_names: tuple[str, ...]) -> dict:
    return {
        "image_size": recipe.image_size,
        "resize_size": recipe.resize_size,
        "mean_under_crop": recipe.mean_under_crop,
        "class_names": list(class_names),
    }


# Of an import


def write_weights(file: Path, net: Pretrained, name: str, fields: dict, source: dict) -> None:
    """Writes `net` to `file`, a .safetensors, and what it is to the .json beside it.

    Each appears whole or not at all, and the second refers to the first by its digest.

    Args:
        name, fields: what `models.create` made the model from.
        source: where the weights are from, for the .json.

    Raises:
        UserError: it cannot be written.
    """
    recipe = net.recipe
    tensors = {
        f"{layer}.{kind}": np.ascontiguousarray(array)
        for layer, arrays in net.params.items()
        for kind, array in jax.device_get(arrays).items()
    }
    mean, scale = (
        [float(str(x)) for x in array.ravel()[:3]] for array in (recipe.mean, recipe.scale)
    )
    if recipe.mean.ndim == 3:
        mean, tensors["mean"] = "an image, among the tensors", np.ascontiguousarray(recipe.mean)
    data = safetensors.numpy.save(tensors)
    meta = _meta(recipe, net.class_names)
    description = {
        "model": {"name": name, **fields},
        "preprocess": {"channel_order": "rgb", "mean": mean, "scale": scale}
        | {key: meta[key] for key in ("mean_under_crop", "resize_size", "image_size")},
        "class_names": meta["class_names"],
        "source": source,
        "weights": {"file": file.name, "sha256": hashlib.sha256(data).hexdigest()},
        "versions": provenance.versions(),
    }
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace(file, data)
    files.write_json(file.with_suffix(".json"), description)


def _open_weights(file: Path) -> Pretrained:
    beside = file.with_suffix(".json")
    try:
        description = json.loads(beside.read_text("utf-8"))
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
        told = description["model"]
        if told["name"] == "alexnet_owt" and description["source"].get("program") == "torchvision":
            told = told | {"name": "torchvision"}  # what imports called it until version 0.1
        model = models.create(**told)
        class_names = tuple(description["class_names"])
        params = {}
        for key, array in tensors.items():
            layer, kind = key.split(".")
            params.setdefault(layer, {})[kind] = array
        if jax.tree.map(np.shape, params) != jax.tree.map(
            np.shape, _abstract(model, recipe.image_size)
        ):
            raise ValueError(f"{beside.name} describes another net")
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"'{file}' cannot be read: {' '.join(str(reason).split())}") from None
    return Pretrained(model, jax.device_put(params), recipe, class_names, recipe)


# A picture


def _square(image, size: int) -> np.ndarray:
    if isinstance(image, bytes | bytearray | memoryview):
        return decode.square(bytes(image), size)
    if isinstance(image, Image.Image):
        return decode.square_of(image, size)
    array = _array(image)
    if array is None or array.dtype != np.uint8 or array.shape[2:] != (3,):
        what = type(image).__name__ if array is None else f"{array.dtype} {list(array.shape)}"
        hint = "; give the file's bytes" if isinstance(image, str | Path) else ""
        raise UserError(f"a picture is a uint8 array [H, W, 3] (RGB), not {what}{hint}")
    if 0 in array.shape:
        raise UserError(f"a picture of {array.shape[0]} x {array.shape[1]} pixels")
    return decode.square_of(Image.fromarray(array), size)


def _array(image) -> np.ndarray | None:
    """The array in anything that is one: NumPy's, JAX's, PyTorch's or TensorFlow's."""
    if not hasattr(image, "__array__"):
        return None
    try:
        return np.asarray(image)
    except (TypeError, RuntimeError) as error:  # inside jit, on another device, deleted
        reason = str(error).splitlines()[0]
        raise UserError(f"a picture in an array that has no values here: {reason}") from None
