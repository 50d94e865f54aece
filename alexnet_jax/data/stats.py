"""Computes and keeps mean image, channel means and colour covariance of the training pixels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alexnet_jax.data import cache, identity, squares
from alexnet_jax.data.dataset import Data
from alexnet_jax.data.sources import Progress, Source
from alexnet_jax.errors import UserError

COMPUTING = "computing the mean image"
_FORMAT = 2  # Raise it when `decode` gives other pixels. (2 shows 32 bits by their range.)


@dataclass(frozen=True)
class Statistics:
    """Of the R x R squares of a split, in grey levels 0-255 (the paper, sections 2 and 4.1).

    mean_image: float32 [R, R, 3]; channel_mean: float32 [3]; covariance: float64 [3, 3], of the
    colours of all pixels about the channel means. contents: that of identity.Identity.
    """

    mean_image: np.ndarray
    channel_mean: np.ndarray
    covariance: np.ndarray
    contents: str = ""

    def principal_colours(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (deviations float64 [3], directions float64 [3, 3]), the largest first.

        Row k of `directions` is a unit vector in RGB, its largest component positive; `deviations`
        are the square roots of the covariance's eigenvalues, in grey levels: what the 2012 code
        multiplies by N(0, 0.1) (akrizhevsky/cuda-convnet2, make-data/input_meta).
        """
        values, vectors = np.linalg.eigh(self.covariance)
        directions = vectors.T[::-1]
        largest = np.abs(directions).argmax(axis=1)
        directions = directions * np.sign(directions[np.arange(3), largest])[:, None]
        return np.sqrt(np.maximum(values[::-1], 0)), directions


def statistics(data: Data, *, progress: Progress | None = None) -> Statistics:
    """Returns the statistics of the train split's R x R squares, kept in the cache folder.

    They are the same from all backends. Afterwards `data.bad` lists all undecodable images of the
    train split, if they are skipped.

    Args:
        data: the data set, whose training split is open.
        progress: called with (what, done, total) while the statistics are computed.

    Raises:
        UserError: there are undecodable images, and they are not skipped.
    """
    spec, split = data.spec, data.splits[data.spec.train_split]
    file = path(spec.name, spec.train_split, data.resize_size, split.stamp)
    kept = load(file, split.stamp)
    if kept is not None:
        result, bad = kept
        if bad and not spec.skip_bad:
            raise UserError(squares.bad_image(min(bad.items())[1]))
        if bad:
            data.bad[spec.train_split].update(bad)
        return result
    if isinstance(split, Source):
        read, contents = identity.digesting(split.read, split.num_examples)
        bad = data.bad.get(spec.train_split)
        whole = squares.read_all(replace(split, read=read), data.resize_size, bad=bad)
        chunks = ((pixels, mask) for pixels, _, mask in whole)
        result = compute(chunks, total=split.num_examples, progress=progress)
        result = replace(result, contents=contents())
    else:
        starts = range(0, split.num_examples, 64)
        ends = [min(start + 64, split.num_examples) for start in starts]
        chunks = (
            (split.rows(lo, hi), split.mask[lo:hi]) for lo, hi in zip(starts, ends, strict=True)
        )
        result = compute(chunks, total=split.num_examples, progress=progress)
        result = replace(result, contents=split.contents)
    save(file, result, split.stamp, data.bad.get(spec.train_split, {}))
    return result


def compute(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    total: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Statistics:
    """Returns the statistics of chunks (squares uint8 [n, R, R, 3], mask float32 [n]).

    All sums are exact integers, so neither the order nor the chunks' sizes matter. Images of mask 0
    don't count. Raises UserError if none is left.
    """
    image_sum: np.ndarray | int = 0
    products: np.ndarray | int = 0
    count = done = 0
    progress = progress or (lambda *_: None)
    progress(COMPUTING, 0, total)
    for images, mask in chunks:
        done += len(mask)
        images = images[mask > 0]
        count += len(images)
        image_sum = image_sum + images.sum(axis=0, dtype=np.int64)
        for square in images:
            # In float64 BLAS the products of one image are exact: below 2^53 for R < 372,000.
            pixels = square.reshape(-1, 3).astype(np.float64)
            products = products + (pixels.T @ pixels).astype(np.int64)
        progress(COMPUTING, done, total)
    if count == 0:
        raise UserError("no image of the training split can be decoded")
    pixels = count * image_sum.shape[0] * image_sum.shape[1]
    mean = image_sum.sum(axis=(0, 1)) / pixels
    return Statistics(
        mean_image=(image_sum / count).astype(np.float32),
        channel_mean=mean.astype(np.float32),
        covariance=products / pixels - np.outer(mean, mean),
    )


def path(name: str, split: str, resize_size: int, stamp: str) -> Path:
    """Returns where the statistics of a split are kept."""
    stem = cache.slug(name, split)
    return cache.folder() / f"{stem}-{resize_size}px-stats-v{_FORMAT}-{stamp[:16]}.npz"


def save(file: Path, statistics: Statistics, stamp: str, bad: dict[int, str]) -> bool:
    """Writes the statistics and the images left out of them; False where that is impossible.

    `stamp` is that of the split (sources.Source): `load` gives them for it alone.
    """
    arrays = {
        "mean_image": statistics.mean_image,
        "channel_mean": statistics.channel_mean,
        "covariance": statistics.covariance,
    }
    meta = {"fingerprint": stamp, "contents": statistics.contents}
    meta |= {"bad": sorted(bad.items()), "decoder": squares.decoder()}
    return cache.write(file, arrays, meta)


def load(file: Path, stamp: str) -> tuple[Statistics, dict[int, str]] | None:
    """Returns kept statistics with the images left out of them, or None if there are none.

    There are none either where images were left out that another version of the decoder found bad.
    Raises UserError if they are of another data set.
    """
    kept = cache.read(file)
    if kept is None:
        return None
    arrays, meta = kept
    if meta.get("fingerprint") != stamp:
        raise UserError(f"{file} holds the statistics of another data set: remove it")
    if "bad" not in meta or squares.outdated(meta):  # An earlier commit wrote no `bad`.
        return None
    statistics = Statistics(**arrays, contents=meta.get("contents", ""))
    return statistics, dict(meta["bad"])
