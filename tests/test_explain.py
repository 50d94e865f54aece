"""The page of `explain`: what it shows is what the net has, and what each of its parts finds."""

import re

import numpy as np
import pytest

from alexnet_jax import explain
from alexnet_jax.errors import UserError
from alexnet_jax.explained import halves, layers, occlusion, patches, sections
from alexnet_jax.explained.seen import look
from alexnet_jax.models import create, operations
from alexnet_jax.summary import receptive_fields
from alexnet_jax.trained import pictures


@pytest.fixture(scope="module")
def picture(trained):
    return str(trained.images / "test" / "coffee" / "00.png")


@pytest.fixture(scope="module")
def seen(trained, picture):
    return look(str(trained.workdir), picture)[0]


def test_the_page(trained, picture, tmp_path, capsys):
    target = explain.explain(str(trained.workdir), picture, str(tmp_path / "out"))
    text = target.read_text()
    assert "36 pictures of folder:" in capsys.readouterr().out
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc7"):
        assert f"<h3>{layer}" in text
    assert "Which half saw what" in text
    shares = [float(x) for x in re.findall(r'<div class="share">([\d.]+)%', text)]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    # It stands alone: nothing is fetched from anywhere.
    assert "http" not in text
    assert set(re.findall(r'src="(.{0,15})', text)) == {"data:image/png;"}
    assert text.count("<figure>") > 60


def test_another_page_is_not_written_over(tmp_path):
    target = tmp_path / "index.html"
    target.write_text("<title>Our institute</title>")
    with pytest.raises(UserError, match="is no page of explain: name another --out"):
        explain.explain("no net", "no picture", str(tmp_path))
    assert target.read_text() == "<title>Our institute</title>"
    target.write_text("<title>What a net sees in coffee.png</title>")  # one of its own
    with pytest.raises(UserError, match="no file or folder 'no picture'"):
        explain.explain("no net", "no picture", str(tmp_path))


def test_without_its_data_the_page_says_so(trained, seen, tmp_path):
    chosen, about = explain.the_set(str(trained.workdir), str(tmp_path / "gone"))
    assert chosen == []
    assert about.startswith("The data set is not at hand")
    text = "".join(sections.units(seen, chosen, about))
    assert "The data set is not at hand" in text
    assert "conv5: maps" in text  # what this picture has is shown all the same


def test_what_a_value_sees(seen):
    """Pixels outside a value's field don't change it, and those in its middle do."""
    found = layers.fields(seen.table)
    assert {name: field.side for name, field in found.items()} == receptive_fields(seen.table)
    paper = layers.fields(operations(create("alexnet"), 224))
    assert (paper["conv1"].side, paper["conv1"].jump, paper["pool5"].side) == (11, 4, 195)
    field, net = found["act2"], seen.net
    y, x = field.centre(1, 2)
    inside = np.zeros(seen.image.shape, bool)
    top, left = (max(0, round(at - field.side / 2)) for at in (y, x))
    inside[:, top : round(y + field.side / 2), left : round(x + field.side / 2)] = True
    for changed, same in ((np.where(inside, seen.image, 0), True), (seen.image * ~inside, False)):
        _, activations = net.model.apply({"params": net.params}, changed)
        values = np.asarray(activations["conv2"])[0, 1, 2], seen.activations["conv2"][0, 1, 2]
        assert np.allclose(*values, atol=1e-5) == same


def test_covering_lowers_what_rests_on_a_place(seen):
    falls = occlusion.fall(seen.net, seen.image, [0, 1])
    assert falls.shape == (2, occlusion.PLACES, occlusion.PLACES)
    size, side = seen.image.shape[1], occlusion.side_of(seen.image.shape[1])
    covered = seen.image.copy()
    at = np.linspace(0, size, occlusion.PLACES)[[4, 9]]
    (top, left), (bottom, right) = np.ceil(at - side / 2 - 0.5), np.ceil(at + side / 2 - 0.5)
    covered[:, int(top) : int(bottom), int(left) : int(right)] = 0
    logits, _ = seen.net.model.apply({"params": seen.net.params}, covered)
    share = np.exp(logits[0] - logits[0].max())
    expected = (seen.shares - share / share.sum())[:2]
    np.testing.assert_allclose(falls[:, 4, 9], expected, atol=1e-4)


def test_the_most_exciting_pictures(trained, seen):
    chosen = pictures.find([str(trained.images / "test")])
    units = patches.Units("fc7", (3, 5))
    found = patches.exciting(seen.net, chosen, [units])["fc7"]
    rows = list(pictures.run(seen.net, chosen, lambda _, activations: activations["fc7"]))
    for number, unit in enumerate(units.numbers):
        values = sorted((float(row[0, unit]) for *_, row in rows), reverse=True)
        assert [each.value for each in found[number]] == pytest.approx(values[:6], abs=1e-5)


def test_each_half_alone(seen):
    alone = halves.probabilities(seen.net, seen.image, seen.table)
    assert alone.shape == (2, 4)
    np.testing.assert_allclose(alone.sum(axis=1), 1, atol=1e-5)
    assert not np.allclose(alone[0], alone[1])


def test_what_is_no_picture(trained, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.jpg.*not an image in a known format"):
        explain.explain(str(trained.workdir), str(tmp_path / "text.jpg"), str(tmp_path))
    folder = str(trained.images / "test" / "coffee")
    with pytest.raises(UserError, match=r"coffee' has 9 pictures: name one of them$"):
        explain.explain(str(trained.workdir), folder, str(tmp_path))
