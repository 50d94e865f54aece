"""Prints the most probable classes of pictures, with their probabilities.

python -m alexnet_jax.classify [--workdir=RUN | --weights=NAME|FILE]  IMAGE|FOLDER …
    [--top=5] [--views=1|9|10] [--names=FILE] [--json] [--plot=out.png]
python -m alexnet_jax.classify --list

Without a run or weights it is a net that comes with the package; --list names those.

Softmax probabilities are averaged over the views of each picture (paper, section 4.1). The exit
status is 1 if a picture could not be read; the others are classified all the same.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from absl import flags

from alexnet_jax import cli, console
from alexnet_jax.errors import UserError, local_path
from alexnet_jax.trained import names, pictures, plots, shipped
from alexnet_jax.trained.pretrained import Pretrained, open_pretrained

PLOTTED = 24  # pictures in one plot


@dataclass(frozen=True)
class Answer:
    """Holds a picture, the name of its folder or class, and its best (class index, probability)."""

    picture: pictures.Picture
    label: str
    top: list[tuple[int, float]]


def classify(
    net: Pretrained, chosen: Sequence[pictures.Picture], *, top: int = 5, views: int = 1
) -> Iterator[Answer]:
    """Yields the `top` most probable classes of each readable picture, the most probable first."""
    rows = pictures.run(net, chosen, lambda logits, _: jax.nn.softmax(logits), views=views)
    for picture, label, probabilities in rows:
        mean = probabilities.mean(axis=0, dtype=np.float64)
        order = np.argsort(-mean, kind="stable")[:top]
        yield Answer(picture, label, [(int(i), float(mean[i])) for i in order])


def answer(
    path: str,
    files: Sequence[str],
    *,
    top: int = 5,
    views: int = 1,
    names_file: str | None = None,
    as_json: bool = False,
    plot: str | None = None,
) -> int:
    """Classifies `files` with the net at `path` and prints the classes; returns the exit status.

    Raises:
        UserError: `pictures.find`, `open_pretrained` or `class_names` raises it, `top` is below 1,
            or `views` is not 1, 9 or 10.
    """
    if top < 1:
        raise UserError(f"--top={top}: must be at least 1")
    if views not in (1, 9, 10):
        raise UserError(f"--views={views}: choose 1, 9 or 10")
    plot = plot and local_path(plot)
    chosen = pictures.find(files)
    net = open_pretrained(path)
    shown_names = class_names(net, names_file)
    answers = []
    for each in classify(net, chosen, top=top, views=views):
        answers.append(each)
        if as_json:
            print(json.dumps(_json(each, shown_names)), flush=True)
        else:
            console.bars(each.picture.name, [(shown_names[i], p) for i, p in each.top])
    if plot and answers:
        plotted = answers[:PLOTTED]
        titles = names.told_apart([each.picture.name for each in plotted])
        unique = _unique(shown_names)
        shown = [
            _plotted(each, title, net, unique) for each, title in zip(plotted, titles, strict=True)
        ]
        plots.predictions(plot, shown)
        more = f", the first {PLOTTED} of {len(answers)}" if len(answers) > PLOTTED else ""
        console.say(f"plot: {plot}{more}", enabled=not as_json)
    return 1 if len(answers) < len(chosen) else 0


def class_names(net: Pretrained, names_file: str | None = None) -> tuple[str, ...]:
    """Returns a name for each of the net's outputs, from a file or as stored with the weights.

    Raises:
        UserError: the file is unreadable, or has another number of names.
    """
    count = net.model.num_classes
    if names_file:
        return names.read_names(names_file, count)
    own = names.english(net.class_names[:count])
    return (*own, *(f"class {i}" for i in range(len(own), count)))


def _unique(shown_names: Sequence[str]) -> list[str]:
    """Returns the names, each that several classes share with the class's index behind it.

    In a plot, the right class is marked by its name.
    """
    counts = Counter(shown_names)
    return [f"{name} [{i}]" if counts[name] > 1 else name for i, name in enumerate(shown_names)]


def _json(each: Answer, shown_names: Sequence[str]) -> dict:
    return {
        "image": each.picture.name,
        "classes": [
            {"index": i, "name": shown_names[i], "probability": probability}
            for i, probability in each.top
        ],
    }


def _plotted(
    each: Answer, title: str, net: Pretrained, shown_names: Sequence[str]
) -> plots.Prediction:
    own = set(net.class_names) & {each.label}
    right = shown_names[net.class_names.index(each.label)] if own else None
    bars = [(shown_names[i], probability) for i, probability in each.top]
    return plots.Prediction(title, pictures.thumbnail(each.picture), bars, right)


def main(files):
    """Classifies the files, or lists nets; returns the exit status."""
    given = flags.FLAGS
    if given.list:
        return shipped.show()
    return answer(
        pictures.net_path(),
        files,
        top=given.top,
        views=given.views,
        names_file=given.names,
        as_json=given.json,
        plot=given.plot,
    )


if __name__ == "__main__":
    pictures.define_flags()
    flags.DEFINE_integer("top", 5, "How many classes to name.")
    flags.DEFINE_integer("views", 1, "Crops of each picture to average: 1, 9 or 10.")
    cli.define_path("names", None, "A file with the name of each class on its own line.")
    flags.DEFINE_boolean("list", False, "List the nets that come with the package.")
    flags.DEFINE_boolean("json", False, "Print a line of JSON for each picture.")
    drawn = dict(result=True, suffixes=plots.SUFFIXES)
    cli.define_path("plot", None, "An image file to draw pictures and probabilities into.", **drawn)
    cli.run(main, takes_files=True)
