"""torchvision's AlexNet: a state dict in PyTorch's zip format or as safetensors.

The zip holds a pickle, `data.pkl`, whose tensors refer to storages: members `data/KEY` of raw
numbers (pytorch/pytorch, torch/serialization.py and torch/_utils.py).
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file

from alexnet_jax.errors import UserError
from alexnet_jax.weights import pickles
from alexnet_jax.weights.net import Found, Layer, imagenet_classes

# pytorch/vision, torchvision/models/alexnet.py: the places of the layers in its two sequences.
LAYERS = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}
POOLED = 6  # side of the maps that fc6 reads (its AdaptiveAvgPool2d)
# Its preprocessing (the same file: ImageClassification and its defaults), on pixels in 0..1.
IMAGE_SIZE, RESIZE_SIZE = 224, 256
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}


def read(path: Path) -> Found:
    """The net in a state dict.

    Raises:
        UserError: the file is of another format, damaged, or of another net.
    """
    tensors = read_tensors(path)
    wanted = {f"{place}.{kind}": (layer, kind) for layer, place in LAYERS.items() for kind in KINDS}
    missing, others = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing or others:
        listed = [f"    {name} {'x'.join(map(str, x.shape))}" for name, x in tensors.items()]
        wanted_names = [f"    {name}" for name in wanted]
        raise UserError(
            f"'{path}' is no state dict of torchvision's alexnet: {len(missing)} of its "
            f"{len(wanted)} tensors are missing\n  the file:\n"
            + "\n".join(listed or ["    (no tensors)"])
            + "\n  torchvision's alexnet:\n"
            + "\n".join(wanted_names)
        )
    layers = []
    for layer, place in LAYERS.items():
        kernel = np.asarray(tensors[f"{place}.weight"], np.float32)
        if kernel.ndim == 4:
            kernel = kernel.transpose(2, 3, 1, 0)
        elif layer == "fc6" and kernel.shape[1] % POOLED**2 == 0:
            kernel = kernel.reshape(len(kernel), -1, POOLED, POOLED).transpose(2, 3, 1, 0)
            kernel = kernel.reshape(-1, kernel.shape[-1])
        else:
            kernel = kernel.T
        layers.append(Layer(layer, kernel, np.asarray(tensors[f"{place}.bias"], np.float32)))
    return Found(
        layers=layers,
        presets=("torchvision",),
        fields={},
        image_size=IMAGE_SIZE,
        resize_size=RESIZE_SIZE,
        mean=[255 * m for m in MEAN],
        scale=[1 / (255 * d) for d in DEVIATION],
        class_names=imagenet_classes(layers),
    )


KINDS = ("weight", "bias")


def to_torchvision(params: Mapping) -> dict[str, np.ndarray]:
    """Our parameters as torchvision's state dict, float32; the inverse of `read`."""
    tensors = {}
    for layer, place in LAYERS.items():
        kernel = np.asarray(params[layer]["kernel"], np.float32)
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        elif layer == "fc6":
            kernel = kernel.reshape(POOLED, POOLED, -1, kernel.shape[-1]).transpose(3, 2, 0, 1)
            kernel = kernel.reshape(len(kernel), -1)
        else:
            kernel = kernel.T
        tensors[f"{place}.weight"] = np.ascontiguousarray(kernel)
        tensors[f"{place}.bias"] = np.asarray(params[layer]["bias"], np.float32)
    return tensors


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, without DataParallel's "module.".

    Raises:
        UserError: the file is of another format, or damaged.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if zipfile.is_zipfile(path):
        tensors = _read_zip(path)
    elif start[8:9] == b"{":
        try:
            tensors = load_file(path)
        except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"'{path}' is no whole safetensors file: {error}") from None
    elif start[:1] == b"\x80":
        raise UserError(
            f"'{path}' is in PyTorch's format from before 1.6, or cut off: load it with torch.load "
            "and write it with torch.save, which gives the zip format that is read here"
        )
    else:
        raise UserError(
            f"'{path}' is neither a .pth file of PyTorch 1.6 or later (a zip) nor safetensors, "
            "or it is cut off"
        )
    return {name.replace("module.", ""): tensor for name, tensor in tensors.items()}


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as file:
            return _state_dict(file)
    except (ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' is no whole state dict of PyTorch: {reason}") from None


def _state_dict(file: zipfile.ZipFile) -> dict[str, np.ndarray]:
    pickled = [name for name in file.namelist() if name.endswith("data.pkl")]
    if not pickled:
        raise ValueError("it is a zip without a data.pkl")
    root = pickled[0].removesuffix("data.pkl")
    order = (
        ">"
        if f"{root}byteorder" in file.namelist() and (file.read(f"{root}byteorder") == b"big")
        else "<"
    )

    def storage(pid):
        _, kind, key, *_ = pid
        name = f"{root}data/{key}"
        if file.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        numbers = np.frombuffer(file.read(name), np.dtype(kind.dtype).newbyteorder(order))
        if kind.name == "BFloat16Storage":  # the upper half of a float32
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers

    def tensor(numbers, offset, size, stride, *_):
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *size, *stride, 0) < 0 or (math.prod(size) and last >= len(numbers)):
            raise ValueError("a tensor reaches beyond its storage")
        return np.lib.stride_tricks.as_strided(
            numbers[offset:], size, [step * numbers.itemsize for step in stride], writeable=False
        )

    stand_ins = {
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    }
    for name, dtype in _STORAGES.items():
        stand_ins["torch", name] = type(name, (), {"name": name, "dtype": dtype})
    loaded = pickles.load(file.read(pickled[0]), stand_ins, storage)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise ValueError("it holds no dictionary of tensors")
    return {str(name): x for name, x in loaded.items() if isinstance(x, np.ndarray)}
