"""`check_data` on small folders and TFDS sets with things wrong in them."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.check_data import check_data
from alexnet_jax.config import load_config, override
from tests import tiny


def quiet(what, done, total):
    pass


@pytest.fixture
def folder(tmp_path):
    return tiny.make_folder(tmp_path / "photographs", 6, 3)


def check(folder, tmp_path):
    return check_data(load_config(tiny.make_config(tmp_path / "tiny.py", folder)), quiet)


def test_a_sound_set_has_nothing_but_counts(folder, tmp_path):
    report = check(folder, tmp_path)
    names = ("astronaut", "coffee", "gravel", "rocket")
    assert report["splits"] == {
        "train": {"examples": 24, "classes": dict.fromkeys(names, 6), "left_out": []},
        "test": {"examples": 12, "classes": dict.fromkeys(names, 3), "left_out": []},
    }
    assert report["unreadable"] == report["unlabelled"] == report["duplicates"] == []


def test_what_is_unreadable_is_listed_with_its_reason(folder, tmp_path):
    empty, cut, text = (
        folder / "train/coffee/02.png",
        folder / "train/gravel/00.png",
        folder / "test/rocket/01.png",
    )
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:150])
    text.write_text("no image")
    report = check(folder, tmp_path)
    found = {one["where"]: (one["split"], one["reason"]) for one in report["unreadable"]}
    assert found.keys() == {str(empty), str(cut), str(text)}
    assert found[str(empty)] == ("train", "the file is empty")
    assert found[str(text)] == ("test", "not an image in a known format")
    assert report["splits"]["train"]["examples"] == 24


def test_copies_are_found_within_and_between_splits_and_classes(folder, tmp_path):
    first = folder / "train/coffee/00.png"
    shutil.copy(first, folder / "train/coffee/90.png")
    other = folder / "test/gravel/00.png"
    with Image.open(folder / "train/gravel/03.png") as image:
        image.save(other.with_suffix(".bmp"))  # the same pixels in another format
    shutil.copy(folder / "train/rocket/01.png", folder / "train/astronaut/91.png")
    report = check(folder, tmp_path)
    groups = {frozenset((o["split"], o["class"]) for o in group) for group in report["duplicates"]}
    assert groups == {
        frozenset({("train", "coffee")}),
        frozenset({("train", "gravel"), ("test", "gravel")}),
        frozenset({("train", "rocket"), ("train", "astronaut")}),
    }
    assert all(len(group) == 2 for group in report["duplicates"])


def test_the_command_lists_all_and_exits_with_1_where_something_is_unreadable(folder, tmp_path):
    config = tiny.make_config(tmp_path / "tiny.py", folder)
    shutil.copy(folder / "train/rocket/01.png", folder / "train/astronaut/91.png")
    flags = [f"--config={config}", f"--json={tmp_path / 'report.json'}"]
    done = tiny.command("alexnet_jax.check_data", *flags)
    assert done.returncode == 0, done.stderr
    assert "unreadable: none" in done.stdout
    assert "in two classes: 1\n" in done.stdout
    assert "91.png (astronaut) = " in done.stdout

    odd = folder / "train/coffee" / os.fsdecode(b"caf\xe9.png")  # not UTF-8, as in old archives
    odd.write_bytes(b"")
    (folder / "train/coffee/photo.heic").touch()
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    done = tiny.command("alexnet_jax.check_data", *flags, env=strict)
    assert done.returncode == 1
    assert done.stderr == ""
    assert f"{folder}/train/coffee/caf\\udce9.png: the file is empty" in done.stdout
    assert "left out of train: 1 file without a known image suffix (.heic 1)" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["unreadable"][0]["where"] == str(odd)
    assert len(report["unreadable"]) == len(report["duplicates"]) == 1


def test_a_missing_folder_is_one_line(folder, tmp_path):
    config = tiny.make_config(tmp_path / "tiny.py", folder)
    shutil.rmtree(folder / "test")
    done = tiny.command("alexnet_jax.check_data", f"--config={config}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_checksum_of_each_record_is_verified(tmp_path):
    """A flipped bit in a label or a pixel still decodes: only the checksum tells.

    One of the labels is none of the classes, as all are in splits without labels.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.dataset_builders.AdhocBuilder(
        name="dots",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
        ),
        split_datasets={
            split: [
                (
                    i,
                    {
                        "image": np.random.default_rng([i, n]).integers(
                            0, 256, (8, 8, 3), np.uint8
                        ),
                        "label": -1 if (split, i) == ("test", 2) else i % 2,
                    },
                )
                for i in range(n)
            ]
            for split, n in (("train", 5), ("test", 3))
        },
        data_dir=tmp_path,
    )
    builder.download_and_prepare()
    config = load_config(tiny.make_config(tmp_path / "tiny.py", tmp_path))
    config = override(config, {"data.name": "dots", "data.data_dir": str(tmp_path)})
    report = check_data(config, quiet)
    assert report["unreadable"] == []
    assert report["splits"]["test"]["classes"] == {"a": 1, "b": 1}
    assert [(one["split"], one["reason"]) for one in report["unlabelled"]] == [("test", "label -1")]

    (shard,) = builder.data_path.glob("*train*tfrecord*")
    records = bytearray(shard.read_bytes())
    start = 0
    for _ in range(2):  # to record 2
        start += 16 + struct.unpack_from("<Q", records, start)[0]
    place = records.index(b"label", start) + 11
    records[place] ^= 1
    shard.write_bytes(records)
    report = check_data(config, quiet)
    assert [(one["where"], one["reason"]) for one in report["unreadable"]] == [
        (f"{shard}, record 2", "its bytes and their checksum differ")
    ]
