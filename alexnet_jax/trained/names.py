"""English names of classes, for people.

ImageNet's classes are WordNet ids ("n01440764"), in TFDS as in the archives' folders; the names of
its 1000 stand in imagenet_classes.txt, with their source.
"""

import codecs
import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from alexnet_jax.errors import UserError, local_path


@functools.cache
def imagenet() -> dict[str, str]:
    """{WordNet id: English name} of ILSVRC-2012's 1000 classes, in the order of TFDS's class ids.

    The ids are sorted, so this is the order of torchvision and Caffe, too.
    """
    text = (resources.files("alexnet_jax.trained") / "imagenet_classes.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def english(class_names: Sequence[str]) -> tuple[str, ...]:
    """Puts the names that are WordNet ids of ImageNet into English; all others stay."""
    return tuple(imagenet().get(name, name) for name in class_names)


def read_names(path: str | Path, count: int) -> tuple[str, ...]:
    """Reads the names in a text file, a line each, in the order of the net's outputs.

    UTF-8, or UTF-16 with a byte order mark, with any system's line ends; empty lines don't count.

    Raises:
        UserError: it cannot be read, or doesn't have `count` lines.
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
            f"'{path}' names {len(names)} classes, and the net has {count}: give a line to each "
            "class, in the order of its outputs"
        )
    return names
