"""Defines Caffe's file formats for protobuf, as far as one of our nets may use them.

The numbers, types and defaults of NetParameter and BlobProto are those of BVLC/caffe,
src/caffe/proto/caffe.proto; raw_data and its type are from NVIDIA/caffe. Enumerations are read as
numbers. Fields without an effect on the outputs of a trained net (fillers, engines) are listed in
`WITHOUT_EFFECT`. All other fields of a layer's parameters that are not listed are unknown to
protobuf, and `unknown_field` finds them.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

# {message: {field: (number, type, default)}}. A default of [] marks a repeated field; a type with a
# capital letter is a message of this table.
_MESSAGES = {
    "BlobShape": {"dim": (1, "int64", [])},
    "BlobProto": {
        "num": (1, "int32", 0),
        "channels": (2, "int32", 0),
        "height": (3, "int32", 0),
        "width": (4, "int32", 0),
        "data": (5, "float", []),
        "shape": (7, "BlobShape", None),
        "double_data": (8, "double", []),
        "raw_data_type": (10, "int32", 2),  # of `RAW_TYPES`
        "raw_data": (12, "bytes", None),
    },
    "NetStateRule": {},
    "TransformationParameter": {
        "scale": (1, "float", 1.0),
        "mirror": (2, "bool", False),
        "crop_size": (3, "uint32", 0),
        "mean_file": (4, "string", ""),
        "mean_value": (5, "float", []),
        "force_color": (6, "bool", False),
        "force_gray": (7, "bool", False),
    },
    "DataParameter": {  # the deprecated form; ImageData's and WindowData's have the same numbers
        "scale": (2, "float", 1.0),
        "mean_file": (3, "string", ""),
        "crop_size": (5, "uint32", 0),
    },
    "InputParameter": {"shape": (1, "BlobShape", [])},
    "ConvolutionParameter": {
        "num_output": (1, "uint32", 0),
        "bias_term": (2, "bool", True),
        "pad": (3, "uint32", []),
        "kernel_size": (4, "uint32", []),
        "group": (5, "uint32", 1),
        "stride": (6, "uint32", []),
        "pad_h": (9, "uint32", 0),
        "pad_w": (10, "uint32", 0),
        "kernel_h": (11, "uint32", 0),
        "kernel_w": (12, "uint32", 0),
        "stride_h": (13, "uint32", 0),
        "stride_w": (14, "uint32", 0),
        "axis": (16, "int32", 1),
        "dilation": (18, "uint32", []),
    },
    "InnerProductParameter": {
        "num_output": (1, "uint32", 0),
        "bias_term": (2, "bool", True),
        "axis": (5, "int32", 1),
        "transpose": (6, "bool", False),
    },
    "PoolingParameter": {
        "pool": (1, "int32", 0),
        "kernel_size": (2, "uint32", 0),
        "stride": (3, "uint32", 1),
        "pad": (4, "uint32", 0),
        "kernel_h": (5, "uint32", 0),
        "kernel_w": (6, "uint32", 0),
        "stride_h": (7, "uint32", 0),
        "stride_w": (8, "uint32", 0),
        "pad_h": (9, "uint32", 0),
        "pad_w": (10, "uint32", 0),
        "global_pooling": (12, "bool", False),
    },
    "LRNParameter": {
        "local_size": (1, "uint32", 5),
        "alpha": (2, "float", 1.0),
        "beta": (3, "float", 0.75),
        "norm_region": (4, "int32", 0),
        "k": (5, "float", 1.0),
    },
    "ReLUParameter": {"negative_slope": (1, "float", 0.0)},
    "DropoutParameter": {"dropout_ratio": (1, "float", 0.5)},
    "NoParameter": {},  # of sigmoid and tanh
    "V0LayerParameter": {},
    "V1LayerParameter": {
        "layer": (1, "V0LayerParameter", None),
        "name": (4, "string", ""),
        "type": (5, "int32", 0),
        "blobs": (6, "BlobProto", []),
        "include": (32, "NetStateRule", []),
        "exclude": (33, "NetStateRule", []),
        "convolution_param": (10, "ConvolutionParameter", None),
        "data_param": (11, "DataParameter", None),
        "dropout_param": (12, "DropoutParameter", None),
        "image_data_param": (15, "DataParameter", None),
        "inner_product_param": (17, "InnerProductParameter", None),
        "lrn_param": (18, "LRNParameter", None),
        "pooling_param": (19, "PoolingParameter", None),
        "window_data_param": (20, "DataParameter", None),
        "relu_param": (30, "ReLUParameter", None),
        "transform_param": (36, "TransformationParameter", None),
        "tanh_param": (37, "NoParameter", None),
        "sigmoid_param": (38, "NoParameter", None),
    },
    "LayerParameter": {
        "name": (1, "string", ""),
        "type": (2, "string", ""),
        "blobs": (7, "BlobProto", []),
        "include": (8, "NetStateRule", []),
        "exclude": (9, "NetStateRule", []),
        "transform_param": (100, "TransformationParameter", None),
        "convolution_param": (106, "ConvolutionParameter", None),
        "data_param": (107, "DataParameter", None),
        "dropout_param": (108, "DropoutParameter", None),
        "image_data_param": (115, "DataParameter", None),
        "inner_product_param": (117, "InnerProductParameter", None),
        "lrn_param": (118, "LRNParameter", None),
        "pooling_param": (121, "PoolingParameter", None),
        "relu_param": (123, "ReLUParameter", None),
        "sigmoid_param": (124, "NoParameter", None),
        "tanh_param": (127, "NoParameter", None),
        "window_data_param": (129, "DataParameter", None),
        "input_param": (143, "InputParameter", None),
    },
    "NetParameter": {
        "layers": (2, "V1LayerParameter", []),
        "input_dim": (4, "int32", []),
        "input_shape": (8, "BlobShape", []),
        "layer": (100, "LayerParameter", []),
    },
}
WITHOUT_EFFECT = {  # {message: numbers of its fields}
    "ConvolutionParameter": (7, 8, 15, 17),  # fillers, engine, force_nd_im2col
    "InnerProductParameter": (3, 4),  # fillers
    "PoolingParameter": (11,),  # engine
    "LRNParameter": (6,),  # engine
    "ReLUParameter": (2,),  # engine
    "NoParameter": (1,),  # engine
}
RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}
V1_TYPES = {  # the names that LayerParameter has for the numbers of V1LayerParameter.LayerType
    **{1: "Accuracy", 2: "BNLL", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout"},
    **{7: "EuclideanLoss", 8: "Flatten", 9: "HDF5Data", 10: "HDF5Output", 11: "Im2col"},
    **{12: "ImageData", 13: "InfogainLoss", 14: "InnerProduct", 15: "LRN"},
    **{16: "MultinomialLogisticLoss", 17: "Pooling", 18: "ReLU", 19: "Sigmoid", 20: "Softmax"},
    **{21: "SoftmaxWithLoss", 22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise"},
    **{26: "Power", 27: "SigmoidCrossEntropyLoss", 28: "HingeLoss", 29: "MemoryData"},
    **{30: "ArgMax", 31: "Threshold", 32: "DummyData", 33: "Slice", 34: "MVN", 35: "AbsVal"},
    **{36: "Silence", 37: "ContrastiveLoss", 38: "Exp", 39: "Deconvolution"},
}


def parse(message: str, data: bytes) -> Message:
    """Parses `data` as the message "NetParameter" or "BlobProto".

    Raises:
        google.protobuf.message.DecodeError: the data are damaged.
    """
    return _CLASSES[f"{_PACKAGE}.{message}"].FromString(data)


def unknown_field(parameters: Message) -> int | None:
    """Returns the number of a field that is not in `_MESSAGES` but may have an effect, or None."""
    without_effect = WITHOUT_EFFECT.get(parameters.DESCRIPTOR.name, ())
    numbers = (field.field_number for field in UnknownFieldSet(parameters))
    return next((number for number in numbers if number not in without_effect), None)


_PACKAGE = "alexnet_jax.caffe"


def _classes() -> dict[str, type[Message]]:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="alexnet_jax/caffe.proto", package=_PACKAGE)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, default) in fields.items():
            new = message.field.add(name=field, number=number, label=kinds.LABEL_OPTIONAL)
            if kind in _MESSAGES:
                new.type, new.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                new.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
            if isinstance(default, list):
                new.label = kinds.LABEL_REPEATED
            elif default is not None:
                new.default_value = str(default).lower()
    pool = descriptor_pool.DescriptorPool()  # Another package may define Caffe's messages, too.
    pool.Add(file)
    return message_factory.GetMessageClassesForFiles([file.name], pool)


_CLASSES = _classes()
