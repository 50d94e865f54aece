"""Copies a data set as R x R squares, shrunk once as in 2012, which configurations can read.

python -m alexnet_jax.prepare --config=configs/imagenet2012.py --out=DIR [--raw]

R is the side to which the configuration resizes images, 256 for the paper's 224-pixel crops.
data/decode.py defines the squares. By default they are stored as JPEG, as a TFDS data set (see
data/prepared.py). With --raw they are stored as uint8 pixels, from which the backends `mapped` and
`device` crop without decoding (see data/copies.py): this takes five times the space, and gives the
same numbers as the originals.

Example i of a split of the copy is example i of the original. If unreadable images are skipped, a
JPEG copy leaves them out and a raw copy has black squares in their places. After a stop, the same
command goes on with the copy; it also makes missing files again. A file gets its name once it is
complete, and the file that makes the folder a copy is written last.
"""

import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from alexnet_jax import cli, console, data
from alexnet_jax.config import is_folder
from alexnet_jax.console.progress import counter
from alexnet_jax.data import copies, identity, prepared, squares, threads
from alexnet_jax.data.sources import Source, open_source
from alexnet_jax.data.squares import Example
from alexnet_jax.errors import UserError, local_path
from alexnet_jax.records import files, lock

_JOURNAL = "prepare.jsonl"  # a line about the original, then one for each finished shard


def prepare(spec: data.DataSpec, out: str | Path, *, raw: bool = False) -> str:
    """Writes a copy of both whole splits into a folder below `out`, and returns its name.

    Shards that an earlier call has finished are kept. If `bad_images` is 'skip', images that cannot
    be decoded are named on stdout.

    Raises:
        UserError: the data set cannot be opened; an image cannot be decoded or has no label; or
            `out` cannot be written, has too little space or holds a copy of other data.
    """
    spec, resize_size = data.checked(spec)
    names = dict.fromkeys(
        part.partition("[")[0].strip()
        for expression in (spec.train_split, spec.eval_split)
        for part in expression.split("+")
    )
    class_names = open_source(spec.name, spec.data_dir, spec.train_split).class_names
    sources = {
        split: open_source(spec.name, spec.data_dir, split, class_names=class_names)
        for split in names
    }
    for split, source in sources.items():
        for line in source.left_out:
            console.say(f"left out of {split}: {line}")
    form = copies if raw else prepared
    name = form.copy_name(spec.name, resize_size)
    folder = form.folder(local_path(out), name)
    head = {
        "source": spec.name,
        "fingerprints": {split: source.fingerprint for split, source in sources.items()},
        "resize_size": resize_size,
        **form.HEAD,
        "shard": form.SHARD,
        "bad_images": spec.bad_images,
    }
    try:
        with lock.acquire(folder):
            stamps = {split: source.stamp for split, source in sources.items()}
            shards = _open_journal(folder / _JOURNAL, head, stamps)
            planned = _planned(form, name, sources)
            missing = [file for file in planned if file not in shards]
            if missing or not form.is_finished(folder, sources):
                if raw:
                    _check_room(folder, name, planned, missing, resize_size)
                skip = spec.bad_images == "skip"
                _write_shards(folder, form, sources, planned, resize_size, skip, shards)
                form.finish(folder, name, resize_size, sources, shards)
                for line in shards.values():
                    for problem in line["bad"]:
                        console.say(
                            f"left out {problem if isinstance(problem, str) else problem[1]}"
                        )
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free some space there or choose"
            " another --out, and the same command goes on"
        ) from None
    return name


def _planned(form: Any, name: str, sources: Mapping[str, Source]) -> dict[str, tuple[str, range]]:
    """Returns {file: (its split, the numbers of its examples)} for the whole copy."""
    planned = {}
    for split, source in sources.items():
        count = math.ceil(source.num_examples / form.SHARD)
        for shard in range(count):
            first = shard * form.SHARD
            ids = range(first, min(first + form.SHARD, source.num_examples))
            planned[form.file_name(name, split, shard, count)] = split, ids
    return planned


def _check_room(
    folder: Path,
    name: str,
    planned: Mapping[str, tuple[str, range]],
    missing: Sequence[str],
    resize_size: int,
) -> None:
    """Prints the space that a raw copy takes, and raises UserError if it is not free."""
    images = sum(len(ids) for _, ids in planned.values())
    left = sum(len(planned[file][1]) for file in missing) * resize_size**2 * 3
    free = shutil.disk_usage(folder).free
    whole = images * resize_size**2 * 3
    about = f"{name}: {images:,} squares of {resize_size} x {resize_size} pixels"
    rest = f", of which {_size(left)} are still to be written" if left < whole else ""
    sizes = f"{_size(whole)} in {folder}{rest}; {_size(free)} are free there"
    if left > free:
        raise UserError(
            f"too little space for {about}: {sizes}. Free some space, or choose another --out or a"
            " smaller data.resize_size"
        )
    console.say(f"{about}, {sizes}")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _open_journal(path: Path, head: dict, stamps: dict[str, str]) -> dict[str, dict]:
    """Returns the finished shards by file name, and starts the journal if it is missing.

    Args:
        path: the journal.
        head: the first line of the journal of this copy.
        stamps: the stamps of the splits, which journals of early commits have instead of
            fingerprints.
    """
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:  # A kill has cut off the last line.
            break
    if lines and not _is_of(lines[0], head, stamps):
        raise UserError(
            f"{path.parent} holds a copy of other data or with other settings: remove it, or choose"
            " another --out"
        )
    lines = [head, *lines[1:]]
    # The journal is written again without a cut-off line, so that lines can be appended.
    files.replace(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return {line["file"]: line for line in lines[1:] if path.with_name(line["file"]).exists()}


def _is_of(kept: object, head: dict, stamps: dict[str, str]) -> bool:
    """Returns whether the shards of a journal with the first line `kept` are those of `head`.

    Folders may have moved. Where an unreadable image was an error, no shard has one: the copy may
    go on skipping them, though not the other way round.
    """
    if isinstance(kept, dict) and all(is_folder(str(each.get("source"))) for each in (kept, head)):
        kept = kept | {"source": head["source"]}
    if isinstance(kept, dict) and kept.get("bad_images") == "error":
        kept = kept | {"bad_images": head["bad_images"]}
    return kept in (head, head | {"fingerprints": stamps})


def _write_shards(
    folder: Path,
    form: Any,
    sources: Mapping[str, Source],
    planned: Mapping[str, tuple[str, range]],
    resize_size: int,
    skip: bool,
    shards: dict[str, dict],
) -> None:
    """Writes the missing shards, and adds a line for each to `shards` and to the journal."""
    total = sum(len(ids) for _, ids in planned.values())
    done = sum(len(ids) for file, (_, ids) in planned.items() if file in shards)
    with counter() as count, (folder / _JOURNAL).open("a") as journal:
        count("preparing", done, total)

        def counted(examples: Iterator[Example]) -> Iterator[Example]:
            nonlocal done
            for example in examples:
                yield example
                done += 1
                count("preparing", done, total)

        for file, (split, ids) in planned.items():
            if file in shards:
                continue
            read = _reader(sources[split], resize_size, skip, form.encode)
            with contextlib.closing(threads.in_order(read, ids)) as examples:
                fields = form.write_shard(folder / file, len(ids), resize_size, counted(examples))
            shards[file] = {"file": file, "split": split, **fields}
            journal.write(json.dumps(shards[file]) + "\n")
            journal.flush()


def _reader(
    source: Source, resize_size: int, skip: bool, encode: Callable[[np.ndarray], Any]
) -> Callable[[int], Example]:
    """Returns a function that reads, decodes and encodes an example."""

    def read(i: int) -> Example:
        bad = {} if skip else None
        digest = b""

        def noting(i: int) -> tuple[bytes, int]:
            nonlocal digest
            encoded, label = source.read(i)
            digest = identity.example_digest(encoded, label)
            return encoded, label

        noted = dataclasses.replace(source, read=noting)
        square, label = squares.read(noted, i, resize_size, bad)
        made = None if square is None else encode(square)
        return Example(i, made, label, digest, bad[i] if bad else "")

    return read


def main(_):
    """Makes the copy, and prints the fields that read it."""
    spec, out, raw = flags.FLAGS.config.data, flags.FLAGS.out, flags.FLAGS.raw
    name = prepare(spec, out, raw=raw)
    fields = f"copies={out}" if raw else f"name={name} --config.data.data_dir={out}"
    console.say(f"read it with --config.data.{fields}")
    return 0


if __name__ == "__main__":
    cli.define_config()
    cli.define_path("out", None, "The folder to write the copy into.")
    flags.DEFINE_bool("raw", False, "Store the squares as uint8 pixels, not as JPEG.")
    cli.run(main, required=("out",))
