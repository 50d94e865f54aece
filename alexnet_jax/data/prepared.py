"""Prepared copies: squares as JPEG in a TFDS set, for `alexnet_jax.prepare`.

Quality 95 is the 2012 code's (akrizhevsky/cuda-convnet2, make-data). Colours keep their full
resolution (4:4:4): on 60 full-size ImageNet photographs a pixel is off by 1.5 grey levels on
average, at 39 kB an image, and with the usual 4:2:0 by 2.0, at 31 kB (measured). The net that reads
the copy sees the same pixels but for that error.
"""

import io
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_jax.data import tfdata
from alexnet_jax.data.sources import Source
from alexnet_jax.data.squares import Example

QUALITY = 95
HEAD = {"quality": QUALITY}
LAST = "dataset_info.json"  # with which a folder is a TFDS set
SHARD = 1024  # images in a file, about 40 MB; what a stop can lose
VERSION = "1.0.0"


def copy_name(name: str, resize_size: int) -> str:
    """Returns the copy's TFDS name.

    That of 'imagenette/160px-v2' at 256 pixels is imagenette_160px_v2_prepared_256.
    """
    return f"{stem(name)}_prepared_{resize_size}"


def stem(name: str) -> str:
    """Returns a data set's name as TFDS takes it, in lower case with underscores."""
    own = Path(name.removeprefix("folder:")).name if name.startswith("folder:") else name
    stem = "_".join(re.findall(r"[a-z0-9]+", own.lower()))
    return stem if stem[:1].isalpha() else f"images_{stem}".rstrip("_")


def folder(out: Path, name: str) -> Path:
    """Returns where a copy lies."""
    return out / name / VERSION


def file_name(name: str, split: str, shard: int, shards: int) -> str:
    """Returns the name of a shard's file, as TFDS names it."""
    return f"{name}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def is_finished(folder: Path, splits: Iterable[str]) -> bool:
    """Whether a folder has what `finish` writes last."""
    return (folder / LAST).exists()


def encode(square: np.ndarray) -> bytes:
    """Returns the square as JPEG."""
    jpeg = io.BytesIO()
    Image.fromarray(square).save(jpeg, "JPEG", quality=QUALITY, subsampling="4:4:4")
    return jpeg.getvalue()


def write_shard(path: Path, count: int, resize_size: int, examples: Iterable[Example]) -> dict:
    """Writes a TFRecord file, which appears under its name when whole.

    Returns:
        What the copy's journal keeps of it.

    Raises:
        OSError: it cannot be written.
    """
    tf = tfdata.tensorflow()
    from tensorflow_datasets.proto import tf_example_pb2

    line = {"examples": 0, "bytes": 0, "bad": []}
    aside = path.with_name(path.name + ".tmp")
    try:
        with tf.io.TFRecordWriter(str(aside)) as writer:
            for example in examples:
                if example.problem:
                    line["bad"].append(example.problem)
                    continue
                record = tf_example_pb2.Example()
                record.features.feature["image"].bytes_list.value.append(example.made)
                record.features.feature["label"].int64_list.value.append(example.label)
                encoded = record.SerializeToString(deterministic=True)
                writer.write(encoded)
                line["examples"] += 1
                line["bytes"] += len(encoded)
    except tf.errors.OpError as error:
        raise OSError(" ".join(str(error).split())) from None
    aside.rename(path)
    return line


def finish(
    folder: Path, name: str, side: int, sources: Mapping[str, Source], shards: Mapping
) -> None:
    """Makes the shards a TFDS set. Raises OSError."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, filetype_suffix="tfrecord"
    )
    infos = []
    for split in sources:
        lines = [shards[file] for file in sorted(shards) if shards[file]["split"] == split]
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[line["examples"] for line in lines],
                num_bytes=sum(line["bytes"] for line in lines),
                filename_template=template.replace(split=split),
            )
        )
    first = next(iter(sources.values()))
    image = tfds.features.Image(shape=(side, side, 3), encoding_format="jpeg")
    # TFDS's files are UTF-8, which the names of folders need not be.
    names = [each.encode(errors="backslashreplace").decode() for each in first.class_names]
    label = tfds.features.ClassLabel(names=names)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=""
        ),
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        supervised_keys=("image", "label"),
        description=f"{first.name!r}, each image its central square of {side} x {side} pixels.",
    )
    info.set_file_format("tfrecord")
    info.set_splits(tfds.core.splits.SplitDict(infos))
    aside = folder / "metadata.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    info.write_to_directory(aside)
    # dataset_info.json last: with it the set is there.
    for file in sorted(aside.iterdir(), key=lambda file: file.name == LAST):
        file.rename(folder / file.name)
    aside.rmdir()
