"""Writes a copy of a TFDS set of JPEGs whose images have been through JPEG once more.

    python -m experiments.reencode --name=cifar10_jpeg --data_dir=DIR --out=DIR

The error that a net reaches on `cifar10_jpeg` can only be compared with one published for the
original pixels if the price of the JPEG encoding is known. The originals are not at hand, so the
sweep `reencoded` measures what a second encoding costs, which bounds the first from what a net
loses by it.

Encoding a decoded JPEG again on the same grid of blocks would change next to nothing, as its
coefficients are rounded already. So each image is moved by 4 pixels against the grid (its edges are
repeated), encoded with the quality and the subsampling of the first time, decoded, moved back, and
kept as PNG. The copy lies beside a copy of the original in `--out`, as NAME_twice. Prints how far
the pixels of both are from each other.
"""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from alexnet_jax import cli, console
from alexnet_jax.data import tfds_files
from alexnet_jax.data.sources import Source, open_source

QUALITY, SUBSAMPLING = 75, "4:2:0"  # those of cifar10_jpeg, from its dataset_info.json
SHIFT = 4  # pixels, half a block


def encode_again(image: Image.Image) -> Image.Image:
    """Returns the image after another JPEG encoding, on a grid moved by SHIFT pixels."""
    width, height = image.size
    moved = np.pad(np.asarray(image), ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    jpeg = io.BytesIO()
    Image.fromarray(moved).save(jpeg, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return Image.open(jpeg).crop((SHIFT, SHIFT, SHIFT + width, SHIFT + height))


def write_twice(name: str, data_dir: str, out: Path) -> float:
    """Writes a copy of a set and NAME_twice below `out`.

    Returns:
        The mean absolute difference of their pixels over both splits, in grey levels.

    Raises:
        UserError: there is no such set in `data_dir`.
    """
    splits = {split: open_source(name, data_dir, split) for split in ("train", "test")}
    if not (out / name).exists() or not (out / name).samefile(Path(data_dir) / name):
        shutil.copytree(Path(data_dir) / name, out / name, dirs_exist_ok=True)
    twice = f"{name}_twice"
    folder = out / twice / "1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    differences = []

    def again(source: Source) -> Iterator[tuple[bytes, int]]:
        for number in range(source.num_examples):
            encoded, label = source.read(number)
            first = Image.open(io.BytesIO(encoded)).convert("RGB")
            second = encode_again(first)
            differences.append(np.abs(np.int16(first) - np.int16(second)).mean())
            png = io.BytesIO()
            second.save(png, "PNG")
            yield png.getvalue(), label

    written = {}
    for split, source in splits.items():
        path = folder / tfds_files.shard_name(twice, split, 0, 1)
        count, size = tfds_files.write_records(path, again(source))
        written[split] = [count], size
    tfds_files.write_description(
        folder,
        name=twice,
        description=f"{name}, through JPEG once more.",
        class_names=splits["train"].class_names,
        encoding="png",
        side=None,
        splits=written,
        more={},
    )
    return float(np.mean(differences))


def main(_: list[str]) -> None:
    """Writes both copies and prints how far apart their pixels are."""
    out = Path(flags.FLAGS.out)
    apart = write_twice(flags.FLAGS.name, flags.FLAGS.data_dir, out)
    console.say(f"{out / flags.FLAGS.name}_twice: {apart:.2f} grey levels from the original's")


if __name__ == "__main__":
    flags.DEFINE_string("name", "cifar10_jpeg", "The TFDS set of JPEGs.")
    cli.define_path("data_dir", None, "Where it lies.")
    cli.define_path("out", None, "Where both copies will lie, for a sweep's --data_dir.")
    cli.run(main, required=("data_dir", "out"))
