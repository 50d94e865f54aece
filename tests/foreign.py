"""Files of other programs for tests: Caffe's by protobuf, cuda-convnet's as Python 2 pickled them.

And cuda-convnet's layers in plain NumPy, from what its source says, to compare with.
"""

import struct

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Caffe


def _caffe_messages():
    """NetParameter and BlobProto of BVLC/caffe, src/caffe/proto/caffe.proto, as far as needed."""
    kinds = descriptor_pb2.FieldDescriptorProto
    fields = {
        "BlobShape": [("dim", 1, kinds.TYPE_INT64, "packed")],
        "BlobProto": [
            ("num", 1, kinds.TYPE_INT32, ""),
            ("channels", 2, kinds.TYPE_INT32, ""),
            ("height", 3, kinds.TYPE_INT32, ""),
            ("width", 4, kinds.TYPE_INT32, ""),
            ("data", 5, kinds.TYPE_FLOAT, "packed"),
            ("shape", 7, "BlobShape", ""),
            ("raw_data_type", 10, kinds.TYPE_INT32, ""),
            ("raw_data", 12, kinds.TYPE_BYTES, ""),
        ],
        "LRNParameter": [
            ("local_size", 1, kinds.TYPE_UINT32, ""),
            ("alpha", 2, kinds.TYPE_FLOAT, ""),
            ("beta", 3, kinds.TYPE_FLOAT, ""),
            ("norm_region", 4, kinds.TYPE_INT32, ""),
            ("k", 5, kinds.TYPE_FLOAT, ""),
        ],
        "ConvolutionParameter": [
            ("num_output", 1, kinds.TYPE_UINT32, ""),
            ("bias_term", 2, kinds.TYPE_BOOL, ""),
            ("pad", 3, kinds.TYPE_UINT32, "repeated"),
            ("kernel_size", 4, kinds.TYPE_UINT32, "repeated"),
            ("group", 5, kinds.TYPE_UINT32, ""),
            ("stride", 6, kinds.TYPE_UINT32, "repeated"),
            ("weight_filler", 7, "NoFields", ""),
            ("kernel_h", 11, kinds.TYPE_UINT32, ""),
            ("kernel_w", 12, kinds.TYPE_UINT32, ""),
            ("dilation", 18, kinds.TYPE_UINT32, "repeated"),
            ("of_a_fork", 99, kinds.TYPE_UINT32, ""),
        ],
        "PoolingParameter": [
            ("pool", 1, kinds.TYPE_INT32, ""),
            ("kernel_size", 2, kinds.TYPE_UINT32, ""),
            ("stride", 3, kinds.TYPE_UINT32, ""),
            ("pad", 4, kinds.TYPE_UINT32, ""),
        ],
        "ReLUParameter": [("negative_slope", 1, kinds.TYPE_FLOAT, "")],
        "DropoutParameter": [("dropout_ratio", 1, kinds.TYPE_FLOAT, "")],
        "TransformationParameter": [
            ("scale", 1, kinds.TYPE_FLOAT, ""),
            ("crop_size", 3, kinds.TYPE_UINT32, ""),
            ("mean_value", 5, kinds.TYPE_FLOAT, "repeated"),
        ],
        "NoFields": [],
        "V0LayerParameter": [("name", 1, kinds.TYPE_STRING, "")],
        "V1LayerParameter": [
            ("layer", 1, "V0LayerParameter", ""),
            ("bottom", 2, kinds.TYPE_STRING, "repeated"),
            ("top", 3, kinds.TYPE_STRING, "repeated"),
            ("name", 4, kinds.TYPE_STRING, ""),
            ("type", 5, kinds.TYPE_INT32, ""),  # an enum, which is written as a number
            ("blobs", 6, "BlobProto", "repeated"),
            ("convolution_param", 10, "ConvolutionParameter", ""),
            ("dropout_param", 12, "DropoutParameter", ""),
            ("lrn_param", 18, "LRNParameter", ""),
            ("pooling_param", 19, "PoolingParameter", ""),
            ("relu_param", 30, "ReLUParameter", ""),
            ("transform_param", 36, "TransformationParameter", ""),
        ],
        "LayerParameter": [
            ("name", 1, kinds.TYPE_STRING, ""),
            ("type", 2, kinds.TYPE_STRING, ""),
            ("bottom", 3, kinds.TYPE_STRING, "repeated"),
            ("blobs", 7, "BlobProto", "repeated"),
            ("transform_param", 100, "TransformationParameter", ""),
            ("convolution_param", 106, "ConvolutionParameter", ""),
            ("dropout_param", 108, "DropoutParameter", ""),
            ("lrn_param", 118, "LRNParameter", ""),
            ("pooling_param", 121, "PoolingParameter", ""),
            ("relu_param", 123, "ReLUParameter", ""),
        ],
        "NetParameter": [
            ("name", 1, kinds.TYPE_STRING, ""),
            ("layers", 2, "V1LayerParameter", "repeated"),
            ("layer", 100, "LayerParameter", "repeated"),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="caffe_test.proto", package="caffe_test")
    for name, rows in fields.items():
        message = file.message_type.add(name=name)
        for field, number, kind, how in rows:
            one = kinds.LABEL_REPEATED if how else kinds.LABEL_OPTIONAL
            new = message.field.add(name=field, number=number, label=one)
            if isinstance(kind, str):
                new.type, new.type_name = kinds.TYPE_MESSAGE, f".caffe_test.{kind}"
            else:
                new.type = kind
            if how == "packed":
                new.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClassesForFiles(["caffe_test.proto"], pool)


_MESSAGES = _caffe_messages()
_V1 = {
    "Data": 5,
    "Power": 26,
    "Convolution": 4,
    "InnerProduct": 14,
    "ReLU": 18,
    "Pooling": 17,
    "LRN": 15,
    "Dropout": 6,
}
_FIRST_LAYERS = {
    "bvlc_alexnet": ("ReLU", "LRN", "Pooling"),
    "caffenet": ("ReLU", "Pooling", "LRN"),
}


def caffemodel(
    net: str,
    arrays: dict,
    *,
    old: bool = False,
    told: dict | None = None,
    raw: bool = False,
    loss: str = "",
) -> bytes:
    """A net of `_FIRST_LAYERS` with PyTorch's arrays 'conv1.weight', …

    Args:
        old: in V1's layers.
        told: {layer: {field of LayerParameter: value, or {field of its message: value}}}.
        raw: the arrays as NVIDIA's Caffe writes them, float16.
        loss: the type of a layer at the end.
    """
    told = told or {}
    message = _MESSAGES["caffe_test.NetParameter"](name=net)
    relu_drop = ("ReLU", "Dropout")
    then = {"conv1": _FIRST_LAYERS[net], "conv2": _FIRST_LAYERS[net], "conv5": ("ReLU", "Pooling")}
    then |= {"conv3": ("ReLU",), "conv4": ("ReLU",), "fc6": relu_drop, "fc7": relu_drop, "fc8": ()}
    if "data" in told:
        _tell(_add(message, "data", "Data", old), told["data"])
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        kind = "Convolution" if name.startswith("conv") else "InnerProduct"
        layer = _add(message, name, kind, old)
        for array in (arrays[f"{name}.weight"], arrays[f"{name}.bias"]):
            if name == "conv1" and array.ndim == 4:
                array = array[:, ::-1]  # it reads BGR
            _blob(layer.blobs.add(), array, old, raw)
        _tell(layer, told.get(name, {}))
        for operation in then[name]:
            after = _add(message, operation.lower() + name[-1], operation, old)
            if operation == "LRN":
                after.lrn_param.local_size, after.lrn_param.alpha = 5, 1e-4
            _tell(after, told.get(after.name, {}))
    if loss:
        _add(message, "loss", loss, old)
    return message.SerializeToString()


def first_format_caffemodel() -> bytes:
    """A net of Caffe's first format."""
    message = _MESSAGES["caffe_test.NetParameter"]()
    message.layers.add().layer.name = "conv1"
    return message.SerializeToString()


def binaryproto(mean: np.ndarray) -> bytes:
    """A mean image [H, W, 3], RGB, as Caffe keeps it."""
    blob = _MESSAGES["caffe_test.BlobProto"]()
    _blob(blob, mean[:, :, ::-1].transpose(2, 0, 1), old=True)
    return blob.SerializeToString()


def _add(message, name, kind, old):
    if old:
        return message.layers.add(name=name, type=_V1[kind])
    return message.layer.add(name=name, type=kind)


def _tell(layer, told):
    for field, value in told.items():
        if not isinstance(value, dict):
            setattr(layer, field, value)
            continue
        getattr(layer, field).SetInParent()
        for name, number in value.items():
            if isinstance(number, list):
                getattr(getattr(layer, field), name).extend(number)
            else:
                setattr(getattr(layer, field), name, number)


def _blob(blob, array, old, raw=False):
    if raw:
        blob.raw_data_type, blob.raw_data = 2, array.astype("<f2").tobytes()
    else:
        blob.data.extend(array.ravel().tolist())
    if old:
        shape = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = shape
    else:
        blob.shape.dim.extend(array.shape)


# Python 2's pickles


class Instance:
    """An object of a class that only its own program has, with this state."""

    def __init__(self, module: str, name: str, state: dict):
        self.module, self.name, self.state = module, name, state


def python2_pickle(thing) -> bytes:
    """`thing` as Python 2's cPickle and NumPy wrote it, protocol 2: texts are byte strings."""
    out, memo = [b"\x80\x02"], {}

    def text(value):
        data = value if isinstance(value, bytes) else value.encode("latin-1")
        out.append(b"T" + struct.pack("<i", len(data)) + data)

    def name(module, attribute):
        out.append(f"c{module}\n{attribute}\n".encode())

    def remember(value):
        memo[id(value)] = len(memo), value
        out.append(b"r" + struct.pack("<I", memo[id(value)][0]))

    def save(value):
        if id(value) in memo and memo[id(value)][1] is value:
            out.append(b"j" + struct.pack("<I", memo[id(value)][0]))
        elif value is None or value is True or value is False:
            out.append({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, int):
            out.append(b"J" + struct.pack("<i", value))
        elif isinstance(value, float):
            out.append(b"G" + struct.pack(">d", value))
        elif isinstance(value, str | bytes):
            text(value)
        elif isinstance(value, tuple):
            out.append(b"(")
            for each in value:
                save(each)
            out.append(b"t")
        elif isinstance(value, list):
            out.append(b"]")
            remember(value)
            out.append(b"(")
            for each in value:
                save(each)
            out.append(b"e")
        elif isinstance(value, dict):
            out.append(b"}")
            remember(value)
            out.append(b"(")
            for pair in value.items():
                for each in pair:
                    save(each)
            out.append(b"u")
        elif isinstance(value, np.ndarray):
            name("numpy.core.multiarray", "_reconstruct")
            out.append(b"(")
            name("numpy", "ndarray")
            save((0,))
            text("b")
            out.append(b"tR")
            remember(value)
            fortran = value.flags.f_contiguous and not value.flags.c_contiguous
            out.append(b"(")
            save(1)
            save(value.shape)
            name("numpy", "dtype")
            save((value.dtype.str[1:], 0, 1))
            out.append(b"R")
            save((3, "<", None, None, None, -1, -1, 0))
            out.append(b"b")
            save(fortran)
            text(value.tobytes(order="F" if fortran else "C"))
            out.append(b"tb")
        elif isinstance(value, Instance):  # of an old-style class
            out.append(b"(")
            name(value.module, value.name)
            out.append(b"o")
            remember(value)
            save(value.state)
            out.append(b"b")
        else:
            raise TypeError(type(value))

    save(thing)
    return b"".join([*out, b"."])


# cuda-convnet


def checkpoint(layers: list[dict]) -> bytes:
    """A checkpoint of these layers, with its option parser (gpumodel.py's save_state)."""
    options = {"options": {"gpu": Instance("options", "Option", {"value": [0, 1]})}}
    state = {"layers": layers, "epoch": 91, "train_outputs": [({"logprob": [1.5, 0.4]}, 128)]}
    op = Instance("options", "OptionsParser", options)
    return python2_pickle({"model_state": state, "op": op})


class Net:
    """Builds the layers' dictionaries as layer.py leaves them in a checkpoint."""

    def __init__(self, size: int, seed: int):
        self.rng = np.random.default_rng(seed)
        self.layers = [{"name": "data", "type": "data", "outputs": 3 * size**2}]
        self.shapes = {"data": (3, size)}

    def add(self, name, kind, inputs, shape, **fields):
        layer = {"name": name, "type": kind, "inputs": list(inputs), **fields}
        layer["inputLayers"] = [
            one for each in inputs for one in self.layers if one["name"] == each
        ]
        layer["outputs"] = shape[0] * shape[1] ** 2
        self.layers.append(layer)
        self.shapes[name] = shape

    def conv(self, name, inputs, filters, size, stride=1, padding=0, bias=0.0):
        channels, side = [self.shapes[each][0] for each in inputs], self.shapes[inputs[0]][1]
        modules = 1 + -(-(side + 2 * padding - size) // stride)
        count = len(inputs)
        std = (2 / (size**2 * sum(channels))) ** 0.5
        self.add(
            *(name, "conv", inputs, (filters, modules)),
            filters=filters,
            channels=channels,
            filterSize=[size] * count,
            padding=[-padding] * count,
            stride=[stride] * count,
            groups=[1] * count,
            imgSize=[side] * count,
            modulesX=modules,
            weights=[
                self.rng.normal(0, std, (c * size**2, filters)).astype(np.float32) for c in channels
            ],
            biases=self.rng.normal(bias, 1, (filters, 1)).astype(np.float32),
        )

    def fc(self, name, inputs, units, scale=1.0):
        sizes = [self.shapes[each][0] * self.shapes[each][1] ** 2 for each in inputs]
        std = scale * (2 / sum(sizes)) ** 0.5
        self.add(
            *(name, "fc", inputs, (units, 1)),
            weights=[
                np.asfortranarray(self.rng.normal(0, std, (n, units)).astype(np.float32))
                for n in sizes
            ],
            biases=self.rng.normal(0, scale, (1, units)).astype(np.float32),
        )

    def neuron(self, source):
        neuron = {"type": "relu", "params": {}}
        self.add(f"{source}_neuron", "neuron", [source], self.shapes[source], neuron=neuron)

    def cmrnorm(self, name, source):
        numbers = {"size": 5, "scale": 1e-4 / 5, "pow": 0.75, "minDiv": 2.0}
        self.add(name, "cmrnorm", [source], self.shapes[source], **numbers)

    def rnorm(self, name, source):
        numbers = {"size": 5, "scale": 1e-3 / 25, "pow": 0.75}
        self.add(name, "rnorm", [source], self.shapes[source], **numbers)

    def pool(self, name, source):
        channels, side = self.shapes[source]
        out = 1 + -(-(side - 3) // 2)
        self.add(
            *(name, "pool", [source], (channels, out)), pool="max", sizeX=3, stride=2, outputsX=out
        )

    def hs(self, name, source):
        self.add(name, "hs", [source], self.shapes[source], keep=0.5, enable=1)


def net145(maps=(3, 8, 12, 12, 8), hidden=16, classes=10, size=99, seed=0) -> list[dict]:
    """CHM layers-145.cfg with `maps` and `hidden` per tower; its second fc reads tower b first."""
    net = Net(size, seed)
    for t in "ab":
        net.conv(f"conv1{t}", ["data"], maps[0], 11, stride=4)
        net.cmrnorm(f"rnorm1{t}", f"conv1{t}")
        net.pool(f"pool1{t}", f"rnorm1{t}")
        net.neuron(f"pool1{t}")
        net.conv(f"conv2{t}", [f"pool1{t}_neuron"], maps[1], 5, padding=2, bias=1.0)
        net.neuron(f"conv2{t}")
        net.cmrnorm(f"rnorm2{t}", f"conv2{t}_neuron")
        net.rnorm(f"cnorm2{t}", f"rnorm2{t}")
        net.pool(f"pool2{t}", f"cnorm2{t}")
    for t in "ab":
        net.conv(f"conv3{t}", ["pool2a", "pool2b"], maps[2], 3, padding=1)
        net.neuron(f"conv3{t}")
        net.conv(f"conv4{t}", [f"conv3{t}_neuron"], maps[3], 3, padding=1, bias=1.0)
        net.neuron(f"conv4{t}")
        net.conv(f"conv5{t}", [f"conv4{t}_neuron"], maps[4], 3, padding=1, bias=1.0)
        net.pool(f"pool3{t}", f"conv5{t}")
        net.neuron(f"pool3{t}")
    for t in "ab":
        net.fc(f"fc2048{t}", ["pool3a_neuron", "pool3b_neuron"], hidden)
        net.neuron(f"fc2048{t}")
        net.hs(f"hs1{t}", f"fc2048{t}_neuron")
    for t, inputs in (("a", ["hs1a", "hs1b"]), ("b", ["hs1b", "hs1a"])):
        net.fc(f"fc2048b{t}", inputs, hidden)
        net.neuron(f"fc2048b{t}")
        net.hs(f"hs2{t}", f"fc2048b{t}_neuron")
    net.fc("fc1000", ["hs2a", "hs2b"], classes, scale=1 / 32)
    net.add("probs", "softmax", ["fc1000"], (classes, 1))
    return net.layers


def net145_half(maps=(6, 16, 24, 24, 32), hidden=32, classes=10, size=99, seed=0) -> list[dict]:
    """CHM layers-145-half.cfg: one tower."""
    net = Net(size, seed)
    net.conv("conv1a", ["data"], maps[0], 11, stride=4)
    net.cmrnorm("rnorm1a", "conv1a")
    net.pool("pool1a", "rnorm1a")
    net.neuron("pool1a")
    net.conv("conv2a", ["pool1a_neuron"], maps[1], 5, padding=2, bias=1.0)
    net.neuron("conv2a")
    net.cmrnorm("rnorm2a", "conv2a_neuron")
    net.rnorm("cnorm2a", "rnorm2a")
    net.pool("pool2a", "cnorm2a")
    net.conv("conv3a", ["pool2a"], maps[2], 3, padding=1)
    net.neuron("conv3a")
    net.conv("conv4a", ["conv3a_neuron"], maps[3], 3, padding=1, bias=1.0)
    net.neuron("conv4a")
    net.conv("conv5a", ["conv4a_neuron"], maps[4], 3, padding=1, bias=1.0)
    net.pool("pool3a", "conv5a")
    net.neuron("pool3a")
    net.fc("fc4096a", ["pool3a_neuron"], hidden)
    net.neuron("fc4096a")
    net.hs("hs1a", "fc4096a_neuron")
    net.fc("fc4096ba", ["hs1a"], hidden)
    net.neuron("fc4096ba")
    net.hs("hs2a", "fc4096ba_neuron")
    net.fc("fc1000", ["hs2a"], classes, scale=1 / 32)
    return net.layers


def run(layers: list[dict], image: np.ndarray) -> np.ndarray:
    """fc1000 of one image [3, y, x], float64, layer by layer in testing."""
    values = {"data": image.astype(np.float64)}
    for layer in layers[1:]:
        inputs = [values[name] for name in layer["inputs"]]
        values[layer["name"]] = _LAYERS[layer["type"]](layer, inputs)
    return values["fc1000"]


def _conv(layer, inputs):
    total = 0
    for i, x in enumerate(inputs):
        size, stride, padding = (layer[key][i] for key in ("filterSize", "stride", "padding"))
        out = layer["modulesX"]
        end = (out - 1) * stride + size  # past the border it reads zeros
        padded = np.zeros((len(x), end, end))
        part = x[:, : end + padding, : end + padding]
        padded[:, -padding : -padding + part.shape[1], -padding : -padding + part.shape[2]] = part
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
        columns = windows[:, ::stride, ::stride].transpose(1, 2, 0, 3, 4).reshape(out**2, -1)
        total = total + (columns @ layer["weights"][i]).T.reshape(-1, out, out)
    return total + layer["biases"][:, :, None]


def _fc(layer, inputs):
    parts = [x.ravel() @ w for x, w in zip(inputs, layer["weights"], strict=True)]
    return sum(parts) + layer["biases"][0]


def _pool(layer, inputs):
    (x,) = inputs
    starts = [2 * i for i in range(layer["outputsX"])]
    return np.stack(
        [np.stack([x[:, r : r + 3, c : c + 3].max((1, 2)) for c in starts], 1) for r in starts], 1
    )


def _cmrnorm(layer, inputs):
    (x,) = inputs
    sums = [np.square(x[max(0, i - 2) : i + 3]).sum(axis=0) for i in range(len(x))]
    return x * (layer["minDiv"] + layer["scale"] * np.stack(sums)) ** -layer["pow"]


def _rnorm(layer, inputs):
    (x,) = inputs
    side = x.shape[1]
    sums = np.empty_like(x)
    for r in range(side):
        for c in range(side):
            window = x[:, max(0, r - 2) : r + 3, max(0, c - 2) : c + 3]
            sums[:, r, c] = np.square(window).sum(axis=(1, 2))
    return x * (1 + layer["scale"] * sums) ** -layer["pow"]


_LAYERS = {
    "conv": _conv,
    "fc": _fc,
    "pool": _pool,
    "cmrnorm": _cmrnorm,
    "rnorm": _rnorm,
    "neuron": lambda _, inputs: np.maximum(inputs[0], 0),
    "hs": lambda layer, inputs: layer["keep"] * inputs[0],
    "softmax": lambda _, inputs: inputs[0],
}
