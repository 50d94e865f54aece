"""Random access to the encoded images of a data set: TFDS sets, SPLIT/CLASS/IMAGE folders, photos.

Nothing here imports TensorFlow, except that TFDS does when it has to download a data set.
"""

import contextlib
import difflib
import hashlib
import itertools
import logging
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data import cache, files, identity, tfrecord
from alexnet_jax.data.identity import normal_name, some
from alexnet_jax.errors import UserError

Progress = Callable[[str, int, int], None]  # what, done, total, which is 0 where nobody knows it

_LAYOUT = "expected images as PATH/SPLIT/CLASS/IMAGE"
# What must be fetched by hand, where TFDS's own text is long.
_ARCHIVES = {"imagenet2012": "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"}


class SourceMissing(UserError):
    """The data set is not on this machine (as opposed to being there, and wrong)."""


class OtherClasses(UserError):
    """The data set has a class that isn't among those asked for."""


@dataclass(frozen=True)
class Part:
    """The examples [first, end) of a whole split, whose `fingerprint` is that of Identity."""

    split: str
    first: int
    end: int
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """One split: `num_examples` encoded images with their labels, by index, in a fixed order.

    `read(i)` returns the encoded bytes and the label, from any number of threads at once; it raises
    OSError where the file cannot be read, ValueError where a record is corrupt. The label may lie
    outside the classes, as the -1 of TFDS's splits without labels does: see `has_label`.
    `describe(i)` says where example i stands. `left_out` has a line for each kind of file that lies
    in the split's folder and is not read.

    `fingerprint`, `origin` and `files` are those of identity.Identity. `stamp` is the fingerprint
    with the files' times: what was derived from the data is stale where it differs. `parts` says
    which examples of which whole splits these are, one after the other.
    """

    name: str
    split: str
    num_examples: int
    class_names: tuple[str, ...]
    fingerprint: str
    stamp: str
    read: Callable[[int], tuple[bytes, int]]
    describe: Callable[[int], str]
    origin: str = ""
    files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()

    def has_label(self, label: int) -> bool:
        """Whether a label that was read is one of the classes."""
        return 0 <= label < len(self.class_names)

    def check_label(self, i: int, label: int) -> None:
        """Raises UserError where example i has no label to train on or to count errors by."""
        if not self.has_label(label):
            raise UserError(
                f"{self.describe(i)} has the label {label}, none of the {len(self.class_names)}"
                f" classes of {self.name!r}: split {self.split!r} can be neither trained on nor"
                " evaluated; choose one with labels"
            )


def open_source(
    name: str,
    data_dir: str | None,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    download: bool = True,
    progress: Progress = lambda *_: None,
) -> Source:
    """Opens a split of a data set for reading.

    `name` is a TFDS name (`imagenette/160px-v2`, `imagenet2012`), whose `split` may be any TFDS
    split expression (`train[:90%]`); or `folder:PATH`, images in PATH/SPLIT/CLASS; or `photos`.
    `data_dir` is TFDS's folder of prepared sets, by default TFDS's own. A set that isn't there
    is downloaded and prepared if `download` allows it. `class_names` fixes the classes and their
    order (those of training), to which the labels are matched by name; by default they are the
    split's own. `progress` is called before anything is prepared.

    Raises UserError; of its kinds, SourceMissing if the data set isn't here and cannot be fetched,
    OtherClasses if it has a class beyond `class_names`.
    """
    name = plain_name(name)
    if name.startswith("folder:"):
        return _open_folder(name, split, class_names)
    return _by_name(_open_tfds(name, data_dir, split, download, progress), class_names)


def plain_name(name: str) -> str:
    """Returns the data set's name; that of a folder without a slash at its end and the like."""
    path = name.removeprefix("folder:")
    return f"folder:{Path(path)}" if path and path != name else name


def _by_name(source: Source, class_names: Sequence[str] | None) -> Source:
    """Returns the source with its labels as positions in `class_names`."""
    if not class_names or source.class_names == tuple(class_names):
        return source
    place = {name: label for label, name in enumerate(class_names)}
    if strays := [name for name in source.class_names if name not in place]:
        raise OtherClasses(_stray(f"data set {source.name!r}", strays[0], class_names))
    labels = [place[name] for name in source.class_names]

    def read(i: int) -> tuple[bytes, int]:
        encoded, label = source.read(i)
        return encoded, labels[label] if 0 <= label < len(labels) else label

    return replace(
        source,
        class_names=tuple(class_names),
        stamp=_digest([source.stamp, class_names]),
        read=read,
    )


def _stray(where: str, name: str, class_names: Sequence[str]) -> str:
    known = some(tuple(class_names))
    return f"{where} has class {name!r}, which isn't among the classes of training: {known}"


def _open_tfds(
    name: str, data_dir: str | None, split: str, download: bool, progress: Progress
) -> Source:
    builder = _tfds_builder(name, data_dir, download, progress)
    info = builder.info
    image_key, label_key = _supervised_keys(name, info)
    try:
        instructions = info.splits[split].file_instructions
    except (ValueError, KeyError) as error:
        raise UserError(
            f"data set {name!r} has no split {split!r}: {_line(error)}; it has"
            f" {', '.join(info.splits)}"
        ) from None
    num_examples = sum(instruction.take for instruction in instructions)
    if num_examples == 0:
        raise UserError(f"split {split!r} of data set {name!r} has no examples")

    sizes = [_file_size(instruction.filename) for instruction in instructions]
    file_format = str(getattr(info.file_format, "value", info.file_format))
    if file_format == "tfrecord":
        record = _tfrecords(instructions, sizes)
    elif file_format == "array_record":
        record = _array_records(instructions)
    else:
        raise UserError(
            f"data set {name!r} in {builder.data_path} is stored as {file_format!r}: prepare it"
            " again with `tfds build --file_format=tfrecord`"
        )
    _check_eight_bits(name, info.features[image_key].np_dtype)
    ends = np.cumsum([instruction.take for instruction in instructions])

    def describe(i: int) -> str:
        shard = int(np.searchsorted(ends, i, side="right"))
        instruction = instructions[shard]
        row = instruction.skip + i - (ends[shard] - instruction.take)
        return f"{instruction.filename}, record {row}"

    labels = tuple(info.features[label_key].names)

    def fingerprint_of(instructions: Sequence[Any]) -> str:
        # Names and sizes, not paths and times: a copy on another machine is the same data.
        shards = [
            (os.path.basename(each.filename), _file_size(each.filename), each.skip, each.take)
            for each in instructions
        ]
        return _digest([info.full_name, image_key, label_key, labels, shards])

    fingerprint = fingerprint_of(instructions)
    return Source(
        name=name,
        split=split,
        num_examples=num_examples,
        class_names=labels,
        fingerprint=fingerprint,
        stamp=fingerprint,
        origin=info.full_name,
        read=_example_reader(record, image_key, label_key),
        describe=describe,
        parts=_parts(info.splits, instructions, fingerprint_of),
    )


def _parts(
    splits: Mapping[str, Any],
    instructions: Sequence[Any],
    fingerprint_of: Callable[[Sequence[Any]], str],
) -> tuple[Part, ...]:
    """Returns which examples of which whole splits the instructions read."""
    begins = {}  # {file: the split that it belongs to, and the example that it begins with}
    for split, info in splits.items():
        position = 0
        for each in info.file_instructions:
            begins[str(each.filename)] = split, position
            position += each.take
    parts: list[Part] = []
    wholes = {split: "" for split, _ in begins.values()}
    for each in instructions:
        split, begin = begins[str(each.filename)]
        first, end = begin + each.skip, begin + each.skip + each.take
        if parts and (parts[-1].split, parts[-1].end) == (split, first):
            parts[-1] = replace(parts[-1], end=end)
            continue
        wholes[split] = wholes[split] or fingerprint_of(splits[split].file_instructions)
        parts.append(Part(split, first, end, wholes[split]))
    return tuple(parts)


def _check_eight_bits(name: str, dtype: Any) -> None:
    """Refuses pictures that TFDS keeps as the bytes of numbers in the pixels of a PNG."""
    if np.dtype(dtype) not in (np.uint8, np.uint16):
        raise UserError(
            f"the images of data set {name!r} are {np.dtype(dtype)}, whose black and white are not"
            " known: prepare them as uint8 or uint16"
        )


def _example_reader(
    record: Callable[[int], bytes], image_key: str, label_key: str
) -> Callable[[int], tuple[bytes, int]]:
    """Returns a function from an index to the two features, parsed without TensorFlow."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    def read(i: int) -> tuple[bytes, int]:
        try:
            features = tf_example_pb2.Example.FromString(record(i)).features.feature
            image = features[image_key].bytes_list.value[0]
            return image, int(features[label_key].int64_list.value[0])
        except (DecodeError, IndexError):
            raise ValueError("the record is corrupt") from None

    return read


def _tfds_builder(name: str, data_dir: str | None, download: bool, progress: Progress) -> Any:
    """Returns the TFDS builder of a prepared data set."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise SourceMissing(f"data set {name!r} needs tensorflow-datasets: {error}") from None
    place = os.path.expanduser(data_dir) if data_dir else None
    if name == "photos":
        from alexnet_jax.data import photos

        try:
            return tfds.builder_from_directory(photos.dataset_dir(place, progress))
        except UserError as error:
            raise SourceMissing(str(error)) from None

    if name.startswith(("/", "./", "../", "~")):  # TFDS would take it apart.
        raise SourceMissing(f"data set {name!r} looks like a path: write folder:{name}")
    builder, problem = None, None
    with _quiet():
        try:
            builder = tfds.builder(name, data_dir=place)
            if builder.is_prepared():
                return builder
        except Exception as error:  # Builders run arbitrary set-up code of their own.
            problem = error
        # Another version of the set, or one whose builder needs a package that isn't here.
        with contextlib.suppress(Exception):
            return tfds.core.read_only_builder.builder_from_files(name, data_dir=place)
        if isinstance(problem, tfds.core.registered.DatasetNotFoundError):
            known = tfds.list_builders(with_community_datasets=False)
            near = difflib.get_close_matches(name.split("/")[0].split(":")[0], known)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            if os.path.isdir(name):
                hint = f"; for the folder of images of that name write folder:{name}"
            raise SourceMissing(
                f"unknown data set {name!r}: neither TFDS nor {place or 'its data directory'}"
                f" has it{hint}"
            )
        if builder is None:
            raise SourceMissing(f"data set {name!r} cannot be opened: {_line(problem)}")
        if not download:
            raise SourceMissing(f"data set {name!r} is not prepared in {builder.data_path}")
        progress(f"downloading and preparing {name}", 0, 0)
        tfds.disable_progress_bar()  # TFDS's would write into that of `progress`
        _prepare(name, builder)
    return builder


def _prepare(name: str, builder: Any) -> None:
    where = f"data set {name!r} is not prepared: looked in {builder.data_path}"
    manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    try:
        if not manual:
            _check_network(builder)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever the network, the disk and its builders do.
        if manual:
            archives = _ARCHIVES.get(builder.name) or _line(manual)
            folder = Path(builder.data_path)
            while folder.name != builder.name:
                folder = folder.parent
            raise SourceMissing(
                f"{where}; its archives are fetched by hand: put {archives} into"
                f" {folder.parent / 'downloads' / 'manual'} and start again, or set data.data_dir"
            ) from None
        raise SourceMissing(
            f"{where}; downloading failed ({_line(error)}): run `tfds build {name}` where there is"
            " a network and copy its data, or set data.data_dir"
        ) from None


def _check_network(builder: Any) -> None:
    """Raises OSError at once where TFDS would retry for minutes."""
    if urllib.request.getproxies():
        return
    hosts = {urllib.parse.urlparse(url).hostname for url in builder.url_infos}
    for host in sorted(filter(None, hosts))[:1]:
        socket.create_connection((host, 443), timeout=10).close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings of TFDS about data that isn't prepared, and of its downloader."""
    loggers = [logging.getLogger("absl"), logging.getLogger("urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _supervised_keys(name: str, info: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    keys = info.supervised_keys or ("image", "label")
    wanted = (tfds.features.Image, tfds.features.ClassLabel)
    features = dict(info.features.items()) if hasattr(info.features, "items") else {}
    if len(keys) != 2 or not all(
        isinstance(key, str) and isinstance(features.get(key), kind)
        for key, kind in zip(keys, wanted, strict=True)
    ):
        raise UserError(
            f"data set {name!r} is not image classification: it needs an image with one class"
            f" label, and has {', '.join(features)}"
        )
    return keys


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; the data set is incomplete, copy or prepare it again"
        ) from None


def _tfrecords(instructions: Sequence[Any], sizes: Sequence[int]) -> Callable[[int], bytes]:
    """Returns a function from an index to the record's bytes, over TFRecord shards."""
    paths = [str(instruction.filename) for instruction in instructions]
    tables = _record_tables(instructions, paths, sizes)
    spans = np.concatenate(
        [
            table[instruction.skip : instruction.skip + instruction.take]
            for instruction, table in zip(instructions, tables, strict=True)
        ]
    )
    ends = np.cumsum([instruction.take for instruction in instructions])

    def record(i: int) -> bytes:
        path = paths[np.searchsorted(ends, i, side="right")]
        offset, length = spans[i].tolist()
        # Opened for each read (3 microseconds): no limit on shards, nothing shared by threads.
        file = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(file, length, offset)
        finally:
            os.close(file)
        if len(data) != length:
            raise OSError(f"{path} ends before byte {offset + length}")
        return data

    return record


def _record_tables(
    instructions: Sequence[Any], paths: Sequence[str], sizes: Sequence[int]
) -> list[np.ndarray]:
    """Returns (offset, length) int64 [records, 2] for each shard, kept in the cache folder."""
    counts = [instruction.examples_in_shard for instruction in instructions]
    times = [os.stat(path).st_mtime_ns for path in paths]
    # One digest of all shards: a changed file is read again.
    key = _digest([[os.path.realpath(path) for path in paths], sizes, times, counts])
    path = cache.folder() / f"records-{key[:32]}.npz"
    if (kept := cache.read(path)) is not None:
        return np.split(kept[0]["spans"], np.cumsum(counts)[:-1])
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(_record_table, paths, sizes, counts))
    cache.write(path, {"spans": np.concatenate(tables)}, {"files": len(paths)})
    return tables


def _record_table(path: str, size: int, count: int) -> np.ndarray:
    """Finds the `count` records of a TFRecord file of `size` bytes; see `_record_tables`."""
    spans = list(itertools.islice(tfrecord.spans(path), count))
    if len(spans) < count:
        raise UserError(
            f"{path} is truncated or damaged: it holds {len(spans)} whole records of {count};"
            " copy or prepare the data set again"
        )
    if (tfrecord.end(spans[-1]) if spans else 0) != size:
        raise UserError(
            f"{path} holds more than the {count} records that dataset_info.json states;"
            " copy or prepare the data set again"
        )
    return np.array(spans, np.int64).reshape(count, 2)


def _array_records(instructions: Sequence[Any]) -> Callable[[int], bytes]:
    """Returns a function from an index to the record's bytes, over ArrayRecord shards."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise UserError(
            f"{instructions[0].filename} is an ArrayRecord file: install array-record, or prepare"
            " the data set again with `tfds build --file_format=tfrecord`"
        ) from None
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    for instruction in instructions:
        try:
            reader = ArrayRecordReader(str(instruction.filename))
            count = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{instruction.filename} is damaged: {_line(error)}") from None
        if count != instruction.examples_in_shard:
            raise UserError(
                f"{instruction.filename} holds {count} records and dataset_info.json states"
                f" {instruction.examples_in_shard}; copy or prepare the data set again"
            )
    return ArrayRecordDataSource(list(instructions)).__getitem__


def _open_folder(name: str, split: str, class_names: Sequence[str] | None) -> Source:
    root = Path(name.removeprefix("folder:")).expanduser()
    folder = _split_folder(root, split)
    folders = _class_folders(folder)  # {class: its folder's name}
    if not folders:
        loose = files.images(folder)
        found = f"images directly in it, such as {loose[0].name}" if loose else "no class folders"
        raise UserError(f"image folder {folder} has {found}: {_LAYOUT}")
    classes = tuple(class_names or sorted(folders))
    if strays := sorted(set(folders) - set(classes)):
        raise OtherClasses(_stray(f"image folder {folder}", strays[0], classes))

    listed: list[str] = []  # CLASS/IMAGE, NUL, size
    labels: list[int] = []
    left_out: list[Path] = []
    stamp = hashlib.sha256(repr((split, classes)).encode())
    for label, class_name in enumerate(classes):
        place = folders.get(class_name, class_name)
        entries, others = files.in_class(folder / place)
        left_out += others
        if not entries and class_names is None:
            found = next(map(str, filter(files.is_image, others)), "")
            deeper = f" but deeper down, such as {found}" if found else ""
            raise UserError(f"image folder {folder / place} holds no images{deeper}: {_LAYOUT}")
        for entry in entries:
            try:
                state = entry.stat()
            except OSError as error:  # Such as a link to nothing.
                raise UserError(f"{entry.path} cannot be read: {error.strerror}") from None
            line = f"{place}/{entry.name}\0{state.st_size}"
            stamp.update(os.fsencode(f"{line}\0{state.st_mtime_ns}\n"))
            listed.append(line)
            labels.append(label)
    if not listed:
        raise UserError(f"image folder {folder} holds no images: {_LAYOUT}")

    def path(i: int) -> Path:
        return folder / listed[i].partition("\0")[0]

    fingerprint = identity.fingerprint(listed)
    return Source(
        name=name,
        split=split,
        num_examples=len(listed),
        class_names=classes,
        fingerprint=fingerprint,
        stamp=stamp.hexdigest(),
        read=lambda i: (path(i).read_bytes(), labels[i]),
        describe=lambda i: str(path(i)),
        files=tuple(listed),
        left_out=files.left_out(folder, left_out),
        parts=(Part(split, 0, len(listed), fingerprint),),
    )


def _class_folders(folder: Path) -> dict[str, str]:
    """Returns {class: the name of its folder}; letters and accents may be composed in both ways."""
    found: dict[str, str] = {}
    for name in files.subfolders(folder):
        if (other := found.setdefault(normal_name(name), name)) != name:
            raise UserError(
                f"image folder {folder} has {other!a} and {name!a}, which read the same:"
                " put their images into one"
            )
    return found


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise SourceMissing(f"image folder {root} does not exist: {_LAYOUT}")
    folder = root / split
    if split in files.subfolders(root):
        return folder
    found = files.subfolders(root)
    loose = files.images(root)
    if loose:
        found_text = f"images directly in it, such as {loose[0].name}"
    elif not found:
        found_text = "nothing in it"
    elif files.images(root / found[0]):
        found_text = f"what look like classes in it: {some(found)}"
    else:
        found_text = f"the folders {some(found)}"
    raise UserError(
        f"image folder {root} has no split {split!r} but {found_text}; {_LAYOUT}, and"
        " data.train_split and data.eval_split name the splits"
    )


def _digest(parts: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()


def _line(error: object) -> str:
    """Returns the first lines of a message as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
