"""Pictures and their classes: whole answers, names, plots, and what bad input gets."""

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import classify
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import evaluate, load_run
from alexnet_jax.trained import names, per_class, pictures, plots
from alexnet_jax.trained.pretrained import open_pretrained
from tests import tiny


@pytest.fixture(scope="module")
def net(trained):
    return open_pretrained(trained.workdir)


def answers(capsys, *arguments, **options):
    """(exit status, parsed lines of --json, lines on stderr) of one call in this process."""
    status = classify.answer(*arguments, as_json=True, **options)
    out, err = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err.splitlines()


def test_the_whole_test_split_has_the_error_of_evaluate(trained, net):
    run, params, _ = load_run(trained.workdir)
    expected = evaluate(run, params, views=10)
    found = list(classify.classify(net, pictures.find([str(trained.images / "test")]), views=10))
    assert len(found) == 36
    wrong = [each for each in found if net.class_names[each.top[0][0]] != each.label]
    assert 100 * len(wrong) / len(found) == pytest.approx(expected["top1_error"])
    own = [dict(each.top)[net.class_names.index(each.label)] for each in found]
    assert -np.log(own).mean() == pytest.approx(expected["loss"], rel=1e-3)


def test_the_batch_a_picture_is_in_changes_nothing(trained, capsys, monkeypatch):
    files = [str(trained.images / "test" / "coffee")]
    _, together, _ = answers(capsys, trained.workdir, files)
    monkeypatch.setattr(pictures, "CROPS", 4)  # three batches of 9, the last one padded
    _, parts, _ = answers(capsys, trained.workdir, files)
    _, alone, _ = answers(capsys, trained.workdir, [together[8]["image"]])
    assert [each["image"] for each in parts] == [each["image"] for each in together]
    for one, other in ((parts[8], together[8]), (alone[0], together[8])):
        assert [c["name"] for c in one["classes"]] == [c["name"] for c in other["classes"]]
        assert [c["probability"] for c in one["classes"]] == pytest.approx(
            [c["probability"] for c in other["classes"]], abs=1e-5
        )


def test_one_program_for_all_batches(trained, net, monkeypatch):
    monkeypatch.setattr(pictures, "CROPS", 4)
    traced = []

    def output(logits, _):
        traced.append(logits.shape)
        return logits

    chosen = pictures.find([str(trained.images / "test")])[:9]
    assert len(list(pictures.run(net, chosen, output))) == 9
    assert traced == [(4, 4)]


def test_a_bad_picture_is_named_and_the_others_answered(trained, tmp_path, capsys):
    shutil.copytree(trained.images / "test" / "coffee", tmp_path / "in" / "sub" / "coffee")
    (tmp_path / "in" / "empty.png").touch()
    (tmp_path / "in" / "text.jpg").write_text("not a picture")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    status, lines, errors = answers(capsys, trained.workdir, [str(tmp_path / "in")], top=2)
    assert status == 1
    assert len(lines) == 9
    assert all(len(line["classes"]) == 2 for line in lines)
    assert errors == [
        f"left out of '{tmp_path / 'in'}': 1 file without a known image suffix (.txt 1), such as"
        f" {tmp_path / 'in' / 'notes.txt'}",
        f"error: {tmp_path / 'in' / 'empty.png'}: the file is empty",
        f"error: {tmp_path / 'in' / 'text.jpg'}: not an image in a known format",
    ]


def test_linked_folders_are_read_and_a_link_to_a_folder_above_ends(trained, tmp_path):
    coffee = trained.images / "test" / "coffee"
    (tmp_path / "in" / "own").mkdir(parents=True)
    shutil.copy(coffee / "00.png", tmp_path / "in" / "own")
    for name in ("one", "two"):
        (tmp_path / "in" / name).symlink_to(coffee)
    (tmp_path / "in" / "own" / "loop").symlink_to(tmp_path / "in")
    found = [picture.name for picture in pictures.find([str(tmp_path / "in")])]
    files = sorted(path.name for path in coffee.iterdir())
    assert found == [
        f"{tmp_path}/in/{name}" for name in (*(f"one/{file}" for file in files), "own/00.png")
    ] + [f"{tmp_path}/in/two/{file}" for file in files]


def test_nothing_but_bad_pictures(trained, tmp_path, capsys):
    (tmp_path / "empty.png").touch()
    plot = tmp_path / "plot.png"
    status, lines, errors = answers(
        capsys, trained.workdir, [str(tmp_path / "empty.png")], plot=str(plot)
    )
    assert (status, lines, len(errors)) == (1, [], 1)
    assert not plot.exists()


def test_bars_and_names_for_people(trained, tmp_path, capsys):
    names_file = tmp_path / "names.txt"
    names_file.write_text("Raumfahrerin\nKaffee\nKies\nRakete\n", "utf-8")
    picture = trained.images / "test" / "coffee" / "00.png"
    assert classify.answer(trained.workdir, [str(picture)], names_file=str(names_file)) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == str(picture)
    shares = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in lines}
    assert set(shares) == {"Raumfahrerin", "Kaffee", "Kies", "Rakete"}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(100, abs=0.3)
    bars = [line.count("━") for line in lines]
    assert bars == [pytest.approx(30 * share / 100, abs=1) for share in shares.values()]


def test_names_as_other_systems_write_them(tmp_path):
    """Byte order marks, line ends and empty lines are no part of a name."""
    file, written = tmp_path / "names.txt", "\nKaffee\nKie\N{COMBINING DIAERESIS}s \n\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        for end in ("\n", "\r\n", "\r"):
            file.write_bytes(written.replace("\n", end).encode(encoding))
            found = names.read_names(file, 2)
            assert found == ("Kaffee", "Kie\N{COMBINING DIAERESIS}s"), (encoding, end)


@pytest.mark.parametrize("count", [1, 7])
def test_plot(trained, tmp_path, count):
    plot = tmp_path / "plot.png"
    files = sorted(str(path) for path in (trained.images / "test").rglob("*.png"))[:count]
    odd = tmp_path / os.fsdecode(b"$caf\xe9.png")  # neither UTF-8 nor a formula
    files[0] = str(shutil.copy(files[0], odd))
    assert classify.answer(trained.workdir, files, plot=str(plot), as_json=True) == 0
    with Image.open(plot) as image:
        width, height = image.size
        shown = np.asarray(image.convert("RGB"))
    assert min(width, height) > 150
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 100  # a photograph is in it


def test_a_pipe_is_read_once(trained, tmp_path):
    """As /dev/stdin behind another command: the plot shows what was classified."""
    pipe, plot = tmp_path / "pipe", tmp_path / "plot.png"
    os.mkfifo(pipe)
    data = (trained.images / "test" / "coffee" / "00.png").read_bytes()
    writer = threading.Thread(target=lambda: pipe.write_bytes(data), daemon=True)
    writer.start()
    status = []
    arguments = (trained.workdir, [str(pipe)])
    reader = threading.Thread(
        target=lambda: status.append(classify.answer(*arguments, plot=str(plot), as_json=True)),
        daemon=True,  # A second reading would wait for ever.
    )
    reader.start()
    reader.join(timeout=120)
    assert status == [0]
    assert plot.exists()


def test_the_right_answer_is_one_class_of_its_name(trained, tmp_path, monkeypatch):
    """Where two classes are called the same, as cranes of both kinds are."""
    names_file, drawn = tmp_path / "names.txt", []
    names_file.write_text("crane\ncrane\nKies\nRakete\n")
    monkeypatch.setattr(plots, "predictions", lambda path, shown: drawn.extend(shown))
    picture = str(trained.images / "test" / "coffee" / "00.png")
    plot = str(tmp_path / "plot.png")
    options = {"names_file": str(names_file), "plot": plot, "as_json": True}
    assert classify.answer(trained.workdir, [picture], **options) == 0
    ((one,), names_drawn) = drawn, {name for name, _ in drawn[0].bars}
    assert names_drawn == {"crane [0]", "crane [1]", "Kies", "Rakete"}
    assert one.right == "crane [1]"  # coffee, and not the astronaut


def test_errors_of_classes_whose_names_no_table_can_hold(tmp_path):
    """Names of folders may be any bytes, and look like formulas."""
    classes = (os.fsdecode(b"ca\xf1a"), "$a$b$", "plain")
    title = f"runs/{os.fsdecode(b'ca')}$x_$ {classes[0]}"
    table, picture = per_class.write(tmp_path / "errors", np.eye(3, dtype=int), classes, title)
    rows = table.read_text("utf-8").splitlines()
    assert rows[1:3] == ["ca\\udcf1a,1,0.0000,1,0,0", "$a$b$,1,0.0000,0,1,0"]
    with Image.open(picture) as image:
        assert min(image.size) > 150


def mistakes(trained, tmp_path):
    empty, short = tmp_path / "empty", tmp_path / "short.txt"
    empty.mkdir()
    short.write_text("one\ntwo\n")
    picture = str(trained.images / "test" / "coffee" / "00.png")
    return {
        "empty folder": ([str(empty)], {}, "holds no images"),
        "missing file": ([picture.replace("00.png", "0x.png")], {}, "did you mean '0"),
        "nothing": ([], {}, "name image files or folders"),
        "names of another length": (
            *([picture], {"names_file": str(short)}),
            "names 2 classes, and the net has 4",
        ),
        "an address": (["https://example.org/cat.jpg"], {}, "https:// address"),
        "plot at an address": ([picture], {"plot": "gs://bucket/plot.png"}, "gs:// address"),
        "no names file": ([picture], {"names_file": str(tmp_path / "no")}, "No such file"),
        "top": ([picture], {"top": 0}, "at least 1"),
        "views": ([picture], {"views": 3}, "1, 9 or 10"),
        "plot of another kind": ([picture], {"plot": str(tmp_path / "plot.doc")}, "doc"),
        "plot nowhere": ([picture], {"plot": str(tmp_path / "no" / "plot.png")}, "No such file"),
    }


def test_mistakes_get_one_line(trained, tmp_path, capsys):
    for name, (files, options, expected) in mistakes(trained, tmp_path).items():
        with pytest.raises(UserError, match=expected) as raised:
            classify.answer(trained.workdir, files, as_json=True, **options)
        assert "\n" not in str(raised.value), name


def test_the_command(trained):
    picture = trained.images / "test" / "rocket" / "00.png"
    done = tiny.command(
        "alexnet_jax.classify", f"--workdir={trained.workdir}", "--top=1", "--json", picture
    )
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["image"] == str(picture)
    both = (f"--workdir={trained.workdir}", "--weights=photos")
    done = tiny.command("alexnet_jax.classify", *both, picture)
    assert done.returncode == 1
    assert done.stderr.startswith("error: which net?")
    assert len(done.stderr.splitlines()) == 1


def test_imagenets_names_stand_in_the_order_of_tfds():
    import tensorflow_datasets as tfds

    labels = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert list(names.imagenet()) == labels
    assert len(set(names.imagenet().values())) == 1000
    # What Imagenette's authors call its ten classes (github.com/fastai/imagenette).
    imagenette = {
        "n01440764": "tench",
        "n02102040": "English springer",
        "n02979186": "cassette player",
        "n03000684": "chain saw",
        "n03028079": "church",
        "n03394916": "French horn",
        "n03417042": "garbage truck",
        "n03425413": "gas pump",
        "n03445777": "golf ball",
        "n03888257": "parachute",
    }
    assert names.english(tuple(imagenette)) == tuple(imagenette.values())
    assert names.english(("cat", "n01440764")) == ("cat", "tench")


def test_matplotlib_is_only_loaded_to_draw():
    script = "import sys, alexnet_jax.classify; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
