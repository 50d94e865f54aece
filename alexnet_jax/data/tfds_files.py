"""Writes sets as TFDS keeps them, without TFDS: TFRecord files, and what describes them.

TFDS reads such a set by its name, and so does data/sources/tfds.py. The files are those that TFDS
writes of the same set, byte for byte.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from alexnet_jax.data import examples, tfrecord
from alexnet_jax.records import files

INFO, FEATURES = "dataset_info.json", "features.json"
DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_FEATURES = "tensorflow_datasets.core.features"


def shard_name(
    name: str,
    split: str,
    number: int,
    count: int,
    file_format: str = "tfrecord",
    template: str = DEFAULT_TEMPLATE,
) -> str:
    """Returns the name of a split's file, such as photos-train.tfrecord-00000-of-00001."""
    digits = max(5, len(str(count)))
    of = f"{number:0{digits}}-of-{count:0{digits}}"
    return template.format(
        DATASET=name,
        SPLIT=split,
        FILEFORMAT=file_format,
        SHARD_X_OF_Y=of,
        SHARD_INDEX=of.partition("-")[0],
        NUM_SHARDS=of.rpartition("-")[2],
    )


def write_records(path: Path, images: Iterable[tuple[bytes, int]]) -> tuple[int, int]:
    """Writes a file of encoded images and their labels, which appears under its name when whole.

    Returns:
        How many records it holds, and how many bytes of them.

    Raises:
        OSError: it cannot be written.
    """
    count = size = 0
    with files.replacing(path) as file:
        for image, label in images:
            record = examples.record(image, label)
            tfrecord.write(file, record)
            count, size = count + 1, size + len(record)
    return count, size


def write_description(
    folder: Path,
    *,
    name: str,
    description: str,
    class_names: Sequence[str],
    encoding: str,
    side: int | None,
    splits: Mapping[str, tuple[Sequence[int], int]],
    more: Mapping[str, object],
) -> None:
    """Makes a folder of record files a set of TFDS's, by dataset_info.json, which comes last.

    Args:
        folder: where the files lie, NAME/VERSION.
        name: the set's name.
        description: what it is.
        class_names: the classes in the order of the labels.
        encoding: the images' format, "jpeg" or "png".
        side: height and width of all images; None where they differ.
        splits: of each split the numbers of examples in its files, and the bytes of its records.
        more: further fields of dataset_info.json.

    Raises:
        OSError: a file cannot be written.
    """
    info = {
        "description": description,
        "fileFormat": "tfrecord",
        "name": name,
        "splits": [
            {
                "filepathTemplate": DEFAULT_TEMPLATE,
                "name": split,
                "numBytes": str(size),
                "shardLengths": list(map(str, counts)),
            }
            for split, (counts, size) in splits.items()
        ],
        "version": folder.name,
        **more,
    }
    # TFDS's files are UTF-8, which the names of folders need not be.
    names = [each.encode(errors="backslashreplace").decode() for each in class_names]
    files.replace(folder / "label.labels.txt", ("\n".join(names) + "\n").encode())
    files.replace(
        folder / FEATURES,
        json.dumps(_features(len(names), encoding, side), indent=4, sort_keys=True).encode(),
    )
    files.replace(folder / INFO, json.dumps(info, indent=2, sort_keys=True).encode())


def _features(num_classes: int, encoding: str, side: int | None) -> dict:
    """Returns what features.json holds of images with one label each."""
    length = "-1" if side is None else str(side)
    image = {"dtype": "uint8", "encodingFormat": encoding}
    image["shape"] = {"dimensions": [length, length, "3"]}
    features = {
        "image": {"image": image, "pythonClassName": f"{_FEATURES}.image_feature.Image"},
        "label": {
            "classLabel": {"numClasses": str(num_classes)},
            "pythonClassName": f"{_FEATURES}.class_label_feature.ClassLabel",
        },
    }
    return {
        "featuresDict": {"features": features},
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
    }
