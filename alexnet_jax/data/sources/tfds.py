"""The sets that TFDS has prepared, read from their own files: DATA_DIR/NAME[/CONFIG]/VERSION.

dataset_info.json names the splits and how many examples each file holds, features.json what an
example holds, LABEL.labels.txt the classes. TFDS itself is needed only to prepare a set.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data import examples, files, photos
from alexnet_jax.data.identity import normal_name
from alexnet_jax.data.sources import download, records, splits
from alexnet_jax.data.sources.source import (
    Part,
    Progress,
    Source,
    SourceMissing,
    digest,
    one_line,
)
from alexnet_jax.data.sources.splits import Rows, Shard
from alexnet_jax.data.tfds_files import DEFAULT_TEMPLATE, FEATURES, INFO, shard_name
from alexnet_jax.errors import UserError

_NAME = re.compile(
    r"(?P<name>[a-zA-Z]\w*)(/(?P<config>[\w+.-]+))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?"
)


@dataclass(frozen=True)
class TfdsSet:
    """What the files of a prepared set say of it.

    Attributes:
        full_name: name, configuration and version, with slashes between.
        file_format: `tfrecord`, or another of TFDS's.
        image_key: the feature that is the image.
        image_dtype: the type of its numbers.
        label_key: the feature that is the label.
        class_names: the classes in the order of the labels.
        splits: the files of each split.
    """

    full_name: str
    file_format: str
    image_key: str
    image_dtype: str
    label_key: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Sequence[Shard]]


def open_set(
    name: str, data_dir: str | None, split: str, may_download: bool, progress: Progress
) -> Source:
    """Opens a split of a TFDS set, or of the photos; see `open_source`."""
    root = photos.root(data_dir)
    if name == "photos":
        try:
            folder = photos.dataset_dir(data_dir, progress)
        except UserError as error:
            raise SourceMissing(str(error)) from None
    else:
        folder = _find(name, root) or download.prepared_folder(
            name, data_dir, root, may_download, progress
        )
    return _open(name, folder, _read(name, folder), split)


def _find(name: str, root: Path) -> Path | None:
    """Returns the folder of the newest version of a set that is prepared, or None."""
    match = _NAME.fullmatch(name)
    if not match:
        return None
    place = root / match["name"] / (match["config"] or "")
    wanted = (match["version"] or "*.*.*").split(".")
    for folder in (place, place / _default_config(place)):
        versions = [
            tuple(map(int, numbers))
            for numbers in (each.split(".") for each in files.subfolders(folder))
            if len(numbers) == 3 and all(number.isdecimal() for number in numbers)
        ]
        for version in sorted(versions, reverse=True):
            found = folder / ".".join(map(str, version))
            agrees = all(w in ("*", str(n)) for w, n in zip(wanted, version, strict=True))
            if agrees and (found / INFO).exists():
                return found
    return None


def _default_config(place: Path) -> str:
    """Returns the configuration that TFDS takes where a name has none; empty where unknown."""
    try:
        metadata = json.loads((place / ".config" / "metadata.json").read_bytes())
        return metadata.get("default_config_name") or ""
    except (OSError, ValueError, AttributeError):
        return ""


def _read(name: str, folder: Path) -> TfdsSet:
    """Returns what a set's files say of it. Raises UserError."""
    try:
        info = json.loads((folder / INFO).read_bytes())
        path = folder / FEATURES
        kinds = json.loads(path.read_bytes()) if path.exists() else download.features(name)
        features = _features(kinds)
        image_key, label_key = _supervised_keys(name, info, features)
        file_format = info.get("fileFormat") or "tfrecord"
        return TfdsSet(
            full_name="/".join(filter(None, map(info.get, ("name", "configName", "version")))),
            file_format=file_format,
            image_key=image_key,
            image_dtype=features[image_key].get("dtype") or "uint8",
            label_key=label_key,
            class_names=_class_names(folder, label_key, features[label_key]),
            splits={
                each["name"]: _shards(folder, info["name"], file_format, each)
                for each in info.get("splits", ())
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{INFO}, {FEATURES} or the classes in {folder} cannot be read ({one_line(error)});"
            " copy or prepare the data set again"
        ) from None


def _features(value: dict) -> dict[str, dict]:
    """Returns {feature: its content, with its class's name under `kind`} out of features.json."""

    def content(value: dict) -> dict:
        kind = (value.get("pythonClassName") or value["type"]).rpartition(".")[2]
        if "type" in value:  # As TFDS wrote it before version 4.5.
            found = value["content"]
            found = json.loads(found) if isinstance(found, str) else found
        else:
            found = next((each for each in value.values() if isinstance(each, dict)), {})
        return {**found, "kind": kind}

    whole = content(value)
    features = whole.get("features", whole)
    return {key: content(each) for key, each in features.items() if isinstance(each, dict)}


def _supervised_keys(name: str, info: dict, features: Mapping[str, dict]) -> tuple[str, str]:
    """Returns the features that are the image and its label. Raises UserError."""
    keys = info.get("supervisedKeys") or {"input": "image", "output": "label"}
    if "tuple" in keys:
        keys = [each.get("featureKey") for each in keys["tuple"]["items"]]
    else:
        keys = [keys.get("input"), keys.get("output")]
    if [features.get(key, {}).get("kind") for key in keys] != ["Image", "ClassLabel"]:
        raise UserError(
            f"data set {name!r} is not image classification: it needs an image with one class"
            f" label, and has {', '.join(features)}"
        )
    return keys[0], keys[1]


def _class_names(folder: Path, label_key: str, label: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the classes, which are numbers where TFDS has no names for them."""
    path = folder / f"{label_key.replace('/', '.')}.labels.txt"
    if not path.exists():
        count = label.get("numClasses") or label["num_classes"]
        return tuple(map(str, range(int(count))))
    lines = (line.strip() for line in path.read_text(encoding="utf-8").split("\n"))
    return tuple(map(normal_name, filter(None, lines)))


def _shards(folder: Path, name: str, file_format: str, split: Mapping[str, Any]) -> list[Shard]:
    """Returns the files of a split, in the order in which they are read."""
    counts = list(map(int, split.get("shardLengths", ())))
    template = split.get("filepathTemplate") or DEFAULT_TEMPLATE
    paths = [
        shard_name(name, split["name"], number, len(counts), file_format, template)
        for number in range(len(counts))
    ]
    return [
        Shard(str(folder / path), count) for path, count in zip(sorted(paths), counts, strict=True)
    ]


def _open(name: str, folder: Path, known: TfdsSet, split: str) -> Source:
    """Opens a split of a set. Raises UserError."""
    try:
        rows = splits.rows(split, known.splits)
    except ValueError as error:
        raise UserError(
            f"data set {name!r} has no split {split!r}: {error}; it has {', '.join(known.splits)}"
        ) from None
    if not rows:
        raise UserError(f"split {split!r} of data set {name!r} has no examples")
    sizes = [_file_size(each.filename) for each in rows]
    if known.file_format == "tfrecord":
        record = records.tfrecords(rows, sizes)
    elif known.file_format == "array_record":
        record = records.array_records(rows)
    else:
        raise UserError(
            f"data set {name!r} in {folder} is stored as {known.file_format!r}: prepare it"
            " again with `tfds build --file_format=tfrecord`"
        )
    if known.image_dtype not in ("uint8", "uint16"):  # Others are numbers in the pixels of a PNG.
        raise UserError(
            f"the images of data set {name!r} are {known.image_dtype}, whose black and white are"
            " not known: prepare them as uint8 or uint16"
        )
    ends = np.cumsum([each.take for each in rows])

    def describe(i: int) -> str:
        shard = int(np.searchsorted(ends, i, side="right"))
        row = rows[shard].skip + i - (ends[shard] - rows[shard].take)
        return f"{rows[shard].filename}, record {row}"

    def read(i: int) -> tuple[bytes, int]:
        return examples.parse(record(i), known.image_key, known.label_key)

    fingerprint = _fingerprint(known, rows)
    times = [os.stat(each.filename).st_mtime_ns for each in rows]
    return Source(
        name=name,
        split=split,
        num_examples=int(ends[-1]),
        class_names=known.class_names,
        fingerprint=fingerprint,
        stamp=digest([fingerprint, times]),
        origin=known.full_name,
        read=read,
        describe=describe,
        parts=_parts(known, rows),
    )


def _fingerprint(known: TfdsSet, rows: Sequence[Rows]) -> str:
    """Returns the digest of names and sizes, not paths and times: a copy elsewhere is the same."""
    shards = [
        (os.path.basename(each.filename), _file_size(each.filename), each.skip, each.take)
        for each in rows
    ]
    names = known.class_names
    return digest([known.full_name, known.image_key, known.label_key, names, shards])


def _parts(known: TfdsSet, rows: Sequence[Rows]) -> tuple[Part, ...]:
    """Returns which examples of which whole splits the rows are."""
    begins = {}  # {file: the split that it belongs to, and the example that it begins with}
    for split, shards in known.splits.items():
        position = 0
        for shard in shards:
            begins[shard.path] = split, position
            position += shard.examples
    parts: list[Part] = []
    wholes: dict[str, str] = {}
    for each in rows:
        split, begin = begins[each.filename]
        first, end = begin + each.skip, begin + each.skip + each.take
        if parts and (parts[-1].split, parts[-1].end) == (split, first):
            parts[-1] = replace(parts[-1], end=end)
            continue
        if split not in wholes:
            wholes[split] = _fingerprint(known, splits.rows(split, known.splits))
        parts.append(Part(split, first, end, wholes[split]))
    return tuple(parts)


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; the data set is incomplete, copy or prepare it again"
        ) from None
