"""Random access to encoded images: what is read, its order, and what a broken data set gets."""

import io
import json
import os
import shutil
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import cache
from alexnet_jax.data.sources import (
    OtherClasses,
    SourceMissing,
    download,
    open_source,
    records,
    splits,
)
from alexnet_jax.errors import UserError

CLASSES = ("ant", "bee", "cow")


def picture(i):
    file = io.BytesIO()
    Image.new("RGB", (8 + i % 3, 8), (i, 255 - i, 7)).save(file, "PNG")
    return file.getvalue()


def build(data_dir, *, name="tiny", file_format="tfrecord", labelled=True):
    """Prepares a TFDS set of 50 examples: `train` 40 of them in 4 shards, `test` 10."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(None, None, 3))}
    if labelled:
        features["label"] = tfds.features.ClassLabel(names=CLASSES)

    def examples(start, stop):
        for i in range(start, stop):
            example = {"image": io.BytesIO(picture(i))}
            yield i, example | ({"label": i % 3} if labelled else {})

    builder = tfds.dataset_builders.AdhocBuilder(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples(0, 40), "test": examples(40, 50)},
        data_dir=data_dir,
        file_format=file_format,
    )
    config = tfds.download.DownloadConfig(num_shards=4)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("prepared data, ünïcode")
    build(data_dir)
    return data_dir


@pytest.fixture
def copy(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


def everything(source):
    return [source.read(i) for i in range(source.num_examples)]


@pytest.mark.parametrize("split", ["train", "test", "train[:25%]", "train[7:31]", "train+test"])
def test_reads_what_tfds_reads_in_its_order(prepared, split):
    import tensorflow_datasets as tfds

    builder = tfds.builder("tiny", data_dir=prepared)
    dataset = builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    expected = [(e["image"], e["label"]) for e in tfds.as_numpy(dataset)]
    source = open_source("tiny", str(prepared), split)
    assert source.class_names == CLASSES
    assert everything(source) == expected


def test_array_records(tmp_path):
    pytest.importorskip("array_record.python")
    build(tmp_path, file_format="array_record")
    import tensorflow_datasets as tfds

    rows = tfds.builder("tiny", data_dir=tmp_path).as_data_source(
        split="train[5:]", decoders={"image": tfds.decode.SkipDecoding()}
    )
    source = open_source("tiny", str(tmp_path), "train[5:]")
    assert everything(source) == [(row["image"], row["label"]) for row in rows]
    shard = sorted(tmp_path.glob("tiny/1.0.0/*train*00002*"))[0]
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(UserError, match="00002"):
        open_source("tiny", str(tmp_path), "train")


def test_many_threads_read_the_same(prepared):
    source = open_source("tiny", str(prepared), "train")
    expected = everything(source)
    wrong = []

    def reader(seed):
        for i in np.random.default_rng(seed).integers(0, 40, 500).tolist():
            if source.read(i) != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_describe_names_shard_and_record(prepared):
    source = open_source("tiny", str(prepared), "train[15:]")
    assert source.describe(0).endswith("tiny-train.tfrecord-00001-of-00004, record 5")
    assert source.describe(24).endswith("tiny-train.tfrecord-00003-of-00004, record 9")


def shard_of(data_dir):
    return sorted(data_dir.glob("tiny/1.0.0/*train*"))[2]


def test_a_missing_shard_is_named(copy):
    shard_of(copy).unlink()
    with pytest.raises(UserError, match=r"00002-of-00004.*incomplete"):
        open_source("tiny", str(copy), "train")
    open_source("tiny", str(copy), "test")


@pytest.mark.parametrize("damage", ["cut", "cut in a header", "empty", "longer", "lengths"])
def test_a_damaged_shard_is_named_when_opening(copy, damage):
    open_source("tiny", str(copy), "train")  # With its index kept, too.
    shard = shard_of(copy)
    data = shard.read_bytes()
    changed = {
        "cut": data[:-7],
        "cut in a header": data[: len(data) // 10 + 5],
        "empty": b"",
        "longer": data + data[: len(data) // 10],
        "lengths": data[:5] + b"\xff" + data[6:],
    }[damage]
    shard.write_bytes(changed)
    with pytest.raises(UserError, match=shard.name):
        open_source("tiny", str(copy), "train")


def test_a_corrupt_record_is_an_error_of_its_example(copy):
    source = open_source("tiny", str(copy), "train")
    shard = shard_of(copy)
    data = bytearray(shard.read_bytes())
    data[12:30] = b"\xff" * 18
    state = shard.stat()
    shard.write_bytes(data)
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ValueError, match="corrupt"):
        source.read(20)
    source.read(21)


def test_the_index_is_kept_and_read_only_data_stays_untouched(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "cache"))
    before = sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*"))
    for path in [*copy.rglob("*"), copy]:
        path.chmod(path.stat().st_mode & ~0o222)
    first = everything(open_source("tiny", str(copy), "train"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(records, "_record_table", None)  # Calling it would fail.
    assert everything(open_source("tiny", str(copy), "train")) == first
    assert sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*")) == before
    for path in [copy, *copy.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


def test_an_unusable_cache_folder_does_not_stop_reading(prepared, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert open_source("tiny", str(prepared), "train").num_examples == 40


@pytest.mark.parametrize("damage", [b"", b"no zip", b"PK\x03\x04cut"])
def test_a_damaged_index_is_made_again(prepared, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path))
    first = everything(open_source("tiny", str(prepared), "train"))
    for file in tmp_path.iterdir():
        file.write_bytes(damage)
    assert everything(open_source("tiny", str(prepared), "train")) == first


def test_the_fingerprint_is_the_datas_not_the_places(prepared, copy):
    train = open_source("tiny", str(prepared), "train").fingerprint
    assert open_source("tiny", str(copy), "train").fingerprint == train
    assert open_source("tiny", str(prepared), "train[:39]").fingerprint != train
    assert open_source("tiny", str(prepared), "test").fingerprint != train


def test_unknown_splits_name_the_known(prepared):
    for split in ("validation", "train[", "", "train[:0]"):
        with pytest.raises(UserError, match=r"no split.*train, test|no examples"):
            open_source("tiny", str(prepared), split)


def test_unknown_names_get_the_nearest(tmp_path):
    with pytest.raises(UserError, match="imagenette"):
        open_source("imagenete", str(tmp_path), "train")
    for name in ("../etc", "no such set", "", "huggingface:x/y", "imagenette/17px"):
        with pytest.raises(UserError) as raised:
            open_source(name, str(tmp_path), "train")
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_imagenet_names_its_archives_and_their_place(tmp_path):
    with pytest.raises(SourceMissing) as raised:
        open_source("imagenet2012", str(tmp_path), "train")
    message = str(raised.value)
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in message
    assert str(tmp_path / "downloads" / "manual") in message
    assert str(tmp_path / "imagenet2012") in message
    assert "\n" not in message


def test_a_download_without_network_ends_at_once(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(download.socket, "create_connection", refuse)
    monkeypatch.setattr(download.urllib.request, "getproxies", dict)
    with pytest.raises(SourceMissing) as raised:
        open_source("cifar10", str(tmp_path), "train")
    assert str(tmp_path / "cifar10") in str(raised.value)
    assert "Name or service not known" in str(raised.value)
    with pytest.raises(SourceMissing, match="not prepared"):
        open_source("cifar10", str(tmp_path), "train", download=False)


def test_a_set_without_labels_is_refused(tmp_path):
    build(tmp_path, name="unlabelled", labelled=False)
    with pytest.raises(UserError, match=r"not image classification.*image"):
        open_source("unlabelled", str(tmp_path), "train")


def test_float_images_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.dataset_builders.AdhocBuilder(
        name="depths",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.float32),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
        ),
        split_datasets={"train": [(0, {"image": np.zeros((8, 8, 1), np.float32), "label": 0})]},
        data_dir=tmp_path,
    )
    builder.download_and_prepare()
    with pytest.raises(UserError, match="images of data set 'depths' are float32"):
        open_source("depths", str(tmp_path), "train")


def test_without_tfds_the_message_says_so_and_what_is_there(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert open_source("tiny", str(prepared), "train").num_examples == 40
    for name, found in {"tinny": "did you mean tiny", "tiny:2.0.0": "tiny/1.0.0 is there"}.items():
        with pytest.raises(SourceMissing, match=f"{found}.*pip install tensorflow-datasets"):
            open_source(name, str(prepared), "train")


def test_features_are_read_as_older_tfds_wrote_them(copy):
    expected = open_source("tiny", str(copy), "train").fingerprint
    path = copy / "tiny" / "1.0.0" / "features.json"
    kind = "tensorflow_datasets.core.features"
    image = {"shape": [None, None, 3], "dtype": "uint8", "encoding_format": "png"}
    label = {"type": f"{kind}.class_label_feature.ClassLabel", "content": {"num_classes": 3}}
    image = {"type": f"{kind}.image_feature.Image", "content": image}
    whole = {"type": f"{kind}.features_dict.FeaturesDict", "content": {}}
    path.write_text(json.dumps(whole | {"content": {"image": image, "label": label}}))
    assert open_source("tiny", str(copy), "train").fingerprint == expected
    for text in ("", "{}", "[]", '{"featuresDict": {"features": 3}}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"features\.json.*cannot be read|not image"):
            open_source("tiny", str(copy), "train")


def test_a_set_from_before_features_json_is_read_with_tfdss_own_description(tmp_path):
    folder = build(tmp_path, name="cifar10")
    expected = open_source("cifar10", str(tmp_path), "train").fingerprint
    (folder / "features.json").unlink()
    assert open_source("cifar10", str(tmp_path), "train").fingerprint == expected
    folder = build(tmp_path, name="nobody_knows")
    (folder / "features.json").unlink()
    with pytest.raises(UserError, match=r"features\.json is missing"):
        open_source("nobody_knows", str(tmp_path), "train")


LENGTHS = {"train": (10, 0, 7, 23), "test": (3,), "all_of-it": (1, 1)}
BOUNDS = ("", "0", "1", "7", "-3", "40", "41", "20%", "33.5%", "-12.5%", "100%", "101%", "1shard")
BOUNDS += ("-1shard", "0shard", "4shard", "1_0", "1.5", "x", "2.5%")


def test_expressions_are_read_as_tfds_reads_them():
    from tensorflow_datasets.core import naming
    from tensorflow_datasets.core import splits as theirs

    template = naming.ShardedFileTemplate(Path("/d"), dataset_name="set", filetype_suffix="f")
    known = theirs.SplitDict(
        theirs.SplitInfo(
            name=name,
            shard_lengths=list(counts),
            num_bytes=0,
            filename_template=template.replace(split=name),
        )
        for name, counts in LENGTHS.items()
    )
    own = {
        name: [
            splits.Shard(str(path), count)
            for path, count in zip(known[name].filepaths, counts, strict=True)
        ]
        for name, counts in LENGTHS.items()
    }
    slices = [
        f"{split}[{first}:{end}]"
        for split in ("train", "test")
        for first in BOUNDS
        for end in BOUNDS
    ]
    others = [f"train[{each}]" for each in (*BOUNDS, "1:2:3", ":")]
    sums = [
        "train[:50%] + test",
        "test+train+test",
        " train",
        "all",
        "all[:5]",
        "nothing",
        "+",
        "",
        "all_of-it",
        "train[5:5]",
        "train[9:3]",
    ]
    for expression in (*LENGTHS, *slices, *others, *sums):
        try:
            expected = [
                (each.filename, each.skip, each.take, each.examples_in_shard)
                for each in known[expression].file_instructions
                if each.take > 0
            ]
        except Exception:
            with pytest.raises(ValueError, match=r"."):
                splits.rows(expression, own)
            continue
        found = splits.rows(expression, own)
        assert [(e.filename, e.skip, e.take, e.examples_in_shard) for e in found] == expected, (
            expression
        )


# Folders


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "my photos, ünïcode ☂"
    for split, count in {"train": 3, "val": 1}.items():
        for label, name in enumerate(CLASSES):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i} é.PNG").write_bytes(picture(10 * label + i))
    return root


def test_folder_order_labels_and_names(folder):
    source = open_source(f"folder:{folder}", None, "train")
    assert source.class_names == CLASSES
    assert everything(source) == [(picture(10 * c + i), c) for c in range(3) for i in range(3)]
    assert source.describe(4) == str(folder / "train" / "bee" / "1 é.PNG")


def test_folder_ignores_hidden_and_foreign_files(folder):
    fingerprint = open_source(f"folder:{folder}", None, "train").fingerprint
    (folder / "train" / ".DS_Store").touch()
    (folder / "train" / ".hidden").mkdir()
    (folder / "train" / "README.txt").touch()
    (folder / "train" / "ant" / "._0.png").write_bytes(b"x")
    (folder / "train" / "ant" / "notes.txt").touch()
    (folder / "train" / "ant" / "folder.png").mkdir()
    source = open_source(f"folder:{folder}", None, "train")
    assert source.num_examples == 9
    assert source.fingerprint == fingerprint


def test_folder_says_what_it_leaves_out(folder):
    train = folder / "train"
    (train / "ant" / "young" / "very").mkdir(parents=True)
    for name in ("beside.png", "ant/young/0.png", "ant/young/very/1.jpg"):
        (train / name).write_bytes(picture(0))
    for name in ("ant/a.HEIC", "bee/b.heic", "cow/nosuffix", "bee/x.PFM"):
        (train / name).write_bytes(picture(0))
    (train / "ant" / "young" / "loop").symlink_to(train)
    source = open_source(f"folder:{folder}", None, "train")
    assert source.num_examples == 10  # nine, and the PFM
    assert source.left_out == (
        "1 image beside the class folders, such as beside.png",
        "2 images in folders of a class, such as ant/young/0.png",
        "3 files without a known image suffix (.heic 2, no suffix 1), such as ant/a.HEIC",
    )


def test_folder_follows_symbolic_links(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    (folder / "train" / "dog").symlink_to(folder / "val" / "bee", target_is_directory=True)
    (folder / "train" / "ant" / "z.png").symlink_to(folder / "val" / "cow" / "0 é.PNG")
    source = open_source(f"folder:{link}", None, "train")
    assert source.class_names == (*CLASSES, "dog")
    assert source.read(3) == (picture(20), 0)


@pytest.mark.parametrize("target", ["nowhere", "z.png"])
def test_a_link_to_nothing_is_named(folder, target):
    (folder / "train" / "ant" / "z.png").symlink_to(target)
    with pytest.raises(UserError, match=r"ant/z\.png cannot be read"):
        open_source(f"folder:{folder}", None, "train")


@pytest.mark.parametrize(
    ("target", "reason"), [("nowhere", "No such file"), ("dog", "Too many levels of symbolic")]
)
def test_a_class_behind_a_link_to_nothing_is_named(folder, target, reason):
    (folder / "train" / "dog").symlink_to(target)
    said = f"train/dog is a link to {target} and cannot be followed: {reason}.*repair or remove"
    with pytest.raises(UserError, match=said):
        open_source(f"folder:{folder}", None, "train")
    open_source(f"folder:{folder}", None, "val")
    # One that is named as an image is no class, and counted as what it is.
    (folder / "train" / "dog").rename(folder / "train" / "dog.png")
    left_out = open_source(f"folder:{folder}", None, "train").left_out
    assert left_out == ("1 image beside the class folders, such as dog.png",)


def test_a_split_behind_a_link_to_nothing_is_named(folder):
    (folder / "test").symlink_to("nowhere")
    for split in ("train", "val"):
        open_source(f"folder:{folder}", None, split)
    for split in ("test", "validation"):  # and not replaced by another
        with pytest.raises(UserError, match="test is a link to nowhere and cannot be followed"):
            open_source(f"folder:{folder}", None, split)


def test_folder_fingerprint_follows_names_and_sizes_the_stamp_times_too(folder, tmp_path):
    def opened(place):
        source = open_source(f"folder:{place}", None, "train")
        return source.fingerprint, source.stamp

    found = [opened(folder)]
    file = folder / "train" / "bee" / "1 é.PNG"
    os.utime(file, ns=(1, 1))
    found.append(opened(folder))
    assert opened(f"{folder}/") == opened(folder.rename(tmp_path / "moved")) == found[-1]
    file = tmp_path / "moved" / file.relative_to(folder)
    file = file.rename(file.with_name("9.png"))
    found.append(opened(tmp_path / "moved"))
    file.write_bytes(b"longer" * 100)
    found.append(opened(tmp_path / "moved"))
    fingerprints, stamps = zip(*found, strict=True)
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3
    assert len(set(stamps)) == 4


def test_letters_and_accents_taken_apart_are_the_same_names(folder):
    """As macOS writes them; beside those of another system in another split."""
    before = open_source(f"folder:{folder}", None, "train").fingerprint
    for path in [*folder.rglob("*é*")]:
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert open_source(f"folder:{folder}", None, "train").fingerprint == before

    (folder / "train" / "bee").rename(folder / "train" / "e\u0301te\u0301")
    (folder / "val" / "bee").rename(folder / "val" / "\u00e9t\u00e9")
    train = open_source(f"folder:{folder}", None, "train")
    assert train.class_names == ("ant", "cow", "été")
    val = open_source(f"folder:{folder}", None, "val", class_names=train.class_names)
    assert everything(val)[-1] == (val.read(val.num_examples - 1)[0], 2)
    (folder / "val" / "e\u0301te\u0301").mkdir()
    with pytest.raises(UserError, match="read the same"):
        open_source(f"folder:{folder}", None, "val", class_names=train.class_names)


def test_labels_are_matched_to_the_classes_of_training_by_name(prepared):
    own = open_source("tiny", str(prepared), "test")
    classes = (*reversed(CLASSES), "dog")
    other = open_source("tiny", str(prepared), "test", class_names=classes)
    for (image, label), (same, place) in zip(everything(own), everything(other), strict=True):
        assert (image, CLASSES[label]) == (same, classes[place])
    assert other.stamp != own.stamp  # what was kept of the other labels doesn't serve
    with pytest.raises(OtherClasses, match=r"'cow', which isn't among .* ant, bee"):
        open_source("tiny", str(prepared), "test", class_names=CLASSES[:2])


def test_a_split_may_lack_classes_but_not_have_others(folder):
    shutil.rmtree(folder / "val" / "ant")
    source = open_source(f"folder:{folder}", None, "val", class_names=CLASSES)
    assert [label for _, label in everything(source)] == [1, 2]
    (folder / "val" / "elk").mkdir()
    with pytest.raises(UserError, match=r"'elk'.*ant, bee, cow"):
        open_source(f"folder:{folder}", None, "val", class_names=CLASSES)


def test_a_missing_split_names_what_is_there(folder):
    with pytest.raises(UserError, match=r"no split 'holdout'.*train, val"):
        open_source(f"folder:{folder}", None, "holdout")
    for split in ("", "..", "train/ant", "/"):
        with pytest.raises(UserError, match="no split"):
            open_source(f"folder:{folder}", None, split)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "nothing in it"),
        (["a.jpg"], "images directly in it, such as a.jpg"),
        (["train/a.jpg"], "images directly in it, such as a.jpg"),
        (["train/a.jpg", "train/b.jpg", "test/c.jpg", "test/d.jpg"], "such as a.jpg"),
        (["train/a.jpg", "val/c.jpg", "more/e.jpg"], "images directly in it, such as a.jpg"),
        (["train/cat/notes.txt"], "holds no images"),
        (["train/cat/a.jpg", "train/dog/b.txt"], "dog holds no images"),
        (["train/cat/a.jpg", "train/dog/1/b.jpg"], "no images but deeper down, such as .*dog/1/b"),
        (["train/notes.txt"], "no class folders"),
    ],
)
def test_a_mislaid_folder_says_what_was_found(tmp_path, files, found):
    for name in files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(0))
    with pytest.raises(UserError, match=found) as raised:
        open_source(f"folder:{tmp_path}", None, "train")
    assert "SPLIT/CLASS/IMAGE" in str(raised.value)


def test_a_missing_folder_is_missing(tmp_path):
    with pytest.raises(SourceMissing, match="does not exist"):
        open_source(f"folder:{tmp_path / 'none'}", None, "train")


def test_cache_files_load_no_pickles(tmp_path):
    np.savez(tmp_path / "x.npz", meta=np.array("{}"), bomb=np.array([object()], dtype=object))
    assert cache.read(tmp_path / "x.npz") is None
