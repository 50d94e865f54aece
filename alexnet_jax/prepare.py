"""Shrinks a data set once, as in 2012, to a copy of R x R squares that configurations read.

python -m alexnet_jax.prepare --config=configs/imagenet2012.py --out=DIR [--raw]

R is the side that the configuration resizes to, 256 for the paper's 224-pixel crops. The squares
are those of data/decode.py. By default they are kept as JPEG, in a TFDS set of its own (see
data/prepared.py); with --raw as they are, uint8, in files from which the backends `mapped` and
`device` crop without decoding anything (see data/copies.py): five times the space, and the same
numbers as from the originals.

Example i of a split of the copy is example i of the original; unreadable images, if they are
skipped, are left out of a JPEG copy and black in a raw one. A copy that was stopped goes on with
the same command: files appear under their names when whole, and the one that makes them a copy
last. The same command also makes files anew that are missing.
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
from alexnet_jax.data import copies, identity, prepared, squares, threads
from alexnet_jax.data.sources import Source, open_source
from alexnet_jax.data.squares import Example
from alexnet_jax.errors import UserError
from alexnet_jax.records import files, lock

_JOURNAL = "prepare.jsonl"  # what the copy is of, then a line for each finished shard


def prepare(spec: data.DataSpec, out: str | Path, *, raw: bool = False) -> str:
    """Writes a copy of both whole splits into a folder below `out`, and returns its name.

    What an earlier call finished stays. With `bad_images` 'skip', images that cannot be decoded
    are named on stdout.

    Raises:
        UserError: the data set cannot be opened, an image cannot be decoded or has no label, `out`
            cannot be written, has too little room or holds the copy of other data.
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
    folder = form.folder(Path(out).expanduser(), name)
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
            f"cannot write {folder}: {error.strerror or error}; make room there or choose another"
            " --out, and the same command goes on"
        ) from None
    return name


def _planned(form: Any, name: str, sources: Mapping[str, Source]) -> dict[str, tuple[str, range]]:
    """Returns {file: its split and the examples in it} of the whole copy."""
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
    """Says what a raw copy takes. Raises UserError where that isn't free."""
    images = sum(len(ids) for _, ids in planned.values())
    left = sum(len(planned[file][1]) for file in missing) * resize_size**2 * 3
    free = shutil.disk_usage(folder).free
    whole = images * resize_size**2 * 3
    about = f"{name}: {images:,} squares of {resize_size} x {resize_size} pixels"
    rest = f", {_size(left)} of them still to write" if left < whole else ""
    sizes = f"{_size(whole)} in {folder}{rest}; {_size(free)} are free there"
    if left > free:
        raise UserError(
            f"no room for {about}: {sizes}. Make room, choose another --out or a smaller"
            " data.resize_size"
        )
    console.say(f"{about}, {sizes}")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _open_journal(path: Path, head: dict, stamps: dict[str, str]) -> dict[str, dict]:
    """Returns the finished shards by file name; starts the journal where there is none.

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
    form: Any,
    sources: Mapping[str, Source],
    planned: Mapping[str, tuple[str, range]],
    resize_size: int,
    skip: bool,
    shards: dict[str, dict],
) -> None:
    """Writes the shards that are missing, and adds their lines to `shards` and to the journal."""
    total = sum(len(ids) for _, ids in planned.values())
    done = sum(len(ids) for file, (_, ids) in planned.items() if file in shards)
    with console.counter() as count, (folder / _JOURNAL).open("a") as journal:
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
    """Prepares the copy, and says how to read it."""
    spec, out, raw = flags.FLAGS.config.data, flags.FLAGS.out, flags.FLAGS.raw
    name = prepare(spec, out, raw=raw)
    fields = f"copies={out}" if raw else f"name={name} --config.data.data_dir={out}"
    console.say(f"read it with --config.data.{fields}")
    return 0


if __name__ == "__main__":
    cli.define_config()
    cli.define_path("out", None, "The folder to put the copy into.")
    flags.DEFINE_bool("raw", False, "Keep the squares as they are, to be mapped, not as JPEG.")
    cli.run(main, required=("out",))
