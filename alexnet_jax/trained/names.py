"""Translates the names of classes into English.

The classes of ImageNet are WordNet ids ("n01440764"), in TFDS and in the folders of its archives.
The file imagenet_classes.txt has the English names of all 1000, with their source.
"""

import codecs
import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from alexnet_jax.errors import UserError, local_path


@functools.cache
def imagenet() -> dict[str, str]:
    """Returns {WordNet id: English name} of ILSVRC-2012's classes, in the order of TFDS.

    The ids are sorted, so torchvision and Caffe have the same order.
    """
    text = (resources.files("alexnet_jax.trained") / "imagenet_classes.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def english(class_names: Sequence[str]) -> tuple[str, ...]:
    """Translates names that are WordNet ids of ImageNet into English; other names stay."""
    return tuple(imagenet().get(name, name) for name in class_names)


def told_apart(paths: Sequence[str]) -> list[str]:
    """Cuts each path down to as many of its last parts as tell it apart from the others."""
    parts = [Path(path).parts for path in paths]
    titles = []
    for own in parts:
        count = next(
            n
            for n in range(1, len(own) + 1)
            if n == len(own) or sum(other[-n:] == own[-n:] for other in parts) == 1
        )
        titles.append("/".join(own[-count:]).replace("//", "/"))
    return titles


def read_names(path: str | Path, count: int) -> tuple[str, ...]:
    """Reads names from a text file, one on each line, in the order of the net's outputs.

    The file is in UTF-8, or in UTF-16 with a byte order mark. Any line ends are accepted, and empty
    lines are skipped.

    Raises:
        UserError: the file cannot be read, or does not have `count` names.
    """
    path = local_path(path)
    try:
        data = path.read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"names of classes in '{path}' cannot be read: {reason}") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != count:
        raise UserError(
            f"'{path}' names {len(names)} classes, and the net has {count}: write a line for each "
            "class, in the order of the net's outputs"
        )
    return names
