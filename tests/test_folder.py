"""One's own pictures in one command: held-out fifths, numbers that suit, errors by class."""

import shutil

import pytest
from PIL import Image

from alexnet_jax.assemble import suited
from alexnet_jax.config import load_config, override
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError
from alexnet_jax.train import train
from tests import tiny


def names(root, split):
    """CLASS/IMAGE of each example of a split."""
    source = open_source(f"folder:{root}", None, split)
    return {line.partition("\0")[0] for line in source.files}


@pytest.fixture
def flat(tmp_path):
    """PATH/CLASS/*.png without splits: 20 images of each of four classes."""
    tiny.make_folder(tmp_path / "split", train=20, test=0)
    shutil.move(tmp_path / "split" / "train", tmp_path / "flat")
    return tmp_path / "flat"


def test_a_fifth_of_each_class_is_held_out_and_stays(flat):
    training, held = names(flat, "train"), names(flat, "validation")
    assert not training & held
    assert len(training) == 64
    for folder in flat.iterdir():
        assert len([name for name in held if name.startswith(f"{folder.name}/")]) == 4
    assert names(flat, "test") == held  # whatever a configuration calls it
    source = open_source(f"folder:{flat}", None, "train")
    assert any("16 images, a fifth of each class" in line for line in source.left_out)
    # More images in one class leave the others as they are, and most of its own.
    for i in range(5):
        shutil.copy(flat / "coffee" / "00.png", flat / "coffee" / f"new{i}.png")
    again = names(flat, "validation")
    assert {each for each in held if "coffee" not in each} <= again
    assert len(again - held) == 1 + len(held - again)
    assert len(held - again) <= 2


def test_splits_are_found_by_their_usual_names(tmp_path):
    root = tiny.make_folder(tmp_path / "images", train=3, test=2)
    assert len(names(root, "validation")) == 8  # the folder test
    (root / "test").rename(root / "val")
    assert len(names(root, "validation")) == len(names(root, "test")) == 8
    assert len(names(root, "train")) == 12


def test_bad_folders_are_one_line(tmp_path):
    def folder(name, **counts):
        for label, count in counts.items():
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / name / label / f"{i}.png")
        return tmp_path / name

    for root, said in (
        (folder("one_class", cat=5), "has one class, 'cat'"),
        (folder("one_image", cat=5, dog=1), "dog holds one image, 0.png: a class needs two"),
        (folder("fewer", cat=1, dog=0, bird=0), "cat holds one image|holds no images"),
        (folder("none", cat=0, dog=0), "what look like classes|no split 'train'"),
        (folder("loose", cat=5, dog=5, test=3), "directly in test, which would be a class"),
        (tmp_path / "missing", "does not exist"),
    ):
        config = override(load_config("folder"), {"data.name": f"folder:{root}"})
        with pytest.raises(UserError, match=said) as raised:
            train(config, tmp_path / "run")
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "run").exists()


def test_numbers_suit_the_number_of_images():
    config = load_config("folder")
    for count, batch_size, num_epochs in ((8, 4, 60), (72, 8, 60), (1000, 64, 20), (9469, 64, 15)):
        found = suited(config, count)
        assert (found.batch_size, found.num_epochs) == (batch_size, num_epochs)
        assert found.log_every_steps == count // batch_size
    given = suited(override(config, {"batch_size": 2, "num_epochs": 3}), 1000)
    assert (given.batch_size, given.num_epochs, given.log_every_steps) == (2, 3, 500)
    assert suited(load_config("imagenet2012"), 10) == load_config("imagenet2012")


def test_a_run_on_a_folder_says_how_each_class_went(flat, tmp_path, capsys):
    config = load_config(tiny.make_config(tmp_path / "tiny.py", flat))
    left = dict.fromkeys(("batch_size", "log_every_steps"))
    config = override(config, {**left, "num_epochs": 2, "per_class": True})
    assert train(config, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "left out of train: 16 images, a fifth of each class" in said
    assert "for 64 training images: batches of 8, a line each 8 steps" in said
    assert "errors by class" in said
    listed = (tmp_path / "run" / "evaluation_files.txt").read_text().splitlines()
    assert set(listed) == names(flat, "validation")
    written = sorted(path.name for path in (tmp_path / "run" / "per_class").iterdir())
    assert [name.partition("views")[2] for name in written] == ["-mistakes.png", ".csv", ".png"]
    assert all(str(tmp_path / "run" / "per_class" / name) in said for name in written)
    # The same command finds it ended, with the numbers that it chose.
    assert train(config, tmp_path / "run") == 0
    assert "the run has ended" in capsys.readouterr().out
