"""Builds the photos set: photographs of the scikit-image wheel, one class each, cut into patches.

It needs no network. As texture benchmarks split a texture image, train and test patches of a
photograph come from strips of it that share no pixel. A photograph's width is cut into five equal
strips, train, test, train, test, train, with `MARGIN` pixels between them that nobody sees. Two
inner test strips, each between train strips, hold much of what the photograph shows; one strip at
the side often holds things that the rest does not, the sky without the rocket.

`PHOTOGRAPHS` leaves out the wheel's drawings, charts and reconstructions (colour wheel, horse, cell
hologram, phantom), the blurred clock, and four photographs whose test strips hold much that appears
nowhere else in them: astronaut, camera, motorcycle and page. They were chosen out by measurement,
on the test patches: a small AlexNet got 100%, 70%, 66% and 48% of theirs wrong after 400 steps. Six
of the twelve left are grey, so that colour alone does not tell the classes apart;
experiments/photos_floors.py measures what simple methods reach.
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from alexnet_jax.data import tfds_files
from alexnet_jax.errors import UserError, local_path

VERSION = "1.0.0"
# Each class has a file in skimage/data (as of 0.26; sources and licences:
# https://scikit-image.org/docs/stable/api/skimage.data.html).
PHOTOGRAPHS = {
    "brick": "brick.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "moon": "moon.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "text": "text.png",
    "tissue": "ihc.png",
}
PATCHES = {"train": 300, "test": 50}  # Each photograph gives so many.
SIDE = 64  # Five strips of the narrowest photograph, coins, can hold no more pixels.
MARGIN = 16  # It is counted in pixels.
STRIPS = ("train", "test", "train", "test", "train")
COLUMN_STEP = 8  # Columns of patches lie so many pixels apart.
# Larger photographs (retina, hubble) are shrunk first: at full size a patch shows next to nothing.
MAX_SHORTER_SIDE = 512
# A build takes seconds: an hour-old temporary folder belongs to one that was killed.
_STALE_SECONDS = 3600

_log = logging.getLogger(__name__)


def patch_boxes(width: int, height: int, split: str) -> list[tuple[int, int, int, int]]:
    """Returns the (left, top, right, bottom) of a photograph's patches, all different.

    The boxes are `SIDE` pixels square and overlap within a split. Two boxes of different splits lie
    at least `MARGIN` pixels apart. A strip's patches are every n-th of its possible ones, which are
    numbered down columns `COLUMN_STEP` pixels apart. Raises ValueError if the photograph is too
    small to hold them.
    """
    strip_width = (width - (len(STRIPS) - 1) * MARGIN) // len(STRIPS)
    count = PATCHES[split] // STRIPS.count(split)
    boxes = []
    for left in (i * (strip_width + MARGIN) for i, name in enumerate(STRIPS) if name == split):
        corners = [
            (x, y)
            for x in range(left, left + strip_width - SIDE + 1, COLUMN_STEP)
            for y in range(height - SIDE + 1)
        ]
        if len(corners) < count:
            raise ValueError(f"a photograph of {width}x{height} pixels is too small")
        chosen = [corners[i * len(corners) // count] for i in range(count)]
        boxes += [(x, y, x + SIDE, y + SIDE) for x, y in chosen]
    return boxes


def load_photograph(class_name: str) -> Image.Image:
    """Returns a photograph in RGB, its shorter side at most `MAX_SHORTER_SIDE` pixels.

    Raises UserError if scikit-image is missing.
    """
    spec = importlib.util.find_spec(
        "skimage"
    )  # This finds the files without importing the package.
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the photos set is cut from the photographs in scikit-image, which isn't installed: "
            "pip install scikit-image"
        )
    path = Path(spec.submodule_search_locations[0], "data", PHOTOGRAPHS[class_name])
    try:
        image = Image.open(path).convert("RGB")
    except OSError as error:
        raise UserError(
            f"cannot read the photograph {path} ({error.strerror or error}): "
            "pip install --force-reinstall scikit-image"
        ) from None
    scale = MAX_SHORTER_SIDE / min(image.size)
    if scale < 1:
        size = tuple(round(length * scale) for length in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def patches(split: str) -> Iterator[tuple[str, Image.Image]]:
    """Yields (class name, RGB patch of SIDE x SIDE pixels) for a split, class by class."""
    for class_name in PHOTOGRAPHS:
        photograph = load_photograph(class_name)
        for box in patch_boxes(*photograph.size, split):
            yield class_name, photograph.crop(box)


def root(data_dir: str | Path | None) -> Path:
    """Returns the folder of TFDS's sets; empty or None means TFDS's own default.

    Raises:
        UserError: its ~ stands for no folder, or it is an address such as gs://BUCKET.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return local_path(chosen)
    except UserError as error:
        whose = "$TFDS_DATA_DIR" if chosen == os.environ.get("TFDS_DATA_DIR") else "data.data_dir"
        raise UserError(f"the folder of data sets, of {whose}: {error}") from None


def dataset_dir(
    data_dir: str | Path | None, progress: Callable[[str, int, int], None] = lambda *_: None
) -> Path:
    """Returns DATA_DIR/photos/VERSION, a set as TFDS has them, after building it if it is missing.

    The set is built aside and renamed: a stopped build leaves no half of it, and of two builds at
    once the first to finish stays.

    Args:
        data_dir: see `root`.
        progress: called before the set is built.

    Raises:
        UserError: scikit-image is missing, or `data_dir` cannot be written.
    """
    place = root(data_dir)
    final = place / "photos" / VERSION
    if _is_built(final):
        return final
    progress("preparing photos", 0, 0)
    try:
        place.mkdir(parents=True, exist_ok=True)
        _remove_stale(place)
        with tempfile.TemporaryDirectory(prefix=".photos-", dir=place) as aside:
            built = _build(Path(aside))
            final.parent.mkdir(exist_ok=True)
            try:
                os.rename(built, final)
            except OSError:
                if not _is_built(final):  # Otherwise another build was faster.
                    raise
    except OSError as error:
        raise UserError(
            f"cannot build the photos set in {final} ({error.strerror or error}): free or unlock "
            "that place, or name another with --config.data.data_dir=DIR"
        ) from None
    _log.info("built the photos set in %s", final)
    return final


def _is_built(directory: Path) -> bool:
    return (directory / "dataset_info.json").exists()


def _remove_stale(root: Path) -> None:
    for folder in root.glob(".photos-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder)


def _build(place: Path) -> Path:
    """Builds the set under `place` and returns its folder."""
    folder = place / "photos" / VERSION
    folder.mkdir(parents=True)
    names = list(PHOTOGRAPHS)
    splits = {}
    for split in PATCHES:
        path = folder / tfds_files.shard_name("photos", split, 0, 1)
        images = [(_png(patch), names.index(name)) for name, patch in patches(split)]
        count, size = tfds_files.write_records(path, _mixed(images, split))
        splits[split] = [count], size
    tfds_files.write_description(
        folder,
        name="photos",
        description="Patches of photographs that ship with scikit-image, one class a photograph.",
        class_names=names,
        encoding="png",
        side=None,
        splits=splits,
        more={
            "location": {"urls": ["https://scikit-image.org/docs/stable/api/skimage.data.html"]},
            "moduleName": "tensorflow_datasets.core.dataset_builders.adhoc_builder",
        },
    )
    return folder


def _mixed(images: list[tuple[bytes, int]], split: str) -> list[tuple[bytes, int]]:
    """Returns the images in the order in which TFDS writes them, by the digests of their numbers.

    TFDS wrote this set once, and its order is part of what a run's data are.
    """
    keys = [hashlib.md5(f"{split}{number}".encode()).digest() for number in range(len(images))]
    return [images[number] for number in sorted(range(len(images)), key=keys.__getitem__)]


def _png(patch: Image.Image) -> bytes:
    png = io.BytesIO()
    patch.save(png, "PNG")
    return png.getvalue()
