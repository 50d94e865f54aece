"""Reads cuda-convnet's checkpoints, pickled by Python 2, in which the nets of 2012 were saved.

A checkpoint is {'model_state': {'layers': …}, 'op': its option parser}. The layers are a list or a
dictionary of dictionaries, as the program's layer.py made them. (The programs are
computerhistory/AlexNet-Source-Code, CHM below; dnouri/cuda-convnet; and akrizhevsky/cuda-convnet2,
CC2.) From the layers with weights we read

    name, type, inputs      inputs: names or positions of the layers that it reads
    weights                 one matrix for each input: [channels x pixels, filters] of a 'conv',
                            [modules x channels x pixels, filters] of a 'local' (untied) layer,
                            [inputs, outputs] of an 'fc', whose inputs are in the order [C, y, x]
    biases                  [filters, 1], [filters x modules, 1] or [1, outputs]

and from the other layers their operation. A net in two towers has two layers, such as conv3a and
conv3b, for one of ours. If these read both towers, they have a matrix for each tower, in the order
of `inputs`: fc2048bb of net 145 reads tower b first.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.weights import pickles
from alexnet_jax.weights.net import Found, Layer, agree

# Channel means of ImageNet's training set (CC2 make-data/input_meta). The mean image that the nets
# were trained with is in the data's batches.meta, not in the checkpoint.
MEAN = (127.3, 119.7, 104.9)

LARGEST = 2048  # side of a net's images in pixels; a larger one is a damaged number
PRESETS = (
    *("net145", "net145_half", "alexnet_six_conv", "alexnet_owt"),
    *("cifar_80sec", "cifar_19pct", "cifar_18pct", "cifar_13pct", "cifar_11pct"),
)
_WEIGHTED = ("conv", "local", "fc")
_ACTIVATIONS = {"relu": "relu", "logistic": "sigmoid"}


def read(path: Path) -> Found:
    """Reads the net in a checkpoint, and puts its towers side by side.

    Raises:
        UserError: the file is not a checkpoint, is damaged, or has a net in more than two towers.
    """
    try:
        state = pickles.load(path.read_bytes())
        net = _Net(state["model_state"]["layers"])
        return net.found()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = " ".join(f"{error}".split())
        if isinstance(error, KeyError):
            reason = f"it has no {reason}"
        raise UserError(f"'{path}' is no whole checkpoint of cuda-convnet: {reason}") from None


def read_mean(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads the mean image, float32 RGB [R, R, 3], and the class names in a batches.meta.

    Raises:
        UserError: the file is not a batches.meta, or is damaged.
    """
    try:
        meta = pickles.load(path.read_bytes())
        mean = np.asarray(meta["data_mean"], np.float32).reshape(-1)
        side = math.isqrt(len(mean) // 3)
        mean = mean.reshape(3, side, side).transpose(1, 2, 0)
        return mean, tuple(str(name) for name in meta.get("label_names", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is no batches.meta of cuda-convnet: {error}") from None


@dataclasses.dataclass(frozen=True)
class _Stage:
    """Holds the layers of all towers for one of our layers, and what they read."""

    towers: list[Mapping]
    sources: list[list[str]]  # for each tower, the weighted layer (or '') that each matrix reads


class _Net:
    """Represents the graph of a checkpoint's layers."""

    def __init__(self, layers):
        layers = list(layers.values() if isinstance(layers, Mapping) else layers)
        self.layers = {layer["name"]: layer for layer in layers}
        self.inputs = {
            layer["name"]: [
                source if isinstance(source, str) else layers[source]["name"]
                for source in layer.get("inputs", ())
            ]
            for layer in layers
        }
        self.fields = {}

    def found(self) -> Found:
        """Returns the net as one list of layers."""
        stages = self.stages()
        order = [[layer["name"] for layer in stage.towers] for stage in stages]
        layers = []
        for stage, before in zip(stages, [[""], *order[:-1]], strict=True):
            layers.append(self.layer(stage, before, layers))
        first = stages[0].towers[0]
        size = first["imgSize"][0]
        if not 1 <= size <= LARGEST:
            raise ValueError(f"its images are of {size} pixels")
        return Found(
            layers=layers,
            presets=PRESETS,
            fields={"dropout": 0.0} | self.fields | {"conv1_padding": _padding(first)},
            image_size=size,
            resize_size=32 if size <= 32 else round(size * 256 / 224),
            mean=MEAN,
        )

    def stages(self) -> list[_Stage]:
        """Returns the weighted layers in the order of their distance from the data."""
        depths = {}

        def depth(name: str) -> int:
            if name not in depths:
                depths[name] = None  # A loop in the graph would return here.
                below = [depth(source) for source in self.inputs[name]]
                if None in below:
                    raise ValueError(f"layer {name} reads itself")
                depths[name] = max(below, default=0) + (self.layers[name]["type"] in _WEIGHTED)
            return depths[name]

        stages = {}
        for name, layer in self.layers.items():
            if layer["type"] in _WEIGHTED:
                stages.setdefault(depth(name), []).append(layer)
        if not stages:
            raise ValueError("no layer of it has weights")
        return [
            _Stage(
                towers=sorted(stages[d], key=lambda layer: layer["name"]),
                sources=[
                    [self.source(source) for source in self.inputs[layer["name"]]]
                    for layer in sorted(stages[d], key=lambda layer: layer["name"])
                ],
            )
            for d in sorted(stages)
        ]

    def source(self, name: str) -> str:
        """Returns the weighted layer whose outputs `name` passes on, or '' for the data."""
        while self.layers[name]["type"] not in _WEIGHTED:
            below = self.inputs[name]
            if not below:
                return ""
            if len(below) > 1:
                raise ValueError(f"layer {name} of type {self.layers[name]['type']} joins layers")
            name = below[0]
        return name

    def layer(self, stage: _Stage, before: list[str], layers: Sequence[Layer]) -> Layer:
        """Puts the towers of a stage side by side, with inputs in the order of towers `before`."""
        kernels, biases, thens = [], [], []
        for number, (layer, sources) in enumerate(zip(stage.towers, stage.sources, strict=True)):
            if sorted(sources) != sorted(before) and sources != before[number : number + 1]:
                raise ValueError(
                    f"layer {layer['name']} reads {' and '.join(sources)}: neither all of "
                    f"{' and '.join(before)} nor its own tower"
                )
            matrices = layer["weights"]
            matrices = matrices if isinstance(matrices, list) else [matrices]
            parts = {
                source: _kernel(layer, i, np.asarray(matrix, np.float32), layers, len(before))
                for i, (source, matrix) in enumerate(zip(sources, matrices, strict=True))
            }
            read = [parts[source] for source in before if source in parts]
            kernels.append(np.concatenate(read, axis=-2))
            biases.append(_bias(layer))
            thens.append(self.then(layer["name"]))
        if len(set(thens)) > 1:
            raise ValueError(f"layer {stage.towers[0]['name']}: its towers go on differently")
        kernel, bias = np.concatenate(kernels, axis=-1), np.concatenate(biases, axis=-1)
        if kernel.ndim == 5:  # This is a dense layer over maps, [1, y, x, C, units].
            kernel = kernel.reshape(-1, kernel.shape[-1])
        name = " + ".join(layer["name"] for layer in stage.towers)
        return Layer(name, kernel, bias, thens[0], **_geometry(stage.towers))

    def then(self, name: str) -> tuple[str, ...]:
        """Returns the operations that follow a layer, up to the next layer with weights."""
        operations = []
        while True:
            after = [
                layer
                for each, layer in self.layers.items()
                if name in self.inputs[each] and not layer["type"].startswith("cost.")
            ]
            after = [layer for layer in after if layer["type"] not in (*_WEIGHTED, "softmax")]
            if len(after) > 1:
                raise ValueError(f"layer {name} has two ways on, to {after[1]['name']} too")
            if not after:
                return tuple(operations)
            operations.append(self.operation(after[0]))
            name = after[0]["name"]

    def operation(self, layer: Mapping) -> str:
        """Returns a layer's name in our tables, and sets the net's fields to its numbers."""
        kind = layer["type"]
        if kind == "neuron":
            neuron = layer["neuron"]
            if neuron["type"] not in _ACTIVATIONS:
                return f"{neuron['type']}{list(neuron.get('params', {}).values())}"
            self.set(layer, activation=_ACTIVATIONS[neuron["type"]])
            return "act"
        if kind == "cmrnorm":
            self.require(layer, blocked=0)
            if "scale" in layer:  # It is already divided by the size.
                numbers = {"lrn_alpha": layer["scale"], "lrn_beta": layer["pow"]}
                self.set(layer, **numbers, lrn_size=layer["size"], lrn_k=layer.get("minDiv", 1.0))
            return "lrn"
        if kind == "rnorm":
            self.require(layer, pow=0.75, minDiv=1)
            if "scale" in layer:
                self.set(layer, norm_alpha=layer["scale"], norm_size=layer["size"])
            return "norm"
        if kind == "pool":
            self.require(layer, start=0)
            self.set(layer, pool_window=layer["sizeX"], pool_stride=layer["stride"])
            return "pool" if layer["pool"] == "max" else f"{layer['pool']}_pool"
        if kind in ("hs", "dropout", "dropout2"):
            self.require(layer, enable=1)
            # CC2's dropout divides in training instead.
            self.set(layer, dropout=1 - layer["keep"], inverted_dropout=kind == "dropout")
            return "drop"
        return kind

    def require(self, layer: Mapping, **wanted) -> None:
        """Raises ValueError if the layer has another number than our nets."""
        for name, value in wanted.items():
            if (given := layer.get(name, value)) != value:
                raise ValueError(f"layer {layer['name']} has {name} {given}, and ours {value}")

    def set(self, layer: Mapping, **fields) -> None:
        """Sets fields of the net, about which all its layers must agree."""
        agree(self.fields, layer["name"], fields)


def _kernel(layer: Mapping, i: int, matrix: np.ndarray, before: Sequence[Layer], towers: int):
    """Returns the matrix for the layer's i-th input in the shape of our kernels.

    The shape is [kh, kw, inputs, maps]; for an untied layer [oh, ow, kh, kw, inputs, maps]; and for
    a dense layer [inputs, units], or [1, y, x, C, units] if it reads maps.
    """
    filters = matrix.shape[1]
    if layer["type"] == "fc":
        if not before or before[-1].kernel.ndim == 2:
            return matrix
        maps = before[-1].bias.shape[-1] // towers
        side = math.isqrt(len(matrix) // maps)
        return matrix.reshape(1, maps, side, side, filters).transpose(0, 2, 3, 1, 4)
    size = layer["filterSize"][i]
    if layer.get("groups", [1])[i] != 1:
        raise ValueError(f"layer {layer['name']} has groups within a tower")
    if layer["type"] == "conv":
        return matrix.reshape(-1, size, size, filters).transpose(1, 2, 0, 3)
    side = layer["modulesX"]
    matrix = matrix.reshape(side, side, -1, size, size, filters)
    return matrix.transpose(0, 1, 3, 4, 2, 5)


def _bias(layer: Mapping) -> np.ndarray:
    biases = np.asarray(layer["biases"], np.float32).reshape(-1)
    if layer["type"] != "local":
        return biases
    side = layer["modulesX"]
    return biases.reshape(-1, side, side).transpose(1, 2, 0)


def _geometry(towers: Sequence[Mapping]) -> dict:
    """Returns the stride and padding of a stage's convolutions, or {} for a dense stage."""
    if towers[0]["type"] == "fc":
        return {}
    pairs = [zip(tower["stride"], map(abs, tower["padding"]), strict=True) for tower in towers]
    if len({pair for tower in pairs for pair in tower}) > 1:
        raise ValueError(f"layer {towers[0]['name']}: its towers differ in stride or padding")
    return {"stride": towers[0]["stride"][0], "padding": _padding(towers[0])}


def _padding(conv: Mapping) -> tuple[int, int]:
    """Returns the number of zeros before and after.

    The file has the padding as a negative number. The padding at the end is as wide as the last of
    1 + ceil((image + 2 padding - filter) / stride) windows overhangs.
    """
    padding, size = abs(conv["padding"][0]), conv["imgSize"][0]
    window, stride = conv["filterSize"][0], conv["stride"][0]
    covered = (conv["modulesX"] - 1) * stride + window
    return padding, max(0, covered - size - padding)
