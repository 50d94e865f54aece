"""Reads and writes the records of TFDS's sets, messages `tf.train.Example`, without TensorFlow.

TensorFlow's own class is made from the same definition (tensorflow/core/example/feature.proto); its
package is left alone here, as it need not be installed.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

_DEFINITION = """
name: "alexnet_jax_example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Int64List"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.BytesList"
    label: LABEL_OPTIONAL oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".tensorflow.Int64List"
    label: LABEL_OPTIONAL oneof_index: 0 }
  oneof_decl { name: "kind" } }
message_type { name: "Features"
  field { name: "feature" number: 1 type: TYPE_MESSAGE label: LABEL_REPEATED
    type_name: ".tensorflow.Features.FeatureEntry" }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type: TYPE_MESSAGE label: LABEL_OPTIONAL
      type_name: ".tensorflow.Feature" } } }
message_type { name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.Features"
    label: LABEL_OPTIONAL } }
"""


def _message() -> type:
    """Returns the class of the message, in a pool of its own, which TensorFlow's isn't in."""
    from google.protobuf import text_format

    file = text_format.Parse(_DEFINITION, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _message()


def parse(record: bytes, image_key: str, label_key: str) -> tuple[bytes, int]:
    """Returns the encoded image and the label of a record. Raises ValueError."""
    try:
        features = _Example.FromString(record).features.feature
        return features[image_key].bytes_list.value[0], features[label_key].int64_list.value[0]
    except (DecodeError, IndexError):
        raise ValueError("the record is corrupt") from None


def record(image: bytes, label: int) -> bytes:
    """Returns the record of an image and its label, its fields in the order of their names."""
    example = _Example()
    example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)
