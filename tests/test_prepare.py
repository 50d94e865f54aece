"""A prepared copy has the pixels, labels and order of the original, however often stopped."""

import dataclasses
import errno
import importlib.util
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import prepare
from alexnet_jax.check_data import check_data
from alexnet_jax.config import load_config
from alexnet_jax.data import DataSpec, copies, decode, decoded, open_data, prepared
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
    monkeypatch.setattr(prepared, "SHARD", 10)
    monkeypatch.setattr(copies, "SHARD", 10)


def spec(folder, **fields):
    fields = {"eval_split": "test", "image_size": 32, "resize_size": SIZE} | fields
    return DataSpec(name=f"folder:{folder}", **fields)


def pixels(source):
    return [decode.square(source.read(i)[0], SIZE).astype(int) for i in range(source.num_examples)]


def labels(source):
    return [source.read(i)[1] for i in range(source.num_examples)]


def files(out):
    return {file.name: file.read_bytes() for file in (out / NAME / prepared.VERSION).iterdir()}


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
    place = tmp_path / NAME / prepared.VERSION
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
    journal = tmp_path / NAME / prepared.VERSION / "prepare.jsonl"
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
    with pytest.raises(UserError, match="holds a copy of other data"):
        prepare.prepare(spec(other), tmp_path / "out")


def test_bad_images(folder, tmp_path, capsys):
    broken = tiny.make_folder(tmp_path / "photographs", train=6, test=2)
    victim = broken / "train" / "gravel" / "03.png"
    victim.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"gravel/03\.png.*data\.bad_images"):
        prepare.prepare(spec(broken), tmp_path / "error")
    # The message's other advice keeps the shards that were finished.
    (first,) = (tmp_path / "error").rglob("*train*.tfrecord-00000-*")
    written = first.stat().st_mtime_ns
    name = prepare.prepare(spec(broken, bad_images="skip"), tmp_path / "error")
    assert "left out" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="with other settings"):  # It has bad images now.
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
    info = json.loads(
        (tmp_path / "out" / NAME / prepared.VERSION / "dataset_info.json").read_text()
    )
    assert info["name"] == NAME
    assert load_config(config).data.resize_size == SIZE


# Mapped copies

RAW = "photographs_raw_36"


def mapped(folder, copies_folder, **fields):
    return open_data(spec(folder, backend="mapped", copies=str(copies_folder), **fields))


def assert_squares(opened, folder, split):
    source = open_source(f"folder:{folder}", None, split)
    squares = opened.splits[split]
    rows = squares.rows(0, squares.num_examples)
    for i in range(source.num_examples):
        encoded, label = source.read(i)
        np.testing.assert_array_equal(rows[i], decode.square(encoded, SIZE))
        assert squares.labels[i] == label


def test_a_raw_copy_has_the_very_squares(folder, tmp_path, capsys):
    assert prepare.prepare(spec(folder), tmp_path, raw=True) == RAW
    size = 32 * SIZE * SIZE * 3
    assert f"32 squares of 36 x 36 pixels, {size / 1e3:.1f} kB in" in capsys.readouterr().out
    opened = mapped(folder, tmp_path)
    for split in ("train", "test"):
        assert_squares(opened, folder, split)
    assert np.load(tmp_path / RAW / "train-00002-of-00003.npy").shape == (4, SIZE, SIZE, 3)
    # What it says of the data is what reading them says.
    whole = open_data(spec(folder, backend="device"))
    assert opened.identity("train") == whole.identity("train")
    # The same from another place, and with the folder of the copy itself.
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere" / "photographs")
    (tmp_path / RAW).rename(tmp_path / "moved")
    assert_squares(mapped(elsewhere, tmp_path / "moved"), folder, "test")


def test_slices_of_a_tfds_set_are_mapped_from_its_whole_copy(folder, tmp_path):
    prepare.prepare(spec(folder), tmp_path / "jpeg")
    known = dict(name=NAME, data_dir=str(tmp_path / "jpeg"), image_size=32, resize_size=SIZE)
    prepare.prepare(DataSpec(**known, eval_split="test"), tmp_path / "raw", raw=True)
    splits = dict(train_split="train[30%:]+test[:2]", eval_split="train[:30%]")
    held = {
        backend: open_data(
            DataSpec(**known, **splits, backend=backend, copies=copies_folder)
        ).splits[splits["train_split"]]
        for backend, copies_folder in (("mapped", str(tmp_path / "raw")), ("device", None))
    }
    assert held["mapped"].num_examples == 19
    assert isinstance(held["mapped"], copies.Copy)
    np.testing.assert_array_equal(held["mapped"].rows(0, 19), held["device"].rows(0, 19))
    np.testing.assert_array_equal(held["mapped"].labels, held["device"].labels)


def test_a_raw_copy_goes_on_and_mends_itself(folder, tmp_path, monkeypatch):
    square, seen = decode.square, []

    def failing(data, size):
        seen.append(size)
        if len(seen) > 13:
            raise KeyboardInterrupt
        return square(data, size)

    monkeypatch.setattr(decode, "square", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(spec(folder), tmp_path, raw=True)
    with pytest.raises(UserError, match="no mapped copy"):
        mapped(folder, tmp_path)
    seen.clear()
    monkeypatch.setattr(decode, "square", lambda *a: seen.append(1) or square(*a))
    prepare.prepare(spec(folder), tmp_path, raw=True)
    assert len(seen) == 22
    shard = tmp_path / RAW / "train-00001-of-00003.npy"
    for victim in (shard, tmp_path / RAW / "train-labels.npy"):
        victim.unlink()
        with pytest.raises(UserError, match=f"{victim} is missing: the command that made"):
            mapped(folder, tmp_path)
        prepare.prepare(spec(folder), tmp_path, raw=True)
        assert_squares(mapped(folder, tmp_path), folder, "train")


def test_damage_to_a_raw_copy_is_named(folder, tmp_path):
    prepare.prepare(spec(folder), tmp_path, raw=True)
    shard = tmp_path / RAW / "train-00001-of-00003.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5] + b"other")
    config = load_config(tiny.make_config(tmp_path / "tiny.py", folder))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, copies=str(tmp_path))
    )
    unreadable = check_data(config, lambda *_: None)["unreadable"]
    expected = {"split": "train", "where": str(shard)}
    assert unreadable == [expected | {"reason": "its bytes and their digest differ"}]
    for damaged in (whole[:-5], whole + b"more", b"text"):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{shard} is damaged"):
            mapped(folder, tmp_path)


def test_a_copy_that_does_not_match_is_refused_with_what_there_is(folder, tmp_path):
    prepare.prepare(spec(folder), tmp_path / "copies", raw=True)
    with pytest.raises(UserError, match=f"of 40 pixels .{RAW} has squares of 36 pixels"):
        open_data(
            dataclasses.replace(
                spec(folder, backend="mapped"), resize_size=40, copies=str(tmp_path / "copies")
            )
        )
    other = tiny.make_folder(tmp_path / "photographs", train=5, test=2)
    with pytest.raises(UserError, match=f"{RAW} is of 'folder:{folder}'"):
        mapped(other, tmp_path / "copies")
    with pytest.raises(UserError, match=r"copies.* has none"):
        mapped(folder, tmp_path / "copies" / "none")
    with pytest.raises(UserError, match=r"data\.copies is empty"):
        open_data(spec(folder, backend="mapped"))


def test_no_room_for_a_raw_copy(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=32 * SIZE * SIZE * 3 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="too little space for photographs_raw_36: 32 squares"):
        prepare.prepare(spec(folder), tmp_path, raw=True)


@pytest.mark.parametrize("raw", [False, True])
def test_a_disk_that_fills_up_is_one_line_and_the_copy_goes_on(folder, tmp_path, monkeypatch, raw):
    calls, fsync = [], os.fsync

    def full(file):
        calls.append(file)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write .*No space left.*the same command goes"):
            prepare.prepare(spec(folder), tmp_path, raw=raw)
    assert not list(tmp_path.rglob("*.tmp"))
    done = []
    monkeypatch.setattr(
        decode, "square", lambda *given, own=decode.square: done.append(1) or own(*given)
    )
    assert prepare.prepare(spec(folder), tmp_path, raw=raw) == (RAW if raw else NAME)
    assert 0 < len(done) < 32


def test_auto_takes_the_device_then_a_copy_then_tfdata(folder, tmp_path, monkeypatch):
    known = spec(folder, backend="auto", copies=str(tmp_path))
    opened = open_data(known)
    assert opened.spec.backend == "device"
    assert "32 squares of 36 x 36 pixels, 0.000124 GB, fit" in opened.choice
    monkeypatch.setattr(decoded, "free_memory", lambda: decoded.RESERVE + 100_000)
    opened = open_data(known)
    assert opened.spec.backend == "tfdata"
    assert "there is no mapped copy" in opened.choice
    prepare.prepare(known, tmp_path, raw=True)
    opened = open_data(known)
    assert opened.spec.backend == "mapped"
    assert f"read from {tmp_path}" in opened.choice
    (tmp_path / RAW).rename(tmp_path / "hidden")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "hidden" / "copy.json").unlink()
    with pytest.raises(UserError, match=r"there is no mapped copy.*TensorFlow"):
        open_data(known)
