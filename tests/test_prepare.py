"""A prepared copy has the pixels, labels and order of the original, however often stopped."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import prepare
from alexnet_jax.config import load_config
from alexnet_jax.data import DataSpec, decode, open_data
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError
from tests import tiny

SIZE = 36
NAME = "photographs_prepared_36"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_folder(tmp_path_factory.mktemp("data") / "photographs", train=6, test=2)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "SHARD", 10)


def spec(folder, **fields):
    fields = {"eval_split": "test", "image_size": 32, "resize_size": SIZE} | fields
    return DataSpec(name=f"folder:{folder}", **fields)


def pixels(source):
    return [decode.square(source.read(i)[0], SIZE).astype(int) for i in range(source.num_examples)]


def labels(source):
    return [source.read(i)[1] for i in range(source.num_examples)]


def files(out):
    return {file.name: file.read_bytes() for file in (out / NAME / prepare.VERSION).iterdir()}


def assert_copy(out, folder, name=NAME):
    for split in ("train", "test"):
        original = open_source(f"folder:{folder}", None, split)
        copy = open_source(name, str(out), split)
        assert copy.class_names == original.class_names
        assert labels(copy) == labels(original)
        for theirs, ours in zip(pixels(original), pixels(copy), strict=True):
            assert np.abs(theirs - ours).mean() < 4  # of 255; JPEG's


def test_the_copy_is_the_original_but_for_jpeg(folder, tmp_path):
    assert prepare.prepare(spec(folder), tmp_path) == NAME
    assert_copy(tmp_path, folder)
    copy = open_source(NAME, str(tmp_path), "train")
    with Image.open(io.BytesIO(copy.read(0)[0])) as image:
        assert image.format == "JPEG"
        assert image.size == (SIZE, SIZE)
        assert image.layer[0][1:3] == (1, 1)  # 4:4:4: the colours are sampled as the brightness


def test_tfds_reads_it(tmp_path):
    import tensorflow_datasets as tfds

    folder = tiny.make_folder(tmp_path / "photographs", train=6, test=2)
    for split in ("train", "test"):  # TFDS's own files are UTF-8
        odd = folder / split / os.fsdecode(b"caf\xe9")
        (folder / split / "coffee").rename(odd)
    prepare.prepare(spec(folder), tmp_path)
    builder = tfds.builder(NAME, data_dir=tmp_path)
    names = builder.info.features["label"].names
    assert names == ["astronaut", r"caf\udce9", "gravel", "rocket"]
    assert builder.info.splits["train"].num_examples == 24
    examples = list(tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False)))
    assert [e["label"] for e in examples] == labels(open_source(NAME, str(tmp_path), "train"))
    assert examples[0]["image"].shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("stop_at", [0, 13, 27])
def test_a_stopped_copy_goes_on(stop_at, folder, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    prepare.prepare(spec(folder), whole)

    square, seen = decode.square, []

    def failing(data, size):
        seen.append(size)
        if len(seen) > stop_at:
            raise KeyboardInterrupt
        return square(data, size)

    out = tmp_path / "out"
    monkeypatch.setattr(decode, "square", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(spec(folder), out)
    with pytest.raises(UserError):
        open_source(NAME, str(out), "train")
    kept = [name for name in files(out) if "tfrecord" in name and not name.endswith(".tmp")]

    decoded = []
    monkeypatch.setattr(decode, "square", lambda *a: decoded.append(1) or square(*a))
    prepare.prepare(spec(folder), out)
    assert len(kept) == {0: 0, 13: 1, 27: 3}[stop_at]
    assert len(decoded) == 32 - {0: 0, 13: 10, 27: 24}[stop_at]
    ignored = {"lock"}
    assert {k: v for k, v in files(out).items() if k not in ignored} == {
        k: v for k, v in files(whole).items() if k not in ignored
    }


def test_a_journal_cut_short_costs_one_shard(folder, tmp_path):
    prepare.prepare(spec(folder), tmp_path)
    before = files(tmp_path)
    place = tmp_path / NAME / prepare.VERSION
    (place / "dataset_info.json").unlink()
    journal = place / "prepare.jsonl"
    journal.write_text(journal.read_text()[:-9])
    prepare.prepare(spec(folder), tmp_path)
    after = files(tmp_path)
    assert after.keys() == before.keys()
    assert after["prepare.jsonl"] == before["prepare.jsonl"]


def test_a_finished_copy_is_left_alone(folder, tmp_path, monkeypatch):
    prepare.prepare(spec(folder), tmp_path)
    monkeypatch.setattr(decode, "square", None)
    assert prepare.prepare(spec(folder), tmp_path) == NAME
    journal = tmp_path / NAME / prepare.VERSION / "prepare.jsonl"
    text = journal.read_text()
    # Earlier commits' fingerprints had the files' times in them.
    for split in ("train", "test"):
        source = open_source(f"folder:{folder}", None, split)
        journal.write_text(journal.read_text().replace(source.fingerprint, source.stamp))
    assert journal.read_text() != text
    assert prepare.prepare(spec(folder), tmp_path) == NAME
    assert journal.read_text() == text
    # Folders may move.
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    assert prepare.prepare(spec(moved), tmp_path) == NAME


def test_other_data_is_refused(folder, tmp_path):
    prepare.prepare(spec(folder), tmp_path / "out")
    other = tiny.make_folder(tmp_path / "photographs", train=5, test=2)
    with pytest.raises(UserError, match="copy made of other data"):
        prepare.prepare(spec(other), tmp_path / "out")


def test_bad_images(folder, tmp_path, capsys):
    broken = tiny.make_folder(tmp_path / "photographs", train=6, test=2)
    victim = broken / "train" / "coffee" / "03.png"
    victim.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"coffee/03\.png.*data\.bad_images"):
        prepare.prepare(spec(broken), tmp_path / "error")
    name = prepare.prepare(spec(broken, bad_images="skip"), tmp_path / "skip")
    assert "left out" in capsys.readouterr().out
    victim.unlink()
    assert_copy(tmp_path / "skip", broken, name)
    # The same data now opens for training, slices included.
    sliced = DataSpec(
        name=name,
        data_dir=str(tmp_path / "skip"),
        train_split="train[:50%]",
        eval_split="train[50%:]",
        image_size=32,
        resize_size=SIZE,
    )
    assert open_data(sliced).num_train == 12


def test_slices_of_one_split_are_prepared_whole(folder, tmp_path):
    prepare.prepare(spec(folder), tmp_path / "first")
    again = DataSpec(
        name=NAME,
        data_dir=str(tmp_path / "first"),
        train_split="train[:50%]+test",
        eval_split="train[50%:]",
        image_size=16,
    )
    name = prepare.prepare(again, tmp_path / "second")
    assert name == f"{NAME}_prepared_18"
    assert open_source(name, str(tmp_path / "second"), "train").num_examples == 24
    assert open_source(name, str(tmp_path / "second"), "test").num_examples == 8


def test_command(folder, tmp_path):
    config = tiny.make_config(tmp_path / "tiny.py", folder)
    done = tiny.command("alexnet_jax.prepare", f"--config={config}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert f"--config.data.name={NAME}" in done.stdout
    assert_copy(tmp_path / "out", folder)
    info = json.loads((tmp_path / "out" / NAME / prepare.VERSION / "dataset_info.json").read_text())
    assert info["name"] == NAME
    assert load_config(config).data.resize_size == SIZE
