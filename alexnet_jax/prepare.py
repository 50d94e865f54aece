"""Shrinks a data set once, as in 2012, to a copy of R x R squares that configurations read by name.

python -m alexnet_jax.prepare --config=configs/imagenet2012.py --out=DIR

R is the side that the configuration resizes to, 256 for the paper's 224-pixel crops. The squares
are those of data/decode.py: the net that reads the copy sees the same pixels but for the JPEG's
error. Quality 95 is the 2012 code's (akrizhevsky/cuda-convnet2, make-data). Colours keep their full
resolution (4:4:4): on 60 full-size ImageNet photographs a pixel is off by 1.5 grey levels on
average, at 39 kB an image, and with the usual 4:2:0 by 2.0, at 31 kB (measured).

Example i of a split of the copy is example i of the original, unless unreadable images were left
out. A copy that was stopped goes on with the same command: shards appear under their names when
whole, and dataset_info.json, which makes it a data set, last.
"""

import dataclasses
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import flags
from PIL import Image

from alexnet_jax import cli, console, data
from alexnet_jax.config import is_folder
from alexnet_jax.data import decode, host
from alexnet_jax.data.sources import Source, open_source
from alexnet_jax.errors import UserError
from alexnet_jax.records import files, lock

QUALITY = 95
SHARD = 1024  # images in a file, about 40 MB; what a stop can lose
VERSION = "1.0.0"
_JOURNAL = "prepare.jsonl"  # what the copy is of, then a line for each finished shard


def prepare(spec: data.DataSpec, out: str | Path) -> str:
    """Writes OUT/NAME/VERSION, a TFDS set of both whole splits, and returns NAME.

    What an earlier call finished stays. With `bad_images` 'skip', images that cannot be decoded
    are left out, and named on stdout.

    Raises UserError: the data set cannot be opened, an image cannot be decoded or has no label,
    `out` cannot be written or holds the copy of other data.
    """
    opened = data.open_data(dataclasses.replace(spec, backend="tfdata"))
    splits = dict.fromkeys(
        part.partition("[")[0].strip()
        for expression in (spec.train_split, spec.eval_split)
        for part in expression.split("+")
    )
    sources = {
        split: open_source(spec.name, spec.data_dir, split, class_names=opened.class_names)
        for split in splits
    }
    for split, source in sources.items():
        for line in source.left_out:
            console.say(f"left out of {split}: {line}")
    name = prepared_name(spec.name, opened.resize_size)
    folder = Path(out).expanduser() / name / VERSION
    head = {
        "source": spec.name,
        "fingerprints": {split: source.fingerprint for split, source in sources.items()},
        "resize_size": opened.resize_size,
        "quality": QUALITY,
        "shard": SHARD,
        "bad_images": spec.bad_images,
    }
    try:
        with lock.acquire(folder):
            stamps = {split: source.stamp for split, source in sources.items()}
            shards = _open_journal(folder / _JOURNAL, head, stamps)
            if not (folder / "dataset_info.json").exists():
                skip = spec.bad_images == "skip"
                _write_shards(folder, name, sources, opened.resize_size, skip, shards)
                _write_metadata(folder, name, opened, spec.name, splits, shards)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; make room there or choose another"
            " --out, and the same command goes on"
        ) from None
    return name


def prepared_name(name: str, resize_size: int) -> str:
    """The copy's TFDS name: 'imagenette/160px-v2' at 256 is imagenette_160px_v2_prepared_256."""
    own = Path(name.removeprefix("folder:")).name if name.startswith("folder:") else name
    stem = "_".join(re.findall(r"[a-z0-9]+", own.lower()))
    if not stem[:1].isalpha():  # TFDS takes no other name.
        stem = f"images_{stem}".rstrip("_")
    return f"{stem}_prepared_{resize_size}"


def shard_name(name: str, split: str, shard: int, shards: int) -> str:
    """The file of a shard, as TFDS names it."""
    return f"{name}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def _open_journal(path: Path, head: dict, stamps: dict[str, str]) -> dict[str, dict]:
    """The finished shards by file name; starts the journal where there is none.

    `stamps` of the splits stand for their fingerprints in the journals of earlier commits.
    """
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:  # A last line cut short by a kill.
            break
    if lines and not _is_of(lines[0], head, stamps):
        raise UserError(
            f"{path.parent} holds a copy made of other data, or otherwise: remove it, or choose"
            " another --out"
        )
    lines = [head, *lines[1:]]
    # Whole again, for the lines that follow.
    files.replace(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return {line["file"]: line for line in lines[1:] if path.with_name(line["file"]).exists()}


def _is_of(kept: object, head: dict, stamps: dict[str, str]) -> bool:
    """Whether a journal's head says the same as `head`; folders may have moved."""
    if isinstance(kept, dict) and all(is_folder(str(each.get("source"))) for each in (kept, head)):
        kept = kept | {"source": head["source"]}
    return kept in (head, head | {"fingerprints": stamps})


def _write_shards(
    folder: Path,
    name: str,
    sources: Mapping[str, Source],
    size: int,
    skip: bool,
    shards: dict[str, dict],
) -> None:
    """Writes the shards that are missing, and adds their lines to `shards` and to the journal."""
    total = sum(source.num_examples for source in sources.values())
    done = sum(line["examples"] + len(line["bad"]) for line in shards.values())
    with (
        console.counter() as count,
        (folder / _JOURNAL).open("a") as journal,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        count("preparing", done, total)
        for split, source in sources.items():
            num_shards = math.ceil(source.num_examples / SHARD)
            for shard in range(num_shards):
                file = shard_name(name, split, shard, num_shards)
                if file in shards:
                    continue
                line = {"file": file, "split": split, "examples": 0, "bytes": 0, "bad": []}
                ids = range(shard * SHARD, min((shard + 1) * SHARD, source.num_examples))
                records = []
                for record, problem in pool.map(_shrinker(source, size, skip), ids):
                    done += 1
                    count("preparing", done, total)
                    if problem:
                        line["bad"].append(problem)
                    else:
                        records.append(record)
                line |= {"examples": len(records), "bytes": sum(map(len, records))}
                _write_records(folder / file, records)
                journal.write(json.dumps(line) + "\n")
                journal.flush()
                shards[file] = line


def _write_records(path: Path, records: Sequence[bytes]) -> None:
    """Writes a TFRecord file, which appears under its name when whole."""
    tf = host._tensorflow()
    aside = path.with_name(path.name + ".tmp")
    try:
        with tf.io.TFRecordWriter(str(aside)) as writer:
            for record in records:
                writer.write(record)
    except tf.errors.OpError as error:
        raise OSError(" ".join(str(error).split())) from None
    aside.rename(path)


def _shrinker(source: Source, size: int, skip: bool) -> Callable[[int], tuple[bytes, str]]:
    """A function from an index to the copy's record, or where `skip` is set to what is wrong."""
    from tensorflow_datasets.proto import tf_example_pb2

    def shrink(i: int) -> tuple[bytes, str]:
        try:
            encoded, label = source.read(i)
            source.check_label(i, label)
            square = decode.square(encoded, size)
        except OSError as error:
            raise UserError(f"{source.describe(i)} cannot be read: {error}") from None
        except (decode.BadImage, ValueError) as error:
            reason = f"{source.describe(i)}: {error}"
            if not skip:
                raise UserError(host.bad_image(reason)) from None
            return b"", reason
        jpeg = io.BytesIO()
        Image.fromarray(square).save(jpeg, "JPEG", quality=QUALITY, subsampling="4:4:4")
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(jpeg.getvalue())
        example.features.feature["label"].int64_list.value.append(label)
        return example.SerializeToString(deterministic=True), ""

    return shrink


def _write_metadata(
    folder: Path,
    name: str,
    opened: data.Data,
    original: str,
    splits: Sequence[str],
    shards: Mapping[str, dict],
) -> None:
    """Makes the shards a TFDS set."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, filetype_suffix="tfrecord"
    )
    infos = []
    for split in splits:
        lines = [shards[file] for file in sorted(shards) if shards[file]["split"] == split]
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[line["examples"] for line in lines],
                num_bytes=sum(line["bytes"] for line in lines),
                filename_template=template.replace(split=split),
            )
        )
    size = opened.resize_size
    image = tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg")
    # TFDS's files are UTF-8, which the names of folders need not be.
    names = [
        class_name.encode(errors="backslashreplace").decode() for class_name in opened.class_names
    ]
    label = tfds.features.ClassLabel(names=names)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=""
        ),
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        supervised_keys=("image", "label"),
        description=f"{original!r}, each image its central square of {size} x {size} pixels.",
    )
    info.set_file_format("tfrecord")
    info.set_splits(tfds.core.splits.SplitDict(infos))
    aside = folder / "metadata.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    info.write_to_directory(aside)
    # dataset_info.json last: with it the set is there.
    for file in sorted(aside.iterdir(), key=lambda file: file.name == "dataset_info.json"):
        file.rename(folder / file.name)
    aside.rmdir()
    for line in shards.values():
        for problem in line["bad"]:
            console.say(f"left out {problem}")


def main(_):
    """Prepares the copy, and says how to read it."""
    spec = flags.FLAGS.config.data
    name = prepare(spec, flags.FLAGS.out)
    console.say(f"read it with --config.data.name={name} --config.data.data_dir={flags.FLAGS.out}")
    return 0


if __name__ == "__main__":
    cli.define_config()
    cli.define_path("out", None, "The folder of TFDS sets to put the copy into.")
    cli.run(main, required=("out",))
