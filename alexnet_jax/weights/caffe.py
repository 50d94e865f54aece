"""Caffe's AlexNet and CaffeNet, from a .caffemodel: a NetParameter in protobuf's wire format.

Field numbers: BVLC/caffe, src/caffe/proto/caffe.proto.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.weights.net import Found, Layer, imagenet_classes

IMAGE_SIZE, RESIZE_SIZE = 227, 256  # of bvlc_alexnet and CaffeNet (models/*/train_val.prototxt)
# Mean of ImageNet's pixels, as Caffe's examples give it for BGR: 104, 117, 123.
MEAN = (123.0, 117.0, 104.0)

_LAYER, _V1_LAYER, _V0_LAYER = 100, 2, 1  # V0 stands inside V1
# (name, type, blobs, lrn_param) of LayerParameter and of V1LayerParameter, and its types.
_FIELDS, _V1_FIELDS = (1, 2, 7, 118), (4, 5, 6, 18)
_V1_TYPES = {
    4: "Convolution",
    14: "InnerProduct",
    15: "LRN",
    17: "Pooling",
    18: "ReLU",
    6: "Dropout",
    23: "TanH",
    19: "Sigmoid",
}
_OPERATIONS = {"ReLU": "act", "Pooling": "pool", "LRN": "lrn", "Dropout": "drop"}
_OTHER_OPERATIONS = ("TanH", "Sigmoid")


def read(path: Path) -> Found:
    """The net in a .caffemodel, its first kernel turned from BGR to RGB.

    Raises:
        UserError: the file is no such file, damaged, or of before 2014.
    """
    layers, fields = [], {}
    try:
        for kind, name, blobs, lrn in _layers(memoryview(path.read_bytes())):
            if blobs:
                if len(blobs) != 2:
                    raise ValueError(f"layer {name} has {len(blobs)} arrays, not kernel and bias")
                layers.append(_layer(name, kind, *blobs, layers))
            elif layers and kind in _OPERATIONS:
                layers[-1] = _then(layers[-1], _OPERATIONS[kind])
            elif layers and kind in _OTHER_OPERATIONS:
                layers[-1] = _then(layers[-1], kind)
            if kind == "LRN" and lrn is not None:
                fields = _normalisation(lrn)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise UserError(f"'{path}' is no whole .caffemodel: {error}") from None
    if not layers:
        raise UserError(f"'{path}' is no .caffemodel: no layer in it has weights")
    if layers[0].kernel.ndim == 4:
        first = layers[0]
        layers[0] = Layer(first.name, first.kernel[:, :, ::-1], first.bias, first.then)
    return Found(
        layers=layers,
        presets=("bvlc_alexnet", "caffenet"),
        fields=fields,
        image_size=IMAGE_SIZE,
        resize_size=RESIZE_SIZE,
        mean=MEAN,
        # data_transformer.cpp subtracts the mean image at the crop's own place.
        mean_under_crop=True,
        channel_order="bgr",
        class_names=imagenet_classes(layers),
    )


def read_mean(path: Path) -> np.ndarray:
    """The mean image in a .binaryproto (a BlobProto), float32 RGB [R, R, 3].

    Raises:
        UserError: the file is no such file, or damaged.
    """
    try:
        blob = _blob(memoryview(path.read_bytes()))
        blob = blob.reshape(blob.shape[-3:])
        if len(blob) != 3 or blob.shape[1] != blob.shape[2]:
            raise ValueError(f"its shape is {blob.shape}, not 3 x R x R")
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise UserError(f"'{path}' is no mean image of Caffe: {error}") from None
    return blob[::-1].transpose(1, 2, 0)


def _layers(net: memoryview) -> Iterator[tuple]:
    """(type, name, blobs, lrn_param) of each layer of a NetParameter, in its order."""
    for number, value in _fields(net):
        if number == _LAYER:
            name, kind, blobs, lrn = _FIELDS
        elif number == _V1_LAYER:
            name, kind, blobs, lrn = _V1_FIELDS
        else:
            continue
        found = {}
        for field, content in _fields(value):
            found.setdefault(field, []).append(content)
        if number == _V1_LAYER and _V0_LAYER in found:
            raise ValueError("it is of Caffe's first format: upgrade_net_proto_binary renews it")
        type_ = found.get(kind, [b""])[0]
        type_ = _V1_TYPES.get(type_, "") if isinstance(type_, int) else bytes(type_).decode()
        yield (
            type_,
            bytes(found.get(name, [b""])[0]).decode(errors="replace"),
            [_blob(each) for each in found.get(blobs, [])],
            found.get(lrn, [None])[0],
        )


def _layer(name: str, kind: str, kernel: np.ndarray, bias: np.ndarray, before: list) -> Layer:
    bias = bias.reshape(-1)
    if kind == "InnerProduct":
        kernel = kernel.reshape(len(bias), -1)
        maps = len(before[-1].bias) if before and before[-1].kernel.ndim == 4 else 0
        pixels = kernel.shape[1] // maps if maps else 0
        side = round(pixels**0.5)
        if maps and maps * side**2 == kernel.shape[1]:  # it reads maps: [C, y, x] there
            kernel = kernel.reshape(len(bias), maps, side, side).transpose(0, 2, 3, 1)
            kernel = kernel.reshape(len(bias), -1)
        return Layer(name, kernel.T, bias, ())
    if kernel.ndim != 4 or len(kernel) != len(bias):
        raise ValueError(f"layer {name}: kernel {kernel.shape}, bias {bias.shape}")
    return Layer(name, kernel.transpose(2, 3, 1, 0), bias, ())


def _then(layer: Layer, operation: str) -> Layer:
    return Layer(layer.name, layer.kernel, layer.bias, (*layer.then, operation))


def _normalisation(lrn: memoryview) -> dict:
    """Fields from an LRNParameter: local_size 1, alpha 2, beta 3, k 5, with its defaults."""
    given = {1: 5, 2: 1.0, 3: 0.75, 5: 1.0} | dict(_fields(lrn))
    size, alpha, beta, k = (given[i] for i in (1, 2, 3, 5))
    alpha, beta, k = (_float(x) for x in (alpha, beta, k))
    return {"lrn_size": size, "lrn_alpha": alpha / size, "lrn_beta": beta, "lrn_k": k}


def _float(value) -> float:
    """A float in the shortest decimal that it can have been written from."""
    return float(str(np.frombuffer(value, "<f4")[0])) if isinstance(value, memoryview) else value


def _blob(data: memoryview) -> np.ndarray:
    """A BlobProto: shape 7 or num, channels, height, width 1 to 4; data 5 or double_data 8."""
    numbers, old_shape, shape = [], {}, None
    for field, value in _fields(data):
        if field in (5, 8):
            numbers.append(np.frombuffer(value, "<f4" if field == 5 else "<f8"))
        elif field in (1, 2, 3, 4):
            old_shape[field] = value
        elif field == 7:
            dims = [x for number, x in _fields(value) if number == 1]
            shape = [n for x in dims for n in ([x] if isinstance(x, int) else _varints(x))]
    if not numbers:
        raise ValueError("an array without numbers")
    if shape is None:
        shape = [old_shape.get(field, 1) for field in (1, 2, 3, 4)]
    return np.concatenate(numbers).astype(np.float32, copy=False).reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field of a message: whole numbers as int, all else as bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = {1: 8, 5: 4}[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(data):
            raise ValueError("it is cut off")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"no number at byte {position}")


def _varints(data: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        values.append(value)
    return values
