"""Where the splits of a folder of images lie; without any, a fifth of each class is held out.

Which images these are depends on the names in a class alone, by their digests: the same in every
run and on every machine, and an image more in a class moves at most one other into or out of it.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from alexnet_jax.data import files
from alexnet_jax.data.identity import normal_name
from alexnet_jax.errors import UserError

ONE_OF = 5  # images of a class is held out
TRAINING, EVALUATION = "train", ("validation", "val", "valid", "test")


def find(root: Path, split: str) -> tuple[Path, bool | None] | None:
    """Finds the folder of a split's classes.

    Args:
        root: an image folder, with splits in it or with classes.
        split: the split's name.

    Returns:
        The folder, and of which of its images the split is: None: all; False: those that are not
        held out; True: those that are. None where it isn't there. An evaluation's split stands for
        any of `EVALUATION`, and is all that is held out where classes lie directly in `root`.

    Raises:
        UserError: the split may be behind a link that cannot be followed.
    """
    inside = files.subfolders(root)
    broken = files.broken_links(root)
    others = EVALUATION if split in EVALUATION and split not in inside else ()
    for name in (split, *others):
        if name in broken:
            raise UserError(broken[name])
    splits = (TRAINING, *EVALUATION)
    classes = [
        name
        for name in inside
        if files.images(root / name)
        # A split with classes, though images lie beside them.
        and not (name in splits and files.subfolders(root / name))
    ]
    both = TRAINING in classes and any(name in classes for name in EVALUATION)
    if both or set(classes) <= set(splits):  # splits whose images lie in no class
        classes = []
    if loose := [name for name in classes if name in EVALUATION]:
        raise UserError(
            f"image folder {root} has classes, and images that lie directly in {loose[0]}, which "
            f"would be a class of its own: move them elsewhere, or into {loose[0]}/CLASS"
        )
    if split in inside and split not in classes:
        return root / split, None
    if split in EVALUATION:
        for name in EVALUATION:
            if name in inside and name not in classes:
                return root / name, None
    if classes and split in splits:
        return root, split != TRAINING
    return None


def part(
    folder: Path, class_name: str, entries: Sequence[os.DirEntry], held_out: bool
) -> list[os.DirEntry]:
    """Returns those images of a class that are held out, a fifth and at least one, or the others.

    Raises:
        UserError: there is only one.
    """
    if len(entries) == 1:
        raise UserError(
            f"image folder {folder / class_name} holds one image, {entries[0].name}: a class needs "
            "two or more, to learn from and to be tried on"
        )

    def rank(entry: os.DirEntry) -> bytes:
        return hashlib.sha256(os.fsencode(normal_name(f"{class_name}/{entry.name}"))).digest()

    count = max(1, round(len(entries) / ONE_OF))
    chosen = set(sorted(map(rank, entries))[:count])
    return [entry for entry in entries if (rank(entry) in chosen) == held_out]


def lines(held_out: bool | None, count: int) -> tuple[str, ...]:
    """Returns the line about `count` images that are left out of training as held out, or none."""
    if held_out is not False:
        return ()
    return (f"{count:,} images, a fifth of each class, which are held out to evaluate on",)
