"""Batches from both backends: exact order, every example once, the same numbers from each."""

import contextlib
import dataclasses
import gc
import io
import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import data, prepare
from alexnet_jax.data import copies, decode, decoded, mapped, plan, squares, tfdata
from alexnet_jax.data.plan import epoch_plan, views
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError
from alexnet_jax.trained import pictures

SHARED = Path(__file__).parents[2] / "shared" / "data"
CLASSES = ("ant", "bee", "cow")
TRAIN, TEST = 21, 11
BACKENDS = ("tfdata", "mapped", "device")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of small photographs of all shapes: 21 to train on and 11, no ants, to test on."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split, count in {"train": TRAIN, "test": TEST}.items():
        for i in range(count):
            place = root / split / (CLASSES[i % 3] if split == "train" else CLASSES[1 + i % 2])
            place.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (random.integers(15, 60), random.integers(15, 60), 3))
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:02}.png")
    return root


def make_spec(root, **fields):
    fields = {"backend": "tfdata", "eval_split": "test", "image_size": 12} | fields
    fields = {"resize_size": 16} | fields
    spec = data.DataSpec(name=f"folder:{root}", **fields)
    if spec.backend == "mapped" and not spec.copies:
        with contextlib.redirect_stdout(io.StringIO()):
            prepare.prepare(spec, root.parent / "copies", raw=True)
        spec = dataclasses.replace(spec, copies=str(root.parent / "copies"))
    return spec


@pytest.fixture(autouse=True)
def several_shards(monkeypatch):
    monkeypatch.setattr(copies, "SHARD", 8)


def make_shardings(*mesh_shape, images=None):
    mesh = jax.make_mesh(
        mesh_shape,
        ("data", "model")[: len(mesh_shape)],
        devices=jax.devices()[: np.prod(mesh_shape)],
        axis_types=(jax.sharding.AxisType.Auto,) * len(mesh_shape),
    )
    rows = jax.NamedSharding(mesh, jax.P("data"))
    images = jax.NamedSharding(mesh, jax.P(images or "data"))
    return dict(images=images, labels=rows, crops=images, mask=rows, ids=rows)


ONE = make_shardings(1)


def take(batches, count):
    return [jax.tree.map(np.asarray, batch) for batch in itertools.islice(batches, count)]


def train(root, count=8, *, backend="tfdata", start_step=0, shardings=ONE, seed=5, **fields):
    opened = data.open_data(make_spec(root, backend=backend, **fields))
    batches = data.train_batches(
        opened, seed=seed, batch_size=8, start_step=start_step, shardings=shardings
    )
    return take(batches, count)


def evaluate(root, *, backend="tfdata", batch_size=8, count=1, shardings=ONE, **fields):
    opened = data.open_data(make_spec(root, backend=backend, **fields))
    batches = data.eval_batches(
        opened, "test", batch_size=batch_size, views=data.views(count, 4), shardings=shardings
    )
    return take(batches, None)


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_batches_are_the_plans_examples_and_crops(root, backend):
    source = open_source(f"folder:{root}", None, "train")
    batches = train(root, 5, backend=backend)  # Two steps an epoch: into the third epoch.
    for step, batch in enumerate(batches):
        epoch, k = divmod(step, TRAIN // 8)
        order, crops = epoch_plan(5, epoch, TRAIN, 4, crop=True, flip=True)
        ids = order[8 * k : 8 * k + 8]
        np.testing.assert_array_equal(batch["ids"], ids)
        np.testing.assert_array_equal(batch["crops"], crops[ids])
        assert batch["mask"].tolist() == [1] * 8
        for i, label, image in zip(ids, batch["labels"], batch["images"], strict=True):
            encoded, expected_label = source.read(i)
            y, x, flipped = crops[i]
            window = decode.square(encoded, 16)[y : y + 12, x : x + 12]
            np.testing.assert_array_equal(image, window[:, ::-1] if flipped else window)
            assert label == expected_label
        shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
        assert shapes == {
            "images": ((8, 12, 12, 3), "uint8"),
            "labels": ((8,), "int32"),
            "crops": ((8, 3), "int32"),
            "mask": ((8,), "float32"),
            "ids": ((8,), "int32"),
        }


@pytest.mark.parametrize("backend", ["mapped", "device"])
def test_all_backends_train_on_the_same_numbers(root, backend):
    assert_equal(train(root, backend=backend), train(root))


def test_the_device_backend_takes_64_bit_numbers(root):
    expected = train(root, 1, backend="device")
    with jax.enable_x64(True):
        assert_equal(train(root, 1, backend="device"), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start_step", [1, 2, 7, 1000])
def test_a_resumed_stream_is_the_tail(root, backend, start_step):
    if start_step < 8:
        expected = train(root, 10, backend=backend)[start_step:]
        assert_equal(train(root, len(expected), backend=backend, start_step=start_step), expected)
    else:
        resumed = train(root, 2, backend=backend, start_step=start_step)
        order = epoch_plan(5, 500, TRAIN, 4, crop=True, flip=True)[0]
        np.testing.assert_array_equal(resumed[0]["ids"], order[:8])


def training(batch_size=8):
    return plan.training(
        TRAIN, seed=5, batch_size=batch_size, start_step=0, margin=4, crop=True, flip=True
    )


def local(source, batches, rows, **options):
    """The host's own batches of tfdata, of a source, or of mapped, of a copy."""
    sizes = dict(image_size=12, rows=rows, **options)
    if isinstance(source, copies.Copy):
        return mapped.stream(source, batches, **sizes)
    return tfdata.stream(source, batches, resize_size=16, **sizes)


@pytest.mark.parametrize("num_threads", [1, 3, None])
def test_the_number_of_threads_changes_nothing(root, num_threads):
    source = open_source(f"folder:{root}", None, "train")

    def read(i):  # Some are slow, so that others overtake them.
        time.sleep(0.02 if i % 5 == 0 else 0)
        return source.read(i)

    slow = dataclasses.replace(source, read=read)
    batches = local(slow, training(), (0, 8), num_threads=num_threads)
    assert_equal(take(batches, 8), train(root))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_number_of_copying_threads_changes_nothing(root, num_threads, monkeypatch):
    monkeypatch.setattr(mapped, "_PART", 3)  # Parts that don't divide a batch.
    opened = data.open_data(make_spec(root, backend="mapped", flip=False)).splits["train"]
    unmirrored = take(local(opened, training(), (0, 8), num_threads=num_threads), 8)
    for batch, expected in zip(unmirrored, train(root), strict=True):
        mirrored = batch["crops"][:, 2] == 1
        batch["images"][mirrored] = batch["images"][mirrored, :, ::-1]
        np.testing.assert_array_equal(batch["images"], expected["images"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("mesh_shape", "images"), [((8,), None), ((4, 2), ("data", "model")), ((2, 4), None)]
)
def test_devices_change_nothing(root, backend, mesh_shape, images):
    shardings = make_shardings(*mesh_shape, images=images)
    assert_equal(train(root, 4, backend=backend, shardings=shardings), train(root, 4))
    opened = data.open_data(make_spec(root, backend=backend))
    batch = next(data.train_batches(opened, seed=0, batch_size=8, shardings=shardings))
    for key, sharding in shardings.items():
        assert batch[key].sharding.is_equivalent_to(sharding, batch[key].ndim)
    expected = evaluate(root, batch_size=8, count=10)
    assert_equal(evaluate(root, backend=backend, shardings=shardings, count=10), expected)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have memory of their own")
def test_a_cpu_takes_mapped_images_without_a_copy_and_they_are_not_reused_meanwhile(root):
    opened = data.open_data(make_spec(root, backend="mapped")).splits["train"]
    stream = local(opened, training(), (0, 8))
    images = next(stream)["images"]
    placed = jax.make_array_from_callback(images.shape, ONE["images"], images.__getitem__)
    address = images.ctypes.data
    assert placed.unsafe_buffer_pointer() == address
    before = images.copy()
    del images
    for _ in range(8):  # The device still holds it: nothing is written there.
        assert next(stream)["images"].ctypes.data != address
    np.testing.assert_array_equal(placed, before)
    del placed
    gc.collect()
    jax.device_put(0)  # JAX gives up what it held of Python's when it is next called.
    assert address in [next(stream)["images"].ctypes.data for _ in range(8)]


@pytest.mark.parametrize("backend", ["tfdata", "mapped"])
def test_processes_share_a_batch_by_rows(root, backend):
    opened = data.open_data(make_spec(root, backend=backend)).splits["train"]
    for batches in (training(), plan.evaluation(TRAIN, batch_size=8, views=views(9, 4))):
        whole = take(local(opened, batches, (0, 8)), 3)
        for rows in [(0, 3), (3, 8)]:
            share = take(local(opened, batches, rows), 3)
            assert_equal(share, [{k: v[slice(*rows)] for k, v in b.items()} for b in whole])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_crop_and_flip_training_sees_the_centre(root, backend):
    batch = train(root, 1, backend=backend, crop=False, flip=False)[0]
    assert (batch["crops"] == (2, 2, 0)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
@pytest.mark.parametrize("count", [1, 10])
def test_evaluation_sees_every_example_once(root, backend, batch_size, count):
    source = open_source(f"folder:{root}", None, "test", class_names=CLASSES)
    batches = evaluate(root, backend=backend, batch_size=batch_size, count=count)
    assert len(batches) == -(-TEST // batch_size)
    seen = Counter()
    for batch in batches:
        assert batch["images"].shape == (batch_size, count, 12, 12, 3)
        assert batch["crops"].shape == (batch_size, count, 3)
        for row in range(batch_size):
            if batch["mask"][row] == 0:
                assert batch["ids"][row] == -1
                assert not batch["images"][row].any()
                continue
            i = int(batch["ids"][row])
            seen[i] += 1
            encoded, label = source.read(i)
            assert label == batch["labels"][row]
            square = decode.square(encoded, 16)
            for view, (y, x, flipped) in enumerate(views(count, 4)):
                window = square[y : y + 12, x : x + 12]
                expected = window[:, ::-1] if flipped else window
                np.testing.assert_array_equal(batch["images"][row, view], expected)
    assert seen == Counter(range(TEST))


@pytest.mark.parametrize("backend", ["mapped", "device"])
@pytest.mark.parametrize("count", [1, 10])
def test_all_backends_evaluate_the_same_numbers(root, backend, count):
    assert_equal(evaluate(root, backend=backend, count=count), evaluate(root, count=count))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_transfer_is_implicit(root, backend):
    opened = data.open_data(make_spec(root, backend=backend))
    with jax.transfer_guard("disallow"):
        batches = data.train_batches(opened, seed=0, batch_size=8, shardings=make_shardings(8))
        for _ in range(5):
            jax.block_until_ready(next(batches))
        one_view = data.views(1, 4)
        for batch in data.eval_batches(
            opened, "test", batch_size=8, views=one_view, shardings=make_shardings(8)
        ):
            jax.block_until_ready(batch)


def test_the_device_backend_sends_nothing_between_steps(root):
    opened = data.open_data(make_spec(root, backend="device"))
    batches = data.train_batches(opened, seed=0, batch_size=4, shardings=ONE)  # 5 an epoch.
    next(batches)
    with jax.transfer_guard("disallow_explicit"):
        with pytest.raises(RuntimeError, match="transfer"):
            jax.device_put(np.zeros(3))
        for _ in range(4):
            jax.block_until_ready(next(batches))


def test_numbers_of_the_open_data(root):
    opened = data.open_data(make_spec(root))
    assert (opened.num_train, opened.num_eval, opened.num_classes) == (TRAIN, TEST, 3)
    assert opened.class_names == CLASSES
    assert opened.splits["test"].num_examples == TEST
    full = data.open_data(dataclasses.replace(make_spec(root), image_size=224, resize_size=0))
    assert full.resize_size == 256  # The paper's.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"backend": "disk"},
            "data.backend 'disk' is unknown: known: auto, device",
        ),
        ({"bad_images": "ignore"}, "data.bad_images 'ignore' is unknown: known: error, skip"),
        ({"resize_size": 11}, "data.resize_size is 11"),
        ({"image_size": 0}, "data.image_size is 0"),
        (
            {"eval_split": "elsewhere"},
            r"no split 'elsewhere'.*folders test, train.*data\.eval_split",
        ),
        ({"name": "folder:/none"}, "does not exist"),
    ],
)
def test_impossible_specs_are_refused(root, fields, message):
    with pytest.raises(UserError, match=message):
        data.open_data(dataclasses.replace(make_spec(root), **fields))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_larger_than_the_split_is_refused_at_once(root, backend):
    opened = data.open_data(make_spec(root, backend=backend))
    with pytest.raises(UserError, match=f"batch_size is {TRAIN + 1}"):
        data.train_batches(opened, seed=0, batch_size=TRAIN + 1, shardings=ONE)


# Undecodable images


@pytest.fixture
def spoilt(root, tmp_path):
    """The photographs again, three of them spoilt."""
    for file in sorted(root.rglob("*.png")):
        place = tmp_path / "spoilt" / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    spoilt = tmp_path / "spoilt"
    (spoilt / "train" / "bee" / "04.png").write_bytes(b"")
    (spoilt / "train" / "cow" / "08.png").write_bytes(b"a text")
    cut = spoilt / "test" / "bee" / "02.png"
    cut.write_bytes(cut.read_bytes()[:100])
    return spoilt


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_image_is_an_error_that_names_the_file(spoilt, backend):
    with pytest.raises(UserError, match=r"bee/04.png: the file is empty|cow/08.png: not an image"):
        train(spoilt, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_images_can_be_skipped_the_same_in_every_run(spoilt, backend):
    batches = train(spoilt, 20, backend=backend, bad_images="skip")
    skipped = {i for b in batches for i, m in zip(b["ids"], b["mask"], strict=True) if m == 0}
    assert skipped == {8, 16}  # 7 ants, then 04 is the second bee and 08 the third cow.
    for batch in batches:
        assert not batch["images"][batch["mask"] == 0].any()
    assert_equal(batches, train(spoilt, 20, backend="device", bad_images="skip"))

    opened = data.open_data(make_spec(spoilt, backend=backend, bad_images="skip"))
    tests = data.eval_batches(opened, "test", batch_size=4, views=data.views(1, 4), shardings=ONE)
    assert sum(batch["mask"].sum() for batch in tests) == TEST - 1
    assert list(opened.bad["test"]) == [1]
    assert opened.bad["test"][1].startswith(str(spoilt / "test" / "bee" / "02.png"))
    data.statistics(opened)
    assert sorted(opened.bad["train"]) == [8, 16]


def test_a_kept_file_with_skipped_images_is_an_error_where_they_are_errors(spoilt):
    train(spoilt, 1, backend="device", bad_images="skip")
    with pytest.raises(UserError, match=r"04\.png"):
        train(spoilt, 1, backend="device")


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """A TFDS set whose test split has no labels, and whose `mixed` split lacks the third."""
    import tensorflow_datasets as tfds

    image = np.zeros((16, 16, 3), np.uint8)
    labels = {"train": [0, 1, 2, 0], "test": [-1, -1], "mixed": [0, 1, -1]}
    data_dir = tmp_path_factory.mktemp("unlabelled")
    tfds.dataset_builders.AdhocBuilder(
        name="unlabelled",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=image.shape),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
        ),
        split_datasets={
            split: [(i, {"image": image, "label": label}) for i, label in enumerate(own)]
            for split, own in labels.items()
        },
        data_dir=data_dir,
    ).download_and_prepare()
    return data_dir


@pytest.mark.parametrize("backend", ["tfdata", "device"])
@pytest.mark.parametrize("skip", ["error", "skip"])
def test_a_split_without_labels_is_neither_trained_on_nor_evaluated(unlabelled, backend, skip):
    spec = dataclasses.replace(
        make_spec(unlabelled, backend=backend, bad_images=skip),
        name="unlabelled",
        data_dir=str(unlabelled),
    )
    for splits in (("test", "train"), ("train", "test")):  # at once, not after the first epoch
        with pytest.raises(UserError, match=r"label -1, none of the 3 classes.*split 'test'"):
            data.open_data(dataclasses.replace(spec, train_split=splits[0], eval_split=splits[1]))

    def evaluate_mixed():
        opened = data.open_data(dataclasses.replace(spec, eval_split="mixed"))
        take(data.eval_batches(opened, "mixed", batch_size=8, views=[(0, 0, 0)], shardings=ONE), 1)

    with pytest.raises(UserError, match=r"label -1, none.*split 'mixed'"):
        evaluate_mixed()


def test_in_other_use_an_unlabelled_picture_has_an_empty_label(unlabelled):
    source = open_source("unlabelled", str(unlabelled), "mixed")
    labels = [picture.read()[1] for picture in pictures.in_source(source)]
    assert sorted(labels) == ["", "ant", "bee"]


def test_one_class_is_refused(root, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "images").symlink_to(root / "train" / "ant")
    with pytest.raises(UserError, match="has one class, 'images'"):
        data.open_data(make_spec(tmp_path))


def test_a_file_that_vanishes_is_named(root, tmp_path):
    place = tmp_path / "gone" / "train" / "ant"
    place.mkdir(parents=True)
    for i in range(4):
        (place / f"{i}.png").write_bytes((root / "train" / "ant" / "00.png").read_bytes())
    place.with_name("bee").mkdir()
    (place / "3.png").rename(place.with_name("bee") / "3.png")
    (tmp_path / "gone" / "test").symlink_to(tmp_path / "gone" / "train")
    opened = data.open_data(make_spec(tmp_path / "gone", bad_images="skip"))
    (place / "2.png").unlink()
    batches = data.train_batches(opened, seed=0, batch_size=4, shardings=ONE)
    with pytest.raises(UserError, match=r"2\.png cannot be read"):
        next(batches)


# The decoded file


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refuse(*args, **kwargs):
    raise AssertionError("decoded again")


def test_kept_files_follow_the_umask(root, cache_folder):
    before = os.umask(0o002)
    try:
        train(root, 1, backend="device")
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in cache_folder.iterdir()}
    assert modes == {0o664}


def test_the_set_is_decoded_once(root, cache_folder, monkeypatch):
    expected = train(root, 2, backend="device")
    assert len(list(cache_folder.iterdir())) == 2  # One for each split.
    for file in cache_folder.iterdir():
        with np.load(file, allow_pickle=False) as arrays:
            assert arrays["squares"].shape[1:] == (16, 16, 3)
    monkeypatch.setattr(squares, "read_all", refuse)
    assert_equal(train(root, 2, backend="device"), expected)


def test_a_changed_set_is_decoded_again(root, cache_folder, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", root, copy], check=True)
    train(copy, 1, backend="device")
    Image.new("RGB", (20, 20), "red").save(copy / "train" / "ant" / "00.png")
    opened = data.open_data(make_spec(copy, train_split="train", backend="device"))
    views = data.views(1, 4)
    batch = next(data.eval_batches(opened, "train", batch_size=1, views=views, shardings=ONE))
    assert (np.asarray(batch["images"]) == (255, 0, 0)).all()


def test_the_kept_file_serves_where_the_set_and_tensorflow_are_missing(
    root, cache_folder, tmp_path, monkeypatch
):
    place = tmp_path / "moved"
    subprocess.run(["cp", "-r", root, place], check=True)
    expected = train(place, 2, backend="device"), evaluate(place, backend="device")
    place.rename(tmp_path / "elsewhere")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert_equal(train(place, 2, backend="device"), expected[0])
    assert_equal(evaluate(place, backend="device"), expected[1])
    assert data.statistics(data.open_data(make_spec(place, backend="device"))).mean_image.any()
    with pytest.raises(UserError, match="needs TensorFlow"):
        train(place, 1)

    # Two versions, neither known to be the one meant.
    (tmp_path / "elsewhere").rename(place)
    (place / "train" / "ant" / "00.png").unlink()
    train(place, 1, backend="device")
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="2 versions"):
        train(place, 1, backend="device")


def test_a_damaged_kept_file_is_made_again(root, cache_folder):
    expected = train(root, 2, backend="device")
    for file in cache_folder.iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert_equal(train(root, 2, backend="device"), expected)


def test_a_set_too_large_for_memory_is_refused(root, cache_folder, monkeypatch):
    size = TRAIN * 16 * 16 * 3
    monkeypatch.setattr(decoded, "free_memory", lambda: decoded.RESERVE + size - 1)
    with pytest.raises(UserError, match="'tfdata'"):
        train(root, 1, backend="device")


def test_an_unusable_cache_folder_only_costs_time(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert_equal(train(root, 2, backend="device"), train(root, 2))


def test_decoding_reports_its_progress(root, cache_folder):
    seen = []
    data.open_data(make_spec(root, backend="device"), progress=lambda *report: seen.append(report))
    assert ("decoding train", TRAIN, TRAIN) in seen
    assert ("decoding test", TEST, TEST) in seen


# Whole programs


def program(source, **environment):
    return subprocess.run(
        [sys.executable, "-c", source],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_program_ends_although_its_stream_is_running(root):
    source = f"""
from alexnet_jax.data import plan, sources, tfdata
source = sources.open_source("folder:{root}", None, "train")
batches = plan.training(
    21, seed=0, batch_size=8, start_step=0, margin=4, crop=True, flip=True
)
batches = tfdata.stream(source, batches, image_size=12, resize_size=16, rows=(0, 8))
next(batches)
raise SystemExit(7)
"""
    done = program(source, TF_ENABLE_ONEDNN_OPTS="0")
    assert done.returncode == 7
    assert done.stderr == ""


@pytest.mark.parametrize("end", ["raise UserError('gone')", "signal.raise_signal(signal.SIGINT)"])
@pytest.mark.parametrize(
    "stream",
    [
        "squares.read_all(source, 16, chunk=4)",
        "tfdata.stream(source, order, image_size=16, resize_size=16, rows=(0, 4))",
    ],
)
def test_no_thread_reads_on_after_a_stream_has_failed(root, end, stream):
    """While the interpreter ends it could not, and the program would wait for it for ever."""
    source = f"""
import gc, signal, time
from alexnet_jax.data import plan, sources, squares, tfdata
from alexnet_jax.errors import UserError

gc.disable()
signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell had it ignored
source = sources.open_source("folder:{root}", None, "train")
reading, read = set(), squares.read

def slow(source, example, *rest):
    reading.add(example)
    try:
        if example == 3:
            {end}
        time.sleep(0.3)
        return read(source, example, *rest)
    finally:
        reading.discard(example)

squares.read = slow
order = plan.evaluation(21, batch_size=4, views=[(0, 0, 0)])
try:
    for _ in {stream}:
        pass
except (UserError, KeyboardInterrupt) as error:
    kept = error
    print("failed while reading", reading or "nothing")
"""
    done = program(source)
    assert done.stdout.strip() == "failed while reading nothing", done.stderr


def test_importing_data_imports_no_tensorflow():
    source = "import sys, alexnet_jax.data; assert 'tensorflow' not in sys.modules"
    assert program(source).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_hold_the_rows_of_their_devices(root, tmp_path, backend):
    source = f"""
import sys, jax, numpy as np
rank = int(sys.argv[1]) if len(sys.argv) > 1 else int(__import__("os").environ["RANK"])
jax.distributed.initialize("127.0.0.1:" + __import__("os").environ["PORT"], 2, rank)
from alexnet_jax import data, prepare
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = jax.NamedSharding(mesh, jax.P("data"))
shardings = dict.fromkeys(("images", "labels", "crops", "mask", "ids"), rows)
spec = data.DataSpec(name="folder:{root}", eval_split="test", backend="{backend}",
    image_size=12, resize_size=16)
opened = data.open_data(spec)
batches = data.train_batches(opened, seed=5, batch_size=8, shardings=shardings)
out = {{}}
for step in range(3):
    for key, array in next(batches).items():
        for shard in array.addressable_shards:
            out[f"{{step}} {{key}} {{shard.index[0].start}}"] = np.asarray(shard.data)
np.savez(r"{tmp_path}/" + str(rank) + ".npz", **out)
"""
    port = str(20_000 + os.getpid() % 20_000)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", source],
            env=os.environ
            | {
                "RANK": str(rank),
                "PORT": port,
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            },
        )
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    expected = train(root, 3)
    for rank, starts in {0: (0, 2), 1: (4, 6)}.items():
        with np.load(tmp_path / f"{rank}.npz") as shards:
            assert len(shards.files) == 3 * 5 * 2
            for name in shards.files:
                step, key, start = name.split()
                assert int(start) in starts
                rows = expected[int(step)][key][int(start) : int(start) + 2]
                np.testing.assert_array_equal(shards[name], rows)


# Real data sets


def shared(name, **fields):
    if not (SHARED / name.split("/")[0]).exists():
        pytest.skip(f"needs {SHARED / name.split('/')[0]}")
    return data.DataSpec(name=name, data_dir=str(SHARED), **{"eval_split": "test"} | fields)


def test_cifar10_from_both_backends():
    spec = shared(
        "cifar10_jpeg",
        train_split="train[:300]",
        eval_split="test[:100]",
        image_size=24,
        resize_size=32,
    )
    batches = {}
    for backend in ("tfdata", "device"):
        opened = data.open_data(dataclasses.replace(spec, backend=backend))
        assert opened.class_names[:2] == ("airplane", "automobile")
        stream = data.train_batches(opened, seed=0, batch_size=128, shardings=make_shardings(8))
        batches[backend] = take(stream, 3)
    assert_equal(batches["tfdata"], batches["device"])


def test_imagenette_squares_keep_their_pixels():
    """Its shorter side is 160: a square of 160 is a crop of the original."""
    spec = shared("imagenette/160px-v2", train_split="train[:8]", eval_split="validation[:8]")
    opened = data.open_data(dataclasses.replace(spec, image_size=160, resize_size=160))
    batch = take(data.train_batches(opened, seed=0, batch_size=8, shardings=ONE), 1)[0]
    assert opened.num_classes == 10
    assert batch["images"].std() > 30
