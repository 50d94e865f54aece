"""Random access to the encoded images of a data set: TFDS sets, SPLIT/CLASS/IMAGE folders, photos.

Nothing here needs TensorFlow or TFDS, but for a data set that TFDS has to download and prepare.
"""

from collections.abc import Sequence
from dataclasses import replace

from alexnet_jax.data.sources import folder, tfds
from alexnet_jax.data.sources.source import (
    OtherClasses,
    Part,
    Progress,
    Source,
    SourceMissing,
    digest,
    stray,
)
from alexnet_jax.errors import UserError, local_path

__all__ = [
    "OtherClasses",
    "Part",
    "Progress",
    "Source",
    "SourceMissing",
    "open_source",
    "plain_name",
]


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

    Args:
        name: a TFDS name (`imagenette/160px-v2`, `imagenet2012`), whose `split` may be any TFDS
            split expression (`train[:90%]`); or `folder:PATH`, images in PATH/CLASS or in
            PATH/SPLIT/CLASS; or `photos`.
        data_dir: TFDS's folder of prepared sets; empty or None: TFDS's own default.
        split: the split, or TFDS's expression for a part of it.
        class_names: the classes and their order (those of training), to which the labels are
            matched by name; by default they are the split's own.
        download: have TFDS download and prepare a set that isn't there.
        progress: called before anything is prepared.

    Raises:
        UserError: the split cannot be opened; of its kinds, SourceMissing if the data set isn't
            here and cannot be fetched, OtherClasses if it has a class beyond `class_names`.
    """
    name = plain_name(name)
    if name.startswith("folder:"):
        return folder.open_folder(name, split, class_names)
    return _by_name(tfds.open_set(name, data_dir, split, download, progress), class_names)


def plain_name(name: str) -> str:
    """Returns the data set's name; that of a folder is absolute and has no slash at its end.

    What is kept of a data set is found by its name, and a relative one means another folder in
    another place. A path that means nothing is left as it is: `open_source` refuses it.
    """
    path = name.removeprefix("folder:")
    if path == name:
        return name
    try:
        return f"folder:{local_path(path).absolute()}"
    except (UserError, OSError):  # OSError: the current folder was removed.
        return name


def _by_name(source: Source, class_names: Sequence[str] | None) -> Source:
    """Returns the source with its labels as positions in `class_names`."""
    if not class_names or source.class_names == tuple(class_names):
        return source
    place = {name: label for label, name in enumerate(class_names)}
    if strays := [name for name in source.class_names if name not in place]:
        raise stray(f"data set {source.name!r}", strays[0], class_names)
    labels = [place[name] for name in source.class_names]

    def read(i: int) -> tuple[bytes, int]:
        encoded, label = source.read(i)
        return encoded, labels[label] if 0 <= label < len(labels) else label

    return replace(
        source,
        class_names=tuple(class_names),
        stamp=digest([source.stamp, class_names]),
        read=read,
    )
