"""Reads the same photographs by PyTorch's DataLoader, for `bench input --against=torch`."""

import io
import multiprocessing
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alexnet_jax import data
from alexnet_jax.config import Config
from alexnet_jax.data import decode
from alexnet_jax.data.plan import epoch_plan
from alexnet_jax.data.sources import open_source


class Photographs(torch.utils.data.Dataset):
    """Gives images as users of torchvision do: decoded by Pillow, resized, cropped and flipped."""

    def __init__(self, name: str, data_dir: str, split: str, resize_size: int, image_size: int):
        self.opening = (name, data_dir, split)
        self.resize_size, self.image_size = resize_size, image_size
        self.source = None

    def __getitem__(self, i):
        """Returns the image, uint8 [S, S, 3], and its label."""
        if self.source is None:  # Each worker opens its own.
            self.source = open_source(*self.opening)
        encoded, label = self.source.read(int(i))
        image = resized(encoded, self.resize_size)
        size = self.image_size
        x, y = (int(torch.randint(0, n - size + 1, ())) for n in image.size)
        image = image.crop((x, y, x + size, y + size))
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)), label


def resized(encoded: bytes, size: int) -> Image.Image:
    """Resizes the shorter side as torchvision's Resize does: bilinear with antialiasing."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    short = min(image.size)
    if short == size:
        return image
    return image.resize(tuple(int(size * n / short) for n in image.size), Image.Resampling.BILINEAR)


def loader(config: Config, dataset: data.Data, workers: int) -> Callable[[int], None]:
    """Returns a contender that reads batches of a DataLoader."""
    spec = dataset.spec
    photographs = Photographs(
        spec.name, spec.data_dir, spec.train_split, dataset.resize_size, spec.image_size
    )
    order, _ = epoch_plan(config.seed, 0, dataset.num_train, 0, crop=False, flip=False)
    ids = []
    batches = torch.utils.data.DataLoader(
        photographs,
        batch_size=config.batch_size,
        sampler=ids,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="forkserver",  # A fork would copy JAX's locks.
    )

    def run(count):
        ids[:] = np.resize(order, count * config.batch_size).tolist()
        for _ in batches:
            pass

    run.cpu_of_workers = _cpu_of_children
    return run


def _cpu_of_children() -> float:
    """Returns the CPU seconds of the DataLoader's workers, which live as long as it does."""
    seconds = 0.0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def pixel_difference(config: Config, dataset: data.Data, count: int = 64) -> float:
    """Returns the mean difference of our squares from torchvision's Resize and CenterCrop."""
    spec, size = dataset.spec, dataset.resize_size
    source = open_source(spec.name, spec.data_dir, spec.train_split)
    differences = []
    for i in range(min(count, source.num_examples)):
        encoded, _ = source.read(i)
        image = resized(encoded, size)
        left, top = (round((n - size) / 2) for n in image.size)
        theirs = np.asarray(image.crop((left, top, left + size, top + size)), float)
        differences.append(np.abs(decode.square(encoded, size) - theirs).mean())
    return statistics.fmean(differences)
