"""Activations of pictures, and which are alike in them."""

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import features
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError
from alexnet_jax.trained import pictures
from alexnet_jax.trained.pretrained import open_pretrained
from tests import tiny


@pytest.fixture(scope="module")
def net(trained):
    return open_pretrained(trained.workdir)


def test_what_the_file_holds(trained, net, tmp_path):
    out = tmp_path / "features.npz"
    folders = [str(trained.images / "test" / name) for name in ("rocket", "coffee")]
    assert features.show(trained.workdir, folders, layer="pool5", out=str(out)) == 0
    with np.load(out, allow_pickle=False) as kept:
        kept = dict(kept)
    assert list(kept["labels"]) == ["rocket"] * 9 + ["coffee"] * 9
    assert kept["files"][9] == str(trained.images / "test" / "coffee" / "00.png")
    assert kept["layer"] == "pool5"
    assert kept["features"].dtype == np.float32

    pixels = np.asarray(Image.open(kept["files"][9]))
    _, activations = net.model.apply({"params": net.params}, net.preprocess(pixels))
    np.testing.assert_allclose(kept["features"][9], activations["pool5"][0], rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == [out]


def test_a_split_of_a_data_set_is_as_its_files(trained, net):
    source = open_source(f"folder:{trained.images}", "", "test")
    by_source = features.features(net, pictures.in_source(source), layer="fc7")
    by_files = features.features(net, pictures.find([str(trained.images / "test")]), layer="fc7")
    assert by_source.labels == by_files.labels
    assert [p.name for p in by_source.pictures] == [p.name for p in by_files.pictures]
    np.testing.assert_array_equal(by_source.features, by_files.features)


def test_nearest_equals_the_plain_computation():
    rng = np.random.default_rng(0)
    values = rng.normal(1000, 1, (300, 5, 2)).astype(np.float32)
    flat = values.reshape(300, -1).astype(np.float64)
    distances = np.linalg.norm(flat[:, None] - flat, axis=2)
    np.fill_diagonal(distances, np.inf)
    indices, found = features.nearest(values, 7)
    np.testing.assert_array_equal(indices, np.argsort(distances, axis=1)[:, :7])
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :7], rtol=1e-6)


def test_an_image_is_not_its_own_neighbour_but_its_copy_is():
    indices, distances = features.nearest(np.array([[1.0, 2], [5, 5], [1, 2]]), 2)
    assert indices.tolist() == [[2, 1], [0, 2], [0, 1]]
    assert distances.tolist() == [[0, 5], [5, 5], [0, 5]]


def test_neighbours_are_printed_and_drawn(trained, tmp_path, capsys):
    plot = tmp_path / "neighbours.png"
    folder = trained.images / "test" / "coffee"
    status = features.show(trained.workdir, [str(folder)], layer="fc6", neighbors=3, plot=str(plot))
    assert status == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == [*(str(folder / f"0{i}.png") for i in range(9)), f"plot: {plot}"]
    for start in range(0, 36, 4):
        query, *near = lines[start : start + 4]
        distances = [float(line.split()[0]) for line in near]
        assert distances == sorted(distances)
        assert query not in [line.split(maxsplit=1)[1] for line in near]
    with Image.open(plot) as image:
        assert image.height > image.width  # nine rows of four pictures


def test_a_bad_picture_leaves_the_others(trained, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n")
    good = trained.images / "test" / "coffee" / "00.png"
    out = tmp_path / "features.npz"
    assert features.show(trained.workdir, [str(bad), str(good)], out=str(out), neighbors=1) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {bad}: ")
    assert len(printed.err.splitlines()) == 1
    assert np.load(out)["files"].tolist() == [str(good)]
    plot = tmp_path / "plot.png"
    options = {"neighbors": 1, "plot": str(plot)}
    assert features.show(trained.workdir, [str(bad), str(good)], **options) == 1
    assert capsys.readouterr().out.startswith("no plot: no two pictures could be read")
    assert not plot.exists()
    assert features.show(trained.workdir, [str(bad)], out=str(out)) == 1
    assert np.load(out)["files"].tolist() == []


def test_mistakes_get_one_line(trained, tmp_path):
    files = [str(trained.images / "test" / "coffee")]
    cases = [
        (files, {"layer": "fc77", "out": "x.npz"}, "did you mean 'fc7'"),
        (files, {"layer": "relu5", "out": "x.npz"}, "known: .*act5"),
        (files, {}, "nothing to do"),
        (files, {"plot": "x.png", "out": "x.npz"}, "--neighbors=6"),
        (files, {"neighbors": 9}, "there are only 9 pictures"),
        (files, {"out": str(tmp_path / "no" / "x.npz")}, "No such file"),
        (files, {"data": "photos", "split": "test", "neighbors": 1}, "no pictures: name images"),
        ([], {"data": "photos", "neighbors": 1}, "no pictures: name images"),
        ([], {"neighbors": 1}, "no pictures: name images"),
        ([], {"data": "folder:/no", "split": "test", "neighbors": 1}, "/no does not exist"),
    ]
    for names, options, expected in cases:
        with pytest.raises(UserError, match=expected) as raised:
            features.show(trained.workdir, names, **options)
        assert "\n" not in str(raised.value)


def test_the_command(trained, tmp_path):
    out = tmp_path / "features.npz"
    done = tiny.command(
        "alexnet_jax.features",
        f"--workdir={trained.workdir}",
        *(f"--data=folder:{trained.images}", "--split=test", "--neighbors=1"),
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"features: {out}  fc7  36 x 32"
    assert len(done.stdout.splitlines()) == 1 + 2 * 36
