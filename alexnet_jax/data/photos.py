"""The photos set: real photographs of the scikit-image wheel, one class each, cut into patches.

Needs no network. As texture benchmarks split a texture image, train and test patches of a
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

from alexnet_jax.errors import UserError

VERSION = "1.0.0"
# Class name: file in skimage/data (as of 0.26; sources and licences:
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
PATCHES = {"train": 300, "test": 50}  # of each photograph
SIDE = 64  # pixels; the most that five strips of the narrowest photograph, coins, can hold
MARGIN = 16  # pixels
STRIPS = ("train", "test", "train", "test", "train")
COLUMN_STEP = 8  # pixels between columns of patches
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
    spec = importlib.util.find_spec("skimage")  # Finds the files without importing it.
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


def dataset_dir(
    data_dir: str | Path | None, progress: Callable[[str, int, int], None] = lambda *_: None
) -> Path:
    """Returns DATA_DIR/photos/VERSION, a prepared TFDS set, after building it if it is missing.

    An empty `data_dir` means TFDS's own default (TFDS_DATA_DIR, or ~/tensorflow_datasets). The set
    is built aside and renamed: a stopped build leaves no half of it, and of two builds at once the
    first to finish stays. Only building imports TensorFlow.

    Raises UserError if scikit-image or TensorFlow is missing or `data_dir` cannot be written.
    """
    if not data_dir:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(data_dir).expanduser()
    final = root / "photos" / VERSION
    if _is_built(final):
        return final
    progress("preparing photos", 0, 0)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        with tempfile.TemporaryDirectory(prefix=".photos-", dir=root) as aside:
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


def _build(root: Path) -> Path:
    """Builds the set with TFDS under `root` and returns its folder."""
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"building the photos set once needs TensorFlow and its datasets package ({error}): "
            "pip install tensorflow-cpu tensorflow-datasets"
        ) from None

    tfds.disable_progress_bar()
    builder = tfds.dataset_builders.AdhocBuilder(
        name="photos",
        version=VERSION,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=list(PHOTOGRAPHS)),
            }
        ),
        split_datasets={split: list(_examples(split)) for split in PATCHES},
        data_dir=root,
        description="Patches of photographs that ship with scikit-image, one class a photograph.",
        homepage="https://scikit-image.org/docs/stable/api/skimage.data.html",
    )
    try:
        with _quiet():
            builder.download_and_prepare()
        for shard in Path(builder.data_dir).glob("*.tfrecord-*"):
            _order_fields(shard)
    except (RuntimeError, tf.errors.OpError) as error:
        # A full disk, say: TensorFlow's error, or TFDS's RuntimeError from it.
        if not any(isinstance(e, tf.errors.OpError) for e in (error, error.__cause__)):
            raise
        raise OSError(" ".join(str(error).split())) from None
    return Path(builder.data_dir)


def _order_fields(shard: Path) -> None:
    """Rewrites a file of records with their fields in order, so that builds are byte-identical.

    TFDS leaves the order to protobuf, which varies it from process to process.
    """
    import tensorflow as tf

    records = [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in records:
            example = tf.train.Example.FromString(record)
            writer.write(example.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS's account of what it does, on stdout and in the log."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _examples(split: str) -> Iterator[tuple[int, dict]]:
    """Yields TFDS's (key, example); it puts them in a fixed order shuffled by the key's hash."""
    for key, (class_name, patch) in enumerate(patches(split)):
        png = io.BytesIO()
        patch.save(png, "PNG")
        png.seek(0)
        yield key, {"image": png, "label": class_name}
