"""The photos set: which pixels its patches come from, and that building it is safe and exact."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax.data import photos
from alexnet_jax.errors import UserError

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return photos.dataset_dir(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small(monkeypatch):
    """Two photographs, six train and two test patches of each: builds in a moment."""
    monkeypatch.setattr(photos, "PHOTOGRAPHS", dict(list(photos.PHOTOGRAPHS.items())[:2]))
    monkeypatch.setattr(photos, "PATCHES", {"train": 6, "test": 2})


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("class_name", photos.PHOTOGRAPHS)
def test_train_and_test_pixels_lie_a_margin_apart(class_name):
    width, height = photos.load_photograph(class_name).size
    seen = {split: np.zeros((height, width), bool) for split in photos.PATCHES}
    for split, pixels in seen.items():
        boxes = photos.patch_boxes(width, height, split)
        assert len(set(boxes)) == len(boxes) == photos.PATCHES[split]
        for left, top, right, bottom in boxes:
            assert min(left, top, width - right, height - bottom) >= 0
            assert (right - left, bottom - top) == (photos.SIDE, photos.SIDE)
            pixels[top:bottom, left:right] = True
    reach = np.zeros_like(seen["train"])  # Train pixels, and all less than MARGIN columns away.
    for shift in range(-photos.MARGIN, photos.MARGIN + 1):
        reach[:, max(0, shift) : width + min(0, shift)] |= seen["train"][
            :, max(0, -shift) : width - max(0, shift)
        ]
    assert not (reach & seen["test"]).any()


def test_patches_cover_all_strips_from_top_to_bottom():
    boxes = np.array(photos.patch_boxes(512, 512, "train") + photos.patch_boxes(512, 512, "test"))
    assert boxes[:, 0].min() == 0
    assert boxes[:, 2].max() > 512 - 3 * photos.COLUMN_STEP
    assert boxes[:, 1].min() == 0
    assert boxes[:, 3].max() > 512 - photos.SIDE // 2


def test_a_photograph_too_small_is_refused():
    with pytest.raises(ValueError, match="300x200 pixels is too small"):
        photos.patch_boxes(300, 200, "train")


def test_the_set_is_a_tfds_set_with_balanced_classes(built):
    by_name = tfds.builder("photos", data_dir=built.parent.parent)
    for builder in (by_name, tfds.builder_from_directory(built)):
        assert builder.info.features["label"].names == list(photos.PHOTOGRAPHS)
        for split, count in photos.PATCHES.items():
            assert builder.info.splits[split].num_examples == count * len(photos.PHOTOGRAPHS)
    examples = list(tfds.as_numpy(by_name.as_dataset(split="test", shuffle_files=False)))
    counts = np.bincount([example["label"] for example in examples])
    assert (counts == photos.PATCHES["test"]).all()
    assert len(counts) == len(photos.PHOTOGRAPHS)
    assert {example["image"].shape for example in examples} == {(photos.SIDE, photos.SIDE, 3)}


def test_records_are_the_photographs_pixels(built):
    builder = tfds.builder_from_directory(built)
    stored = {
        (int(example["label"]), example["image"].tobytes())
        for example in tfds.as_numpy(builder.as_dataset(split="test"))
    }
    names = list(photos.PHOTOGRAPHS)
    cut = {(names.index(name), np.asarray(p).tobytes()) for name, p in photos.patches("test")}
    assert stored == cut


def test_classes_are_mixed_in_the_stored_order(built):
    builder = tfds.builder_from_directory(built)
    dataset = tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False).take(100))
    assert len({int(example["label"]) for example in dataset}) > len(photos.PHOTOGRAPHS) // 2


def test_two_builds_are_byte_identical_and_leave_nothing_else(small, tmp_path, capfd):
    said, place = [], tmp_path / "again"
    first = photos.dataset_dir(tmp_path / "first")
    again = photos.dataset_dir(place, lambda *what: said.append(what))
    assert contents(again) == contents(first)
    assert said == [("preparing photos", 0, 0)]
    assert [path.name for path in place.iterdir()] == ["photos"]
    assert [path.name for path in (place / "photos").iterdir()] == [photos.VERSION]
    assert capfd.readouterr().out == ""


def test_the_files_are_those_that_tfds_writes(small, tmp_path):
    """But for the order of a record's fields, which TFDS leaves to chance."""

    def examples(split):
        for key, (name, patch) in enumerate(photos.patches(split)):
            png = io.BytesIO()
            patch.save(png, "PNG")
            png.seek(0)
            yield key, {"image": png, "label": name}

    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=list(photos.PHOTOGRAPHS)),
    }
    builder = tfds.dataset_builders.AdhocBuilder(
        name="photos",
        version=photos.VERSION,
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: list(examples(split)) for split in photos.PATCHES},
        data_dir=tmp_path / "theirs",
        description="Patches of photographs that ship with scikit-image, one class a photograph.",
        homepage="https://scikit-image.org/docs/stable/api/skimage.data.html",
    )
    builder.download_and_prepare()
    theirs = contents(Path(builder.data_dir))
    for shard in Path(builder.data_dir).glob("*.tfrecord-*"):
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]
        with tf.io.TFRecordWriter(str(shard)) as writer:
            for record in records:
                example = tf.train.Example.FromString(record)
                writer.write(example.SerializeToString(deterministic=True))
        theirs[shard.name] = shard.read_bytes()
    assert contents(photos.dataset_dir(tmp_path / "ours")) == theirs


def test_a_built_set_is_used_as_it_is(built):
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    assert photos.dataset_dir(built.parent.parent, pytest.fail) == built
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before


def test_a_stopped_build_leaves_nothing(small, tmp_path, monkeypatch):
    def stop(folder, **_):
        assert len(list(folder.glob("*.tfrecord-*"))) == 2  # under their own names, but aside
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(photos.tfds_files, "write_description", stop)
        with pytest.raises(KeyboardInterrupt):
            photos.dataset_dir(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (photos.dataset_dir(tmp_path) / "dataset_info.json").exists()


def test_what_a_killed_build_left_is_removed_in_time(small, tmp_path):
    killed, running = tmp_path / ".photos-killed", tmp_path / ".photos-running"
    for folder in (killed, running):
        (folder / "photos").mkdir(parents=True)
    os.utime(killed, (0, 0))
    photos.dataset_dir(tmp_path)
    assert not killed.exists()
    assert running.exists()


def test_the_slower_of_two_builds_takes_the_others_result(small, built, tmp_path, monkeypatch):
    """Another process finishes between this one's first look and its rename."""

    def build_after_another(root):
        folder = build(root)
        monkeypatch.setattr(photos, "_build", build)
        photos.dataset_dir(tmp_path)
        winner.update(contents(tmp_path / "photos" / photos.VERSION))
        return folder

    build, winner = photos._build, {}
    monkeypatch.setattr(photos, "_build", build_after_another)
    result = photos.dataset_dir(tmp_path)
    assert contents(result) == winner != {}
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.slow
def test_two_processes_may_build_at_once(built, tmp_path):
    program = f"from alexnet_jax.data import photos; photos.dataset_dir({str(tmp_path)!r})"
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(tmp_path / "photos" / photos.VERSION) == contents(built)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_no_data_dir_means_that_of_tfds(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert photos.dataset_dir("") == tmp_path / "tfds" / "photos" / photos.VERSION


def test_a_place_that_cannot_be_written_is_named(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot build the photos set in .*file/photos.*data_dir="):
        photos.dataset_dir(tmp_path / "file")


def test_a_read_only_place_is_named(small, tmp_path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "mkdir", refuse)  # A real read-only folder doesn't stop root.
    with pytest.raises(UserError, match=r"Permission denied.*data_dir="):
        photos.dataset_dir(tmp_path)


def test_an_unfinished_set_in_the_way_is_named_and_kept(small, tmp_path):
    stray = tmp_path / "photos" / photos.VERSION / "stray"
    stray.parent.mkdir(parents=True)
    stray.write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        photos.dataset_dir(tmp_path)
    assert stray.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_scikit_image_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        photos.dataset_dir(tmp_path)
    assert list(tmp_path.iterdir()) == []
