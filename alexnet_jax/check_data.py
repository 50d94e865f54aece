"""Reads a whole data set once, finds unreadable and duplicate images, and counts each class.

python -m alexnet_jax.check_data --config=FILE [--json=FILE]

The exit status is 1 if an image is unreadable or has no label. Files that are left out of an image
folder are listed too. Two images are duplicates if their decoded central squares are equal, so a
copy in another file format counts. If duplicates have two classes, one of them is mislabelled; if
they are in both splits, the net is evaluated on images that it was trained on.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import flags

from alexnet_jax import cli, console
from alexnet_jax.config import Config
from alexnet_jax.console.progress import counter
from alexnet_jax.data import copies, decode, overlap, tfrecord, threads
from alexnet_jax.data.sources import Source, open_source
from alexnet_jax.records import files

CHUNK = 32  # images in one task of a thread
LISTED = 20  # lines of each list on the screen; --json writes all


def check_data(config: Config, progress: Callable[[str, int, int], None]) -> dict:
    """Reads both splits of `config.data`.

    Args:
        config: the configuration.
        progress: a function that is called with (what, done, total).

    Returns:
        A dictionary. 'splits' is {split: {'examples': count, 'classes': {class: count}, 'left_out':
        [line]}}; 'examples' includes unreadable images, 'classes' does if their label is readable,
        and 'left_out' says which files are not read, and why. 'unreadable' is [{'split', 'where',
        'reason'}] and includes mapped copies in `data.copies` whose bytes have changed.
        'unlabelled' has the same form and lists images whose label is none of the classes.
        'duplicates' is a list of groups of equal images, each a list of {'split', 'where',
        'class'}, where the class of an unlabelled image is None. 'shared' is how many examples of
        the evaluation split are those of the training split by their names, and 'places' has a line
        for each split that is read from a folder of another name.

    Raises:
        UserError: the data set cannot be opened, for example because a shard is missing.
    """
    spec = config.data
    train = open_source(spec.name, spec.data_dir, spec.train_split)
    test = open_source(spec.name, spec.data_dir, spec.eval_split, class_names=train.class_names)
    sources = {spec.train_split: train, spec.eval_split: test}

    splits, unreadable, unlabelled, same = {}, {}, [], defaultdict(list)
    for split, source in sources.items():
        for where, reason in _damaged_records(source, progress):
            unreadable.setdefault(where, (split, reason))
        classes = dict.fromkeys(source.class_names, 0)
        for i, (label, digest, reason) in enumerate(_read_all(source, spec.image_size, progress)):
            where, name = source.describe(i), None
            if label is not None and source.has_label(label):
                name = source.class_names[label]
                classes[name] += 1
            elif label is not None:
                unlabelled.append({"split": split, "where": where, "reason": f"label {label}"})
            if reason:
                unreadable.setdefault(where, (split, reason))
            else:
                same[digest].append((split, where, name))
        splits[split] = {
            "examples": source.num_examples,
            "classes": classes,
            "left_out": list(source.left_out),
        }
    damaged = copies.damaged(spec.copies, progress) if spec.copies else []
    return {
        "splits": splits,
        "unreadable": [
            {"split": split, "where": where, "reason": reason}
            for where, (split, reason) in unreadable.items()
        ]
        + [{"split": split, "where": path, "reason": reason} for split, path, reason in damaged],
        "unlabelled": unlabelled,
        "duplicates": _duplicates(same.values()),
        "shared": overlap.shared(train, test),
        "places": [source.elsewhere for source in sources.values() if source.elsewhere],
    }


def _duplicates(groups: Iterable[Sequence[tuple]]) -> list[list[dict]]:
    """Returns the groups (split, place, class) of equal images that have more than one."""
    return [
        [{"split": split, "where": where, "class": name} for split, where, name in group]
        for group in groups
        if len(group) > 1
    ]


def _read_all(source: Source, size: int, progress) -> Iterator[tuple]:
    """Yields (label, digest of the square, None) for each image in order.

    For an unreadable image it yields (label or None, None, reason) instead.
    """

    def read(i: int) -> tuple:
        label = None
        try:
            encoded, label = source.read(i)
            return label, hashlib.sha256(decode.square(encoded, size)).digest(), None
        except (OSError, ValueError, decode.BadImage) as error:
            return label, None, getattr(error, "strerror", None) or str(error)

    def read_chunk(start: int) -> list[tuple]:
        return [read(i) for i in range(start, min(start + CHUNK, source.num_examples))]

    with ThreadPoolExecutor(threads.cores()) as pool:
        done = 0
        for chunk in pool.map(read_chunk, range(0, source.num_examples, CHUNK)):
            yield from chunk
            done += len(chunk)
            progress(f"reading {source.split}", done, source.num_examples)


def _damaged_records(source: Source, progress) -> Iterator[tuple[str, str]]:
    """Yields (place, reason) for each TFRecord record whose checksum is wrong."""
    places = dict.fromkeys(
        source.describe(i).rpartition(", record ")[0] for i in range(source.num_examples)
    )
    paths = [path for path in places if ".tfrecord" in Path(path).name]
    if not paths:
        return
    for done, path in enumerate(paths, start=1):
        for number, record in enumerate(tfrecord.records(path)):
            if record is None:
                yield f"{path}, record {number}", "its bytes and their checksum differ"
        progress(f"checksums of {source.split}", done, len(paths))


def _show(report: dict, name: str) -> None:
    splits = report["splits"]
    rows = [
        (each, *(f"{splits[split]['classes'][each]:,}" for split in splits))
        for each in next(iter(splits.values()))["classes"]
    ]
    totals = ("total", *(f"{splits[split]['examples']:,}" for split in splits))
    console.table(f"images of {name}", ("class", *splits), [*rows, totals])

    def show(title: str, lines: Sequence[str]) -> None:
        console.say(f"{title}: {len(lines) or 'none'}")
        for line in lines[:LISTED]:
            console.say(f"  {line}")
        if len(lines) > LISTED:
            console.say(f"  and {len(lines) - LISTED} more, which --json=FILE lists")

    for line in report["places"]:
        console.say(line)
    for split, found in splits.items():
        for line in found["left_out"]:
            console.say(f"left out of {split}: {line}")

    def equal(groups: Sequence[Sequence[dict]]) -> list[str]:
        return [
            " = ".join(f"{one['where']} ({one['class'] or 'no label'})" for one in group)
            for group in groups
        ]

    if report["shared"]:
        total = list(splits.values())[-1]["examples"]  # The evaluation's stands last, or alone.
        console.say(overlap.line(report["shared"], total))
    groups = report["duplicates"]
    for title in ("unreadable", "unlabelled"):
        show(title, [f"{one['where']}: {one['reason']}" for one in report[title]])
    show("the same image more than once", equal(groups))
    for title, key in (("of these, in two classes", "class"), ("in both splits", "split")):
        show(
            title,
            equal([group for group in groups if len({one[key] for one in group} - {None}) > 1]),
        )


def main(_):
    """Checks the data set of --config and prints what was found."""
    config = flags.FLAGS.config
    with counter() as progress:
        report = check_data(config, progress)
    _show(report, config.data.name)
    if flags.FLAGS.json:
        files.write_json(flags.FLAGS.json, report)
    return 1 if report["unreadable"] or report["unlabelled"] else 0


if __name__ == "__main__":
    cli.define_config()
    cli.define_path("json", None, "A file to write the whole report to.", result=True)
    cli.run(main)
