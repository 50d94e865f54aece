"""Reads Caffe's AlexNet and CaffeNet from a .caffemodel.

Each number that the file gives for a layer is either used or must equal that of our net.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError, Message

from alexnet_jax.errors import UserError
from alexnet_jax.weights import caffe_proto
from alexnet_jax.weights.net import Found, Layer, agree, imagenet_classes

IMAGE_SIZE, RESIZE_SIZE = 227, 256  # of bvlc_alexnet and CaffeNet (models/*/train_val.prototxt)
# The mean of ImageNet's pixels in Caffe's examples, for BGR: 104, 117, 123.
MEAN = (123.0, 117.0, 104.0)

_ACTIVATIONS = {"ReLU": "relu", "TanH": "tanh", "Sigmoid": "sigmoid"}
_INPUTS = ("Data", "ImageData", "WindowData", "HDF5Data", "MemoryData", "DummyData", "Input")
_TRANSFORMING = ("transform_param", "data_param", "image_data_param", "window_data_param")
# Layers that precede or follow the net, or change nothing.
_OTHERS = (
    *("Split", "Flatten", "Silence", "Accuracy", "ArgMax", "Softmax", "HDF5Output"),
    *("SoftmaxWithLoss", "MultinomialLogisticLoss", "InfogainLoss"),
)
_OTHER_LOSSES = ("HingeLoss", "EuclideanLoss", "SigmoidCrossEntropyLoss", "ContrastiveLoss")
_DAMAGED = (DecodeError, ValueError, TypeError, IndexError, OverflowError)


def read(path: Path) -> Found:
    """Reads the net in a .caffemodel, and changes its first kernel from BGR to RGB.

    Raises:
        UserError: the file is not a .caffemodel, is damaged or from before 2014, or its layers have
            settings that none of our nets has.
    """
    try:
        net = caffe_proto.parse("NetParameter", path.read_bytes())
        found = _found(net)
    except _DAMAGED as error:
        raise UserError(f"'{path}' cannot be imported as a .caffemodel: {error}") from None
    if found is None:
        raise UserError(f"'{path}' is no .caffemodel: no layer in it has weights")
    return found


def read_mean(path: Path) -> np.ndarray:
    """Reads the mean image in a .binaryproto (a BlobProto), float32 RGB [R, R, 3].

    Raises:
        UserError: the file is not a .binaryproto, or is damaged.
    """
    try:
        blob = _blob(caffe_proto.parse("BlobProto", path.read_bytes()))
        blob = blob.reshape(blob.shape[-3:])
        if len(blob) != 3 or blob.shape[1] != blob.shape[2]:
            raise ValueError(f"its shape is {blob.shape}, not 3 x R x R")
    except _DAMAGED as error:
        raise UserError(f"'{path}' is no mean image of Caffe: {error}") from None
    return blob[::-1].transpose(1, 2, 0)


def _found(net: Message) -> Found | None:
    layers, note = [], ""
    # Caffe rounds the number of windows up if it is not whole (pooling_layer.cpp).
    fields, inputs = {"pool_overhang": True}, _input_size(net)
    for kind, layer in _layers(net):
        if kind in _INPUTS:
            agree(inputs, layer.name, _transformation(layer))
        elif kind in _OTHERS:
            continue
        elif kind in _OTHER_LOSSES:
            note = f"it was trained by {kind}: the shares that classify prints mean nothing"
        elif kind in ("Convolution", "InnerProduct"):
            _check_always_there(layer)
            weights = _convolution if kind == "Convolution" else _inner_product
            layers.append(weights(layer, layers))
        elif kind in _OPERATIONS:
            if not layers:
                raise ValueError(f"layer {layer.name} of type {kind} comes before all weights")
            if kind != "Dropout":
                _check_always_there(layer)
            operation, numbers = _OPERATIONS[kind](layer, kind)
            agree(fields, layer.name, numbers)
            layers[-1] = Layer(**vars(layers[-1]) | {"then": (*layers[-1].then, operation)})
        else:
            raise ValueError(
                f"layer {layer.name} is of type {kind or 'none'}, which ours don't have"
            )
    if not layers:
        return None
    if layers[0].kernel.ndim == 4:
        layers[0] = Layer(**vars(layers[0]) | {"kernel": layers[0].kernel[:, :, ::-1]})
    size = inputs.pop("image_size", IMAGE_SIZE)
    return Found(
        layers=layers,
        presets=("bvlc_alexnet", "caffenet"),
        fields=fields,
        image_size=size,
        resize_size=max(RESIZE_SIZE, size),
        **{"mean": MEAN} | inputs,
        # data_transformer.cpp subtracts the part of the mean image under each crop.
        mean_under_crop=True,
        channel_order="bgr",
        class_names=imagenet_classes(layers),
        note=note,
    )


def _layers(net: Message) -> Iterator[tuple[str, Message]]:
    """Yields (type, LayerParameter or V1LayerParameter) of each layer, in the net's order."""
    for layer in net.layers:
        if layer.HasField("layer"):
            raise ValueError("it is of Caffe's first format: upgrade_net_proto_binary renews it")
        yield caffe_proto.V1_TYPES.get(layer.type, f"number {layer.type}"), layer
    for layer in net.layer:
        yield layer.type, layer


def _parameters(layer: Message, name: str) -> Message:
    """Returns the message `name` of a layer, with the defaults of what the file leaves out."""
    parameters = getattr(layer, name)
    if (number := caffe_proto.unknown_field(parameters)) is not None:
        raise ValueError(f"layer {layer.name} has a field {number} in its {name}: it is unknown")
    return parameters


def _require(layer: Message, parameters: Message, **wanted) -> None:
    """Raises ValueError unless the parameters have these values; a repeated one may be missing."""
    for name, value in wanted.items():
        given = getattr(parameters, name)
        given = list(given) if hasattr(given, "append") else [given]
        if any(x != value for x in given):
            given = ", ".join(f"{x:g}" for x in given)
            raise ValueError(f"layer {layer.name} has {name} {given}, and ours {value}")


def _check_always_there(layer: Message) -> None:
    if layer.include or layer.exclude:
        raise ValueError(f"layer {layer.name} is there only under some rules (include, exclude)")


def _square(layer: Message, parameters: Message, name: str) -> int | None:
    """Returns the number for both axes, from pad or from pad_h and pad_w, or None without any."""
    given = getattr(parameters, name)
    given = list(given) if hasattr(given, "append") else [given] * parameters.HasField(name)
    stem = name.removesuffix("_size")
    axes = [f"{stem}_h", f"{stem}_w"]
    if any(parameters.HasField(axis) for axis in axes):
        given += [getattr(parameters, axis) for axis in axes]
    if len(set(given)) > 1:
        raise ValueError(
            f"layer {layer.name} has {stem} {' x '.join(map(str, given))}: not a square"
        )
    return given[0] if given else None


def _float(value: float) -> float:
    """Returns a float32 as the shortest decimal number that is rounded to it."""
    return float(str(np.float32(value)))


def _input_size(net: Message) -> dict:
    """Returns {"image_size"} of a net without an input layer, as nets for deployment have none."""
    shapes = [list(net.input_dim), *(list(shape.dim) for shape in net.input_shape)]
    return _size("the net", [shape for shape in shapes if shape])


def _size(name: str, shapes: list[list[int]]) -> dict:
    for shape in shapes:
        if len(shape) == 4:
            if shape[1] != 3 or shape[2] != shape[3]:
                raise ValueError(f"{name} reads images {shape[1:]}, not [3, S, S]")
            return {"image_size": shape[2]}
    return {}


def _transformation(layer: Message) -> dict:
    """Returns the fields of `Found` that a data layer's transformation sets."""
    fields = {}
    for name in _TRANSFORMING:
        if not layer.HasField(name):
            continue
        if name == "transform_param":
            parameters = _parameters(layer, name)
            _require(layer, parameters, force_gray=False)
            if means := [_float(x) for x in parameters.mean_value]:
                if len(means) not in (1, 3):
                    raise ValueError(f"layer {layer.name} has {len(means)} mean values")
                fields["mean"] = tuple((means * 3)[2::-1])
            elif not any(getattr(layer, each).mean_file for each in _TRANSFORMING):
                fields["mean"] = (0.0, 0.0, 0.0)  # data_transformer.cpp then subtracts nothing.
        else:  # Other fields describe where the data are, and not the net.
            parameters = getattr(layer, name)
        if parameters.crop_size:
            fields["image_size"] = parameters.crop_size
        if parameters.scale != 1:
            fields["scale"] = (_float(parameters.scale),) * 3
    if "input_param" in layer.DESCRIPTOR.fields_by_name:
        shapes = [list(shape.dim) for shape in layer.input_param.shape]
        fields |= _size(f"layer {layer.name}", shapes)
    return fields


def _arrays(layer: Message, parameters: Message) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias in the file's shape; the bias is 0 if the layer has none."""
    blobs = [_blob(blob) for blob in layer.blobs]
    if len(blobs) != 1 + parameters.bias_term:
        kinds = "kernel and bias" if parameters.bias_term else "a kernel (bias_term: false)"
        raise ValueError(f"layer {layer.name} has {len(blobs)} arrays, not {kinds}")
    kernel = blobs[0]
    if not parameters.bias_term:
        outputs = len(kernel) if kernel.shape[0] > 1 else kernel.shape[-2]
        return kernel, np.zeros(outputs, np.float32)
    return kernel, blobs[1].reshape(-1)


def _convolution(layer: Message, before: list[Layer]) -> Layer:
    conv = _parameters(layer, "convolution_param")
    kernel, bias = _arrays(layer, conv)
    if kernel.ndim != 4 or len(kernel) != len(bias) or kernel.shape[2] != kernel.shape[3]:
        raise ValueError(f"layer {layer.name}: kernel {kernel.shape}, bias {bias.shape}")
    geometry = {}
    if layer.HasField("convolution_param"):
        _require(layer, conv, axis=1, dilation=1)
        inputs = before[-1].bias.shape[-1] if before else 3
        told = {
            "num_output": (conv.num_output, len(kernel)),
            "kernel_size": (_square(layer, conv, "kernel_size"), kernel.shape[2]),
            "group": (conv.group * kernel.shape[1], inputs),  # both count all inputs
        }
        for name, (number, own) in told.items():
            if number and number != own:
                raise ValueError(f"layer {layer.name} has a {name} that doesn't fit its kernel")
        padding = _square(layer, conv, "pad") or 0
        stride = _square(layer, conv, "stride") or 1
        geometry = {"stride": stride, "padding": (padding, padding)}
    return Layer(layer.name, kernel.transpose(2, 3, 1, 0), bias, (), **geometry)


def _inner_product(layer: Message, before: list[Layer]) -> Layer:
    inner = _parameters(layer, "inner_product_param")
    _require(layer, inner, axis=1, transpose=False)
    kernel, bias = _arrays(layer, inner)
    if inner.num_output not in (0, len(bias)):
        raise ValueError(f"layer {layer.name} has a num_output that doesn't fit its bias")
    kernel = kernel.reshape(len(bias), -1)
    maps = len(before[-1].bias) if before and before[-1].kernel.ndim == 4 else 0
    pixels = kernel.shape[1] // maps if maps else 0
    side = round(pixels**0.5)
    if maps and maps * side**2 == kernel.shape[1]:  # It reads maps, in the order [C, y, x].
        kernel = kernel.reshape(len(bias), maps, side, side).transpose(0, 2, 3, 1)
        kernel = kernel.reshape(len(bias), -1)
    return Layer(layer.name, kernel.T, bias, ())


def _blob(blob: Message) -> np.ndarray:
    """Returns the float32 array in a BlobProto."""
    if blob.HasField("raw_data"):
        if blob.raw_data_type not in caffe_proto.RAW_TYPES:
            raise ValueError(f"an array of NVIDIA's type {blob.raw_data_type}, which isn't floats")
        numbers = np.frombuffer(blob.raw_data, caffe_proto.RAW_TYPES[blob.raw_data_type])
    else:
        numbers = np.array(blob.double_data or blob.data, np.float32)
    if not len(numbers):
        raise ValueError("an array without numbers")
    if blob.HasField("shape"):
        shape = list(blob.shape.dim)
    else:
        shape = [getattr(blob, axis) or 1 for axis in ("num", "channels", "height", "width")]
    return numbers.astype(np.float32, copy=False).reshape(shape)


def _activation(layer: Message, kind: str) -> tuple[str, dict]:
    parameters = _parameters(layer, f"{kind.lower()}_param")
    if kind == "ReLU":
        _require(layer, parameters, negative_slope=0)
    return "act", {"activation": _ACTIVATIONS[kind]}


def _pooling(layer: Message, _: str) -> tuple[str, dict]:
    pool = _parameters(layer, "pooling_param")
    _require(layer, pool, global_pooling=False)
    if pool.pool not in (0, 1):
        raise ValueError(f"layer {layer.name} pools by method {pool.pool}: not maximum or average")
    if padding := _square(layer, pool, "pad"):
        raise ValueError(f"layer {layer.name} has pad {padding}, and ours 0")
    window, stride = _square(layer, pool, "kernel_size"), _square(layer, pool, "stride") or 1
    if window is None:  # The file has no parameters of its layers, and Caffe would not run it.
        window, stride = 3, 2
    method = ("max", "avg")[pool.pool]
    return "pool", {"pooling": method, "pool_window": window, "pool_stride": stride}


def _normalisation(layer: Message, _: str) -> tuple[str, dict]:
    lrn = _parameters(layer, "lrn_param")
    if lrn.norm_region != 0:
        raise ValueError(f"layer {layer.name} normalises WITHIN_CHANNEL, ours ACROSS_CHANNELS")
    if lrn.local_size % 2 == 0:
        raise ValueError(f"layer {layer.name} has local_size {lrn.local_size}, which isn't odd")
    alpha = _float(lrn.alpha) / lrn.local_size
    numbers = {"lrn_alpha": alpha, "lrn_beta": _float(lrn.beta), "lrn_k": _float(lrn.k)}
    return "lrn", {"lrn_size": lrn.local_size, **numbers}


def _dropout(layer: Message, _: str) -> tuple[str, dict]:
    rate = _parameters(layer, "dropout_param").dropout_ratio
    return "drop", {"dropout": _float(rate)}


_OPERATIONS = {
    **dict.fromkeys(_ACTIVATIONS, _activation),
    "Pooling": _pooling,
    "LRN": _normalisation,
    "Dropout": _dropout,
}
