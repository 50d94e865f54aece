"""Reads and writes torchvision's AlexNet, as a state dict in PyTorch's zip format or safetensors.

The zip holds a pickle, `data.pkl`, whose tensors refer to storages, which are members `data/KEY` of
raw numbers (pytorch/pytorch, torch/serialization.py and torch/_utils.py).
"""

import math
import zipfile
import zlib
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
POOLED = 6  # the side of the maps that fc6 reads (AdaptiveAvgPool2d)
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
_DAMAGED = (ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read(path: Path) -> Found:
    """Reads the net in a state dict.

    Raises:
        UserError: the file has another format, is damaged, or has another net.
    """
    try:
        chosen, tensors, passed_over = _choose(read_tensors(path))
    except ValueError as error:
        raise UserError(f"'{path}' cannot be imported: {error}") from None
    wanted = [f"{place}.{kind}" for place in LAYERS.values() for kind in KINDS]
    missing, others = set(wanted) - tensors.keys(), tensors.keys() - set(wanted)
    if missing or others:
        lacks = f"it lacks {len(missing)} of its {len(wanted)} tensors"
        adds = f"it has {len(others)} that are not of it"
        listed = [f"    {name} {'x'.join(map(str, x.shape))}" for name, x in tensors.items()]
        wanted_names = [f"    {name}" for name in wanted]
        raise UserError(
            f"'{path}' is no state dict of torchvision's alexnet: "
            + " and ".join([lacks] * bool(missing) + [adds] * bool(others))
            + f"\n  the file{f', in {chosen}' if chosen else ''}:\n"
            + "\n".join(listed or ["    (no tensors)"])
            + "\n  torchvision's alexnet:\n"
            + "\n".join(wanted_names)
        )
    layers = []
    for layer, place in LAYERS.items():
        kernel = _floats(path, f"{place}.weight", tensors)
        if kernel.ndim == 4:
            kernel = kernel.transpose(2, 3, 1, 0)
        elif layer == "fc6" and kernel.shape[1] % POOLED**2 == 0:
            kernel = kernel.reshape(len(kernel), -1, POOLED, POOLED).transpose(2, 3, 1, 0)
            kernel = kernel.reshape(-1, kernel.shape[-1])
        else:
            kernel = kernel.T
        layers.append(Layer(layer, kernel, _floats(path, f"{place}.bias", tensors)))
    return Found(
        layers=layers,
        presets=("torchvision",),
        fields={},
        image_size=IMAGE_SIZE,
        resize_size=RESIZE_SIZE,
        mean=[255 * m for m in MEAN],
        scale=[1 / (255 * d) for d in DEVIATION],
        class_names=imagenet_classes(layers),
        note=f"from '{chosen}', not {', '.join(passed_over)}" if passed_over else "",
    )


KINDS = ("weight", "bias")


def to_torchvision(params: Mapping) -> dict[str, np.ndarray]:
    """Returns our parameters as torchvision's state dict, in float32, the inverse of `read`."""
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


def _floats(path: Path, name: str, tensors: Mapping) -> np.ndarray:
    """Returns a tensor in float32; the kind "V" is bfloat16, which NumPy does not have."""
    tensor = np.asarray(tensors[name])
    if tensor.dtype.kind not in "fV":
        raise UserError(f"'{path}': {name} is of {tensor.dtype}, not of floats: a quantised net?")
    return tensor.astype(np.float32)


# What training programs put around a parameter's name: DataParallel and EMA, torch.compile.
_WRAPPERS = ("module", "_orig_mod")
_SEQUENCES = ("features", "classifier")
# Where they keep the net itself, the likeliest first; an average of the weights comes after it.
_USUAL = ("", "state_dict", "model_state_dict", "model", "net")


def _choose(dictionaries: Mapping[str, dict]) -> tuple[str, dict[str, np.ndarray], list[str]]:
    """Chooses the most probable net among the dictionaries of tensors in a checkpoint.

    Args:
        dictionaries: {place in the file, "" for the whole file: {name: tensor}}.

    Returns:
        The place of the net, its tensors by torchvision's names, and the places of other complete
        nets.

    Raises:
        ValueError: one dictionary has a tensor of the net twice.
    """
    wanted = {f"{place}.{kind}" for place in LAYERS.values() for kind in KINDS}
    found = {}
    for place, tensors in dictionaries.items():
        nets = _unwrapped(tensors)
        beside = nets.pop("", {}) if len(nets) > 1 else {}
        for prefix, net in nets.items():
            found[".".join(filter(None, (place, prefix)))] = net | beside
    order = {place: i for i, place in enumerate(_USUAL)}

    def rank(place: str) -> tuple:
        usual = order.get(place.partition(".")[0], len(order))
        return not wanted <= found[place].keys(), "ema" in place, usual

    first, *others = sorted(found, key=rank) or [""]
    whole = [place for place in others if wanted <= found[place].keys()]
    return first, found.get(first, {}), whole


def _unwrapped(tensors: Mapping) -> dict[str, dict[str, np.ndarray]]:
    """Returns {prefix before torchvision's names: {name: tensor}}.

    Raises:
        ValueError: two names are the same without what training programs put around them.
    """
    nets, written = {}, {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        start = next((i for i, part in enumerate(parts) if part in _SEQUENCES), 0)
        place, own = ".".join(parts[:start]), ".".join(parts[start:])
        # Two of a name may be a net and the average of its weights.
        if (place, own) in written and parts[start] in _SEQUENCES:
            raise ValueError(
                f"it has {own} twice, as {written[place, own]} and as {name}: save one of the nets"
            )
        nets.setdefault(place, {})[own] = tensor
        written[place, own] = name
    nets.get("", {}).pop("n_averaged", None)  # This is the counter of PyTorch's AveragedModel.
    return {prefix: net for prefix, net in nets.items() if net}


def read_tensors(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Reads the dictionaries of tensors in a checkpoint or state dict: {place: {name: tensor}}.

    Raises:
        UserError: the file has another format, or is damaged.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if zipfile.is_zipfile(path):
        return _read_zip(path)
    elif start[8:9] == b"{":
        try:
            return {"": load_file(path)}
        except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"'{path}' is no whole safetensors file: {error}") from None
        except AttributeError as error:  # The reader asks NumPy for a type that it does not have.
            kind = str(error).rpartition(" ")[2].strip("'")
            raise UserError(
                f"'{path}' has tensors of {kind}, which NumPy does not have: save them as float32"
            ) from None
    if start[:1] == b"\x80":
        raise UserError(
            f"'{path}' is in PyTorch's format from before 1.6, or cut off: load it with torch.load "
            "and write it with torch.save, which gives the zip format that is read here"
        )
    raise UserError(
        f"'{path}' is neither a .pth file of PyTorch 1.6 or later (a zip) nor safetensors, "
        "or it is cut off"
    )


def _read_zip(path: Path) -> dict[str, dict[str, np.ndarray]]:
    try:
        with zipfile.ZipFile(path) as file:
            return _state_dict(file)
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' is no whole state dict of PyTorch: {reason}") from None


def _state_dict(file: zipfile.ZipFile) -> dict[str, dict[str, np.ndarray]]:
    if any(name.endswith("/constants.pkl") for name in file.namelist()):
        raise ValueError("it is TorchScript: save torch.jit.load(FILE).state_dict()")
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
        if kind.__name__ not in _STORAGES:  # Complex numbers, for example, are not a part of a net.
            return None
        if file.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        numbers = np.frombuffer(file.read(name), np.dtype(kind.dtype).newbyteorder(order))
        if kind.name == "BFloat16Storage":  # A bfloat16 is the upper half of a float32.
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers

    def tensor(numbers, offset, size, stride, grad=False, hooks=None, metadata=None):
        if numbers is None:
            return None
        if metadata:  # It may be a conjugate or negative view.
            raise ValueError(f"a tensor is a view of another kind: {metadata}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *size, *stride, 0) < 0 or (math.prod(size) and last >= len(numbers)):
            raise ValueError("a tensor reaches beyond its storage")
        return np.lib.stride_tricks.as_strided(
            numbers[offset:], size, [step * numbers.itemsize for step in stride], writeable=False
        )

    stand_ins = {
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
        ("torch._tensor", "_rebuild_from_type_v2"): lambda make, kind, given, state: make(*given),
    }
    for name, dtype in _STORAGES.items():
        stand_ins["torch", name] = type(name, (), {"name": name, "dtype": dtype})
    loaded = pickles.load(file.read(pickled[0]), stand_ins, storage)
    dictionaries = _dictionaries(loaded, "")
    named = {
        part for tensors in dictionaries.values() for name in tensors for part in name.split(".")
    }
    if named.isdisjoint(_SEQUENCES):
        for x in [loaded, *(loaded.values() if isinstance(loaded, dict) else ())]:
            state = x.state if isinstance(x, pickles.Record) else None
            if isinstance(state, dict) and "_modules" in state:
                raise ValueError("it is a whole pickled model: save its model.state_dict() instead")
    if not dictionaries and not isinstance(loaded, dict):
        raise ValueError(f"it holds no dictionary of tensors, but a {type(loaded).__name__}")
    return dictionaries


def _dictionaries(loaded, place: str, depth: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Returns the dictionaries with tensors in a checkpoint by their places, joined by dots."""
    if not isinstance(loaded, dict) or depth > 3:
        return {}
    tensors = {str(name): x for name, x in loaded.items() if isinstance(x, np.ndarray)}
    found = {place: tensors} if tensors else {}
    for name, inner in loaded.items():
        found |= _dictionaries(inner, f"{place}.{name}".lstrip("."), depth + 1)
    return found
