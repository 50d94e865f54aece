"""Folders of images, PATH/SPLIT/CLASS/IMAGE, or PATH/CLASS/IMAGE without splits."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from alexnet_jax.data import files, identity
from alexnet_jax.data.identity import normal_name, some
from alexnet_jax.data.sources import held_out
from alexnet_jax.data.sources.source import Part, Source, SourceMissing, stray
from alexnet_jax.errors import UserError, local_path

_LAYOUT = "expected images as PATH/CLASS/IMAGE, or in splits as PATH/SPLIT/CLASS/IMAGE"


def open_folder(name: str, split: str, class_names: Sequence[str] | None) -> Source:
    """Opens a split of a folder of images; see `open_source`."""
    folder, part = _split_folder(_root(name), split)
    folders = _class_folders(folder)  # {class: its folder's name}
    if not folders:
        loose = files.images(folder)
        found = f"images directly in it, such as {loose[0].name}" if loose else "no class folders"
        raise UserError(f"image folder {folder} has {found}: {_LAYOUT}")
    classes = tuple(class_names or sorted(folders))
    if strays := sorted(set(folders) - set(classes)):
        raise stray(f"image folder {folder}", strays[0], classes)

    listed: list[str] = []  # CLASS/IMAGE, NUL, size
    labels: list[int] = []
    left_out: list[Path] = []
    count = 0  # of images, those that are held out of the split included
    stamp = hashlib.sha256(repr((split, classes)).encode())
    for label, class_name in enumerate(classes):
        place = folders.get(class_name, class_name)
        entries, others = files.in_class(folder / place)
        left_out += others
        count += len(entries)
        if entries and part is not None:
            entries = held_out.part(folder, class_name, entries, part)
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
        left_out=files.left_out(folder, left_out) + held_out.lines(part, count - len(listed)),
        elsewhere=_elsewhere(folder, part, split),
        parts=(Part(split, 0, len(listed), fingerprint),),
    )


def _root(name: str) -> Path:
    """Returns the folder that a data set's name names. Raises UserError."""
    path = name.removeprefix("folder:")
    if not path:  # pathlib would take it for the current folder.
        raise UserError(
            "data set 'folder:' names no folder: write folder:PATH; is a shell variable not set?"
        )
    return local_path(path)


def _elsewhere(folder: Path, part: bool | None, split: str) -> str:
    """Returns `Source.elsewhere`; where classes have no splits, `left_out` tells what is read."""
    if part is not None or folder.name == split:
        return ""
    return f"split {split!r} is read from {folder}"


def _class_folders(folder: Path) -> dict[str, str]:
    """Returns {class: the name of its folder}; letters and accents may be composed in both ways."""
    found: dict[str, str] = {}
    if broken := files.broken_links(folder):  # It may have been a class.
        raise UserError(next(iter(broken.values())))
    for name in files.subfolders(folder):
        if (other := found.setdefault(normal_name(name), name)) != name:
            raise UserError(
                f"image folder {folder} has {other!a} and {name!a}, which read the same:"
                " put their images into one"
            )
    return found


def _split_folder(root: Path, split: str) -> tuple[Path, bool | None]:
    """Returns the folder of a split's classes, and which of its images it is: `held_out.find`."""
    if not root.is_dir():
        raise SourceMissing(f"image folder {root} does not exist: {_LAYOUT}")
    if place := held_out.find(root, split):
        return place
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
