"""Which images a name stands for: never another set's, never an earlier version's, and said."""

import dataclasses
import io
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
from PIL import Image

from alexnet_jax import data, prepare
from alexnet_jax.data import decode, decoded, squares, tfds_files
from alexnet_jax.errors import UserError
from alexnet_jax.records import notes
from tests import tiny

CLASSES = ("ant", "bee")


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def make_folder(root, level, **counts):
    """ROOT/SPLIT/CLASS/*.png, all of one grey level, which tells the sets apart."""
    for split, count in (counts or {"train": 3, "test": 2}).items():
        for name in CLASSES:
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i}.png").write_bytes(png(level))
    return root


def make_set(data_dir, *, flipped=False):
    """A TFDS set of 20 images to train on, in two files, and 5 to test on."""
    folder = data_dir / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    images = [(png(i), (i + flipped) % 2) for i in range(25)]
    parts = {"train": (images[:10], images[10:20]), "test": (images[20:],)}
    splits = {}
    for split, files in parts.items():
        counts = [len(part) for part in files]
        for number, part in enumerate(files):
            name = tfds_files.shard_name("tiny", split, number, len(files))
            tfds_files.write_records(folder / name, part)
        splits[split] = counts, 1
    tfds_files.write_description(
        folder,
        name="tiny",
        description="Grey squares.",
        class_names=CLASSES,
        encoding="png",
        side=16,
        splits=splits,
        more={"supervisedKeys": {"input": "image", "output": "label"}},
    )
    return data_dir


def spec(name, **fields):
    fields = {"backend": "device", "eval_split": "test", "image_size": 12} | fields
    return data.DataSpec(name=name, resize_size=16, **fields)


def levels(opened, split="train"):
    held = opened.splits[split]
    return sorted(set(held.rows(0, held.num_examples).ravel().tolist()))


def lines(opened, monkeypatch):
    monkeypatch.setattr(notes, "_convolutions", lambda run: "convolutions: XLA")
    return notes.opening_lines(SimpleNamespace(data=opened))


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_missing_folder_is_not_that_of_the_same_name_elsewhere(tmp_path, monkeypatch):
    first, second = tmp_path / "p1", tmp_path / "p2"
    make_folder(first / "pics", 50)
    second.mkdir()
    monkeypatch.chdir(first)
    assert levels(data.open_data(spec("folder:pics"))) == [50]
    monkeypatch.chdir(second)
    with pytest.raises(UserError, match=f"image folder {second}/pics does not exist"):
        data.open_data(spec("folder:pics"))
    make_folder(second / "pics", 70)
    assert levels(data.open_data(spec("folder:pics"))) == [70]


def test_what_stands_for_a_missing_set_is_said(tmp_path, cache_folder, monkeypatch):
    root = make_folder(tmp_path / "pics", 50)
    known = spec(f"folder:{root}")
    assert lines(data.open_data(known), monkeypatch) == ["convolutions: XLA"]
    prepare.prepare(known, tmp_path / "copies", raw=True)
    root.rename(tmp_path / "away")
    said = f"'folder:{root}' isn't on this machine: the images of 'train' and 'test' are those"
    assert lines(data.open_data(known), monkeypatch)[0] == (
        f"{said} that an earlier run decoded and kept in {cache_folder}"
    )
    copied = data.open_data(dataclasses.replace(known, copies=str(tmp_path / "copies")))
    assert lines(copied, monkeypatch)[0] == f"{said} of the mapped copy in {tmp_path / 'copies'}"
    # A copy of an earlier commit has its relative name.
    described = tmp_path / "copies" / "pics_raw_16" / "copy.json"
    described.write_text(described.read_text().replace(f"folder:{root}", "folder:pics"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "empty"))
    copied = data.open_data(spec("folder:pics", copies=str(tmp_path / "copies")))
    assert levels(copied) == [50]


def test_a_split_of_another_name_is_said(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "pics", 50, train=3, val=2)
    opened = data.open_data(spec(f"folder:{root}"))
    assert lines(opened, monkeypatch)[0] == f"split 'test' is read from {root / 'val'}"
    opened = data.open_data(spec(f"folder:{root}", eval_split="val"))
    assert lines(opened, monkeypatch) == ["convolutions: XLA"]
    # As `evaluate --split` opens it.
    opened = data.open_split(
        data.open_for_evaluation(opened.spec, class_names=CLASSES, num_train=6), "valid"
    )
    assert opened.places == (f"split 'valid' is read from {root / 'val'}",)


def test_a_slice_that_lacks_a_class_is_said(tmp_path, monkeypatch):
    """What was written class after class, as copies of folders are, is sliced class after class."""
    make_set(tmp_path / "data")  # its images are of either class in turn
    known = spec("tiny", data_dir=str(tmp_path / "data"))
    part = dataclasses.replace(known, train_split="train[:1]", eval_split="train[2:4]")
    said = "split 'train[:1]' has no image of 1 of 2 classes: bee"
    assert said in lines(data.open_data(part), monkeypatch)
    assert not any("no image of" in line for line in lines(data.open_data(known), monkeypatch))


def test_a_set_prepared_again_is_decoded_again(tmp_path):
    """With as many images of the same sizes and other labels."""
    first = make_set(tmp_path / "data")
    known = spec("tiny", data_dir=str(first))
    before = data.open_data(known).splits["train"]
    shutil.rmtree(first)
    make_set(tmp_path / "data", flipped=True)
    after = data.open_data(known).splits["train"]
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.labels, 1 - before.labels)

    # Neither is known to be the one meant where the set is gone; a copy of one is the same one.
    shutil.rmtree(first)
    with pytest.raises(UserError, match="2 versions"):
        data.open_data(known)


def test_class_names_in_another_form_of_unicode_are_the_same(tmp_path):
    """An é of two characters, as a Mac writes it: what is kept has it as one."""
    folder = make_set(tmp_path / "data")
    (labels,) = folder.rglob("label.labels.txt")
    labels.write_text("cafe\u0301\nbee\n", encoding="utf-8")
    known = spec("tiny", data_dir=str(tmp_path / "data"))
    first = data.open_data(known)
    assert first.class_names == data.open_data(known).class_names == ("caf\u00e9", "bee")


def test_a_copy_has_a_mean_of_its_own(tmp_path, cache_folder):
    """Pictures that were drawn again in place have their old names and sizes."""
    root = make_folder(tmp_path / "pics", 10)
    known = spec(f"folder:{root}")
    for path in root.rglob("*.png"):
        Image.new("RGB", (16, 16), (10, 10, 10)).save(path.with_suffix(".bmp"))
        path.unlink()
    prepare.prepare(known, tmp_path / "copies", raw=True)
    for path in root.rglob("*.bmp"):
        Image.new("RGB", (16, 16), (200, 200, 200)).save(path)
    means = [
        data.statistics(data.open_data(dataclasses.replace(known, **place))).channel_mean.mean()
        for place in ({"copies": str(tmp_path / "copies")}, {})
    ]
    assert means == [10, 200]


def test_kept_files_of_the_same_images_are_one_version(tmp_path, cache_folder):
    known = spec("tiny", data_dir=str(make_set(tmp_path / "data")))
    data.open_data(known)
    for path in (tmp_path / "data").rglob("*tfrecord*"):
        os.utime(path, (1, 1))
    expected = data.open_data(known).splits["train"]
    assert len(list(cache_folder.glob("tiny-train-*16px-v*"))) == 2
    (tmp_path / "data").rename(tmp_path / "away")
    kept = data.open_data(known).splits["train"]
    np.testing.assert_array_equal(kept.squares, expected.squares)


@pytest.mark.parametrize(
    ("train_split", "eval_split", "shared"),
    [
        ("train", "train", "20 of the 20"),
        ("train", "train[:50%]", "10 of the 10"),
        ("train", "train[90%:]", "2 of the 2"),
        ("train[:90%]", "train[80%:]", "2 of the 4"),
        ("train[:3]+train[5:8]", "train[2:6]+test", "2 of the 9"),
        ("train", "all", "20 of the 25"),
        ("train[:90%]", "train[90%:]", None),
        ("train", "test", None),
    ],
)
def test_evaluating_on_training_images_is_said(
    tmp_path, monkeypatch, train_split, eval_split, shared
):
    known = spec("tiny", data_dir=str(make_set(tmp_path)), train_split=train_split)
    opened = data.open_data(dataclasses.replace(known, eval_split=eval_split))
    said = [
        f"{shared} evaluation images are trained on: their errors say nothing of new images"
    ] * bool(shared)
    assert lines(opened, monkeypatch) == [*said, "convolutions: XLA"]


def test_the_same_folder_twice_is_said_and_equal_names_and_sizes_are_not(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "pics", 50, train=2)
    name = f"folder:{root}"
    (root / "test").symlink_to(root / "train")
    assert data.open_data(spec(name, backend="tfdata")).shared == 4
    (root / "test").unlink()
    assert data.open_data(spec(name, backend="tfdata", eval_split="train")).shared == 4
    for split in ("train", "test"):
        for i, label in enumerate(CLASSES):
            place = root / split / label
            place.mkdir(parents=True, exist_ok=True)
            for number in range(2):  # Their sizes are the same for all levels.
                level = 40 * i + 10 * number + (split == "test")
                Image.new("L", (16, 16), level).save(place / f"{number}.bmp")
                (place / f"{number}.png").unlink(missing_ok=True)
    assert data.open_data(spec(name, backend="tfdata")).shared == 0
    assert data.open_data(spec(name)).shared == 0


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (("train", "train"), "6 of the 6 evaluation images are trained on"),
        (("train", "valid"), "split 'valid' is read from .*/val"),
    ],
)
def test_the_check_of_a_data_set_says_so_too(tmp_path, splits, said):
    root = make_folder(tmp_path / "pics", 50, train=3, val=2)
    known = {"data.name": f"folder:{root}", "data.image_size": 12}
    known |= {"data.train_split": splits[0], "data.eval_split": splits[1]}
    flags = [f"--config.{name}={value}" for name, value in known.items()]
    done = tiny.command("alexnet_jax.check_data", "--config=folder", *flags)
    assert done.returncode == 0, done.stderr
    assert re.search(said, " ".join(done.stdout.split()))


@pytest.mark.parametrize("backend", ["device", "tfdata"])
def test_a_newer_pillow_reads_what_an_older_one_could_not(tmp_path, monkeypatch, backend):
    root = make_folder(tmp_path / "pics", 50)
    (root / "train" / "bee" / "1.png").write_bytes(png(80))
    square = decode.square

    def older(encoded, size):
        if encoded == png(80):
            raise decode.BadImage("an unknown kind of image")
        return square(encoded, size)

    def means():
        opened = data.open_data(spec(f"folder:{root}", backend=backend, bad_images="skip"))
        return set(data.statistics(opened).mean_image.ravel().tolist()), dict(opened.bad["train"])

    monkeypatch.setattr(decode, "square", older)
    mean, bad = means()
    assert mean == {50}
    assert list(bad) == [4]
    monkeypatch.setattr(decode, "square", square)
    assert means() == (mean, bad)  # Nothing is read again for nothing.
    monkeypatch.setattr(PIL, "__version__", "99.0")
    assert means() == ({55}, {})
    # Where no image is bad, the version doesn't matter.
    monkeypatch.setattr(PIL, "__version__", "100.0")
    monkeypatch.setattr(squares, "read_all", None)  # Calling it would fail.
    assert means() == ({55}, {})


def test_a_set_that_is_only_kept_and_too_large_for_memory_is_one_line(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "pics", 50)
    known = spec(f"folder:{root}")
    data.open_data(known)
    root.rename(tmp_path / "away")
    monkeypatch.setattr(decoded, "free_memory", lambda: decoded.RESERVE)
    said = f"'folder:{root}' itself isn't on this machine to be read as it goes: fetch it"
    with pytest.raises(UserError, match=said) as raised:
        data.open_data(dataclasses.replace(known, backend="auto"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "data_dir", "said"),
    [
        ("folder:", "", "names no folder.*shell variable"),
        ("folder:~no-such-user/pics", "", "~no-such-user/pics.*no such user"),
        ("folder:gs://bucket/pics", "", "gs:// address"),
        ("tiny", "~no-such-user/d", "~no-such-user/d.*no such user"),
        ("photos", "~no-such-user/d", "~no-such-user/d.*no such user"),
        ("photos", "gs://bucket/tfds", r"data\.data_dir.*gs:// address"),
        ("tiny", "gs://bucket/tfds", r"data\.data_dir.*gs:// address"),
    ],
)
def test_a_path_that_means_nothing_is_one_line(name, data_dir, said):
    with pytest.raises(UserError, match=said) as raised:
        data.open_data(spec(name, data_dir=data_dir))
    assert "\n" not in str(raised.value)


def test_places_of_copies_and_caches_that_mean_nothing_are_one_line(tmp_path, monkeypatch):
    known = spec(f"folder:{make_folder(tmp_path / 'pics', 50)}")
    with pytest.raises(UserError, match=r"~no-such-user/c.*no such user"):
        data.open_data(dataclasses.replace(known, copies="~no-such-user/c"))
    with pytest.raises(UserError, match=r"~no-such-user/c.*no such user"):
        prepare.prepare(known, "~no-such-user/c", raw=True)
    monkeypatch.setenv("ALEXNET_JAX_CACHE", "~no-such-user/c")
    with pytest.raises(UserError, match=r"\$ALEXNET_JAX_CACHE.*no such user"):
        data.open_data(known)
