"""Without TensorFlow and its package of data sets, the same data are read and written."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax import data, prepare
from alexnet_jax.data import photos
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError
from tests import tiny

KEYS = ("images", "labels", "crops", "mask", "ids")
SIZES = {"image_size": 32, "resize_size": 36}

# Only what looks for modules on the path is changed: they are found nowhere, as if not installed.
PROGRAM = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets") else find(name, *rest)
)
from tests import test_without_tensorflow as test
test.main(*sys.argv[1:])
"""


def specs(place):
    """A JPEG copy with its slices, and the photos; mapped copies of both, but for the slices."""
    jpeg = data.DataSpec(
        name="photographs_prepared_36",
        data_dir=f"{place}/jpeg",
        train_split="train[:70%]+test[1:]",
        eval_split="train[70%:]",
        **SIZES,
    )
    own = data.DataSpec(name="photos", data_dir=f"{place}/photos", eval_split="test", **SIZES)
    return {"jpeg": jpeg, "photos": own}


def small_photos():
    photos.PHOTOGRAPHS = dict(list(photos.PHOTOGRAPHS.items())[:2])
    photos.PATCHES = {"train": 6, "test": 2}


def held(spec):
    """What a backend gives: the split's identity, and two batches of training."""
    opened = data.open_data(spec)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stream = data.train_batches(opened, seed=3, batch_size=8, shardings=dict.fromkeys(KEYS, one))
    digest = hashlib.sha256()
    for _ in range(2):
        for _, array in sorted(next(stream).items()):
            digest.update(np.asarray(array).tobytes())
    identity = opened.identity(spec.train_split)
    source = open_source(spec.name, spec.data_dir, spec.train_split)
    encoded = hashlib.sha256(b"".join(source.read(i)[0] for i in range(source.num_examples)))
    return [
        opened.spec.backend,
        digest.hexdigest(),
        identity.fingerprint,
        identity.origin,
        identity.num_examples,
        encoded.hexdigest(),
    ]


def main(images, place):
    small_photos()
    folder = data.DataSpec(name=f"folder:{images}", eval_split="test", **SIZES)
    found = {"jpeg": prepare.prepare(folder, f"{place}/jpeg")}
    for name, spec in specs(place).items():
        prepare.prepare(spec, f"{place}/raw", raw=True)
        for backend in ("device", "mapped", "auto"):
            copies = "" if backend == "auto" else f"{place}/raw"
            found[f"{name} {backend}"] = held(
                dataclasses.replace(spec, backend=backend, copies=copies)
            )
    for name, fields in {
        "tfdata": {"backend": "tfdata"},
        "absent": {"name": "cifar10"},
    }.items():
        with pytest.raises(UserError) as raised:
            data.open_data(dataclasses.replace(specs(place)["jpeg"], **fields))
        found[name] = str(raised.value)
    assert not [name for name in sys.modules if name.startswith("tensorflow")]
    print(json.dumps(found))


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The place of the data, and what a machine without TensorFlow found there."""
    place = tmp_path_factory.mktemp("data")
    images = tiny.make_folder(place / "photographs", train=6, test=2)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, images, place],
        cwd=tiny.ROOT,
        env=os.environ | {"ALEXNET_JAX_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout.splitlines()[-1])


def test_the_data_are_the_same_without_tensorflow(without, monkeypatch):
    place, found = without
    monkeypatch.setattr(photos, "PHOTOGRAPHS", photos.PHOTOGRAPHS)  # put back at the end
    monkeypatch.setattr(photos, "PATCHES", photos.PATCHES)
    small_photos()
    for name, spec in specs(place).items():
        _, *expected = held(dataclasses.replace(spec, backend="tfdata"))
        for backend in ("device", "mapped"):
            assert found[f"{name} {backend}"] == [backend, *expected]
        assert found[f"{name} auto"] == ["device", *expected]


def test_tfds_reads_what_was_written_without_it(without):
    import tensorflow_datasets as tfds

    place, found = without
    builder = tfds.builder(found["jpeg"], data_dir=place / "jpeg")
    assert builder.info.features["label"].names == [
        name.partition(".")[0] for name in tiny.PHOTOGRAPHS
    ]
    for split in ("train[70%:]", "train"):
        dataset = builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        theirs = [(each["image"], int(each["label"])) for each in tfds.as_numpy(dataset)]
        source = open_source(found["jpeg"], str(place / "jpeg"), split)
        assert [source.read(i) for i in range(source.num_examples)] == theirs


def test_what_needs_tensorflow_says_so_in_a_line(without):
    _, found = without
    assert found["tfdata"].startswith(
        "the backend 'tfdata' needs TensorFlow, which isn't installed"
    )
    assert "'cifar10' is not prepared" in found["absent"]
    assert "pip install tensorflow-datasets" in found["absent"]
    assert "\n" not in found["tfdata"] + found["absent"]
