"""Writes prepared copies: squares as JPEG in a TFDS set, for `alexnet_jax.prepare`.

Quality 95 is the 2012 code's (akrizhevsky/cuda-convnet2, make-data). Colours keep their full
resolution (4:4:4): on 60 full-size ImageNet photographs a pixel is off by 1.5 grey levels on
average, at 39 kB an image, and with the usual 4:2:0 by 2.0, at 31 kB (measured). The net that reads
the copy sees the same pixels but for that error.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_jax.data import tfds_files
from alexnet_jax.data.sources import Source
from alexnet_jax.data.squares import Example

QUALITY = 95
HEAD = {"quality": QUALITY}
LAST = tfds_files.INFO  # The file that makes a folder a TFDS set is written last.
SHARD = 1024  # A file has so many images, about 40 MB, which a stop can lose.
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
    return tfds_files.shard_name(name, split, shard, shards)


def is_finished(folder: Path, splits: Iterable[str]) -> bool:
    """Returns whether a folder has what `finish` writes last."""
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
    bad = []

    def decodable() -> Iterator[tuple[bytes, int]]:
        for example in examples:
            if example.problem:
                bad.append(example.problem)
            else:
                yield example.made, example.label

    written, size = tfds_files.write_records(path, decodable())
    return {"examples": written, "bytes": size, "bad": bad}


def finish(
    folder: Path, name: str, side: int, sources: Mapping[str, Source], shards: Mapping
) -> None:
    """Makes the shards a TFDS set. Raises OSError."""
    splits = {}
    for split in sources:
        lines = [shards[file] for file in sorted(shards) if shards[file]["split"] == split]
        counts = [line["examples"] for line in lines]
        splits[split] = counts, sum(line["bytes"] for line in lines)
    first = next(iter(sources.values()))
    key = [{"featureKey": feature} for feature in ("image", "label")]
    tfds_files.write_description(
        folder,
        name=name,
        description=f"{first.name!r}, each image its central square of {side} x {side} pixels.",
        class_names=first.class_names,
        encoding="jpeg",
        side=side,
        splits=splits,
        more={"supervisedKeys": {"tuple": {"items": key}}},
    )
