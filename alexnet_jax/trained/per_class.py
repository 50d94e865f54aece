"""Shows the errors of each class: the confusion matrix as table, CSV file and picture; mistakes."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import console
from alexnet_jax.data import decode
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError, writing
from alexnet_jax.records import files
from alexnet_jax.trained import names, plots

SHOWN = 20  # classes in the table on the screen; the file has all
WORST, THUMBNAIL = 12, 160  # the number of mistakes that are drawn, and their side in pixels


@jax.jit
def add(tally: dict, log_probs: jax.Array, batch: dict) -> dict:
    """Adds the counts of a batch to a tally.

    Args:
        tally: the tally that `empty` makes. It has 'matrix', int32 [outputs, outputs], examples by
            their class and by the most probable output. For the worst mistakes so far it has
            'loss', 'id', 'label', 'taken' (the most probable output) and 'share' (its probability),
            [WORST] each.
        log_probs: float [B, outputs].
        batch: its 'labels', 'ids' and 'mask', 1 for an example and 0 for padding, [B] each.
    """
    labels, mask, taken = batch["labels"], batch["mask"], log_probs.argmax(axis=-1)
    own = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    now = {
        "loss": jnp.where((taken != labels) & (mask > 0), -own, -1.0),
        "id": batch["ids"],
        "label": labels,
        "taken": taken,
        "share": jnp.exp(log_probs.max(axis=-1)),
    }
    both = {name: jnp.concatenate([tally[name], now[name]]) for name in now}
    _, worst = jax.lax.top_k(both["loss"], WORST)
    matrix = tally["matrix"].at[labels, taken].add(mask.astype(tally["matrix"].dtype))
    return {name: values[worst] for name, values in both.items()} | {"matrix": matrix}


def errors(matrix: np.ndarray) -> np.ndarray:
    """Returns the top-1 error in percent of each class, float [classes]; NaN without examples."""
    counts = matrix.sum(axis=1)
    return np.where(counts, 100 * (1 - np.diag(matrix) / np.maximum(counts, 1)), np.nan)


def show(matrix: np.ndarray, classes: Sequence[str], title: str) -> None:
    """Prints for each class, the worst first, its examples, its error and its main confusion."""
    share, counts = errors(matrix), matrix.sum(axis=1)
    wrong = matrix - np.diag(np.diag(matrix))
    order = [k for k in np.argsort(-share, kind="stable") if counts[k]]
    rows = []
    for k in order[:SHOWN]:
        most = wrong[k].argmax()
        taken = f"{classes[most]} ({wrong[k, most]:,})" if wrong[k, most] else ""
        rows.append((classes[k], f"{counts[k]:,}", f"{share[k]:.2f}%", taken))
    worst = f", the worst {SHOWN} of {len(order)}" if len(order) > SHOWN else ""
    header = ("class", "examples", "top-1 error", "most often taken for")
    console.table(f"errors by class{worst}: {title}", header, rows)


def write(stem: Path, matrix: np.ndarray, classes: Sequence[str], title: str) -> tuple[Path, Path]:
    """Writes STEM.csv, with the error and the matrix row of each class, and STEM.png.

    Raises:
        UserError: a file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", "examples", "top1_error", *(f"taken for {name}" for name in classes)])
    for name, share, row in zip(classes, errors(matrix), matrix, strict=True):
        rows.writerow([name, row.sum(), "" if np.isnan(share) else f"{share:.4f}", *row])
    table, picture = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.png")
    with writing(table):
        stem.parent.mkdir(parents=True, exist_ok=True)
        # The name of a class may be a folder's, whose bytes need not be UTF-8.
        files.replace(table, text.getvalue().encode(errors="backslashreplace"))
    plots.confusion(str(picture), matrix, classes, title)
    return table, picture


def empty(outputs: int) -> dict:
    """Makes a tally with nothing counted yet; see `add`."""
    whole = {name: jnp.zeros(WORST, jnp.int32) for name in ("id", "label", "taken")}
    none = {"loss": jnp.full(WORST, -1.0), "share": jnp.zeros(WORST)}
    return {"matrix": jnp.zeros((outputs, outputs), jnp.int32), **whole, **none}


def report(run, tally: dict, stem: Path, title: str, split: str) -> None:
    """Prints the errors by class, writes the confusion matrix, and draws the worst mistakes.

    Args:
        run: the run whose classes and data they are.
        tally: of the whole split, as NumPy has it; see `add`.
        stem: where the files appear: STEM.csv, STEM.png and STEM-mistakes.png.
        title: what was evaluated.
        split: the split's name.

    Raises:
        UserError: they cannot be written.
    """
    classes = names.english(run.data.class_names)
    more = run.model.num_classes - len(classes)  # outputs that no class has
    classes += tuple(f"output {len(classes) + i}" for i in range(more))
    show(tally["matrix"], classes, title)
    table, picture = write(stem, tally["matrix"], classes, title)
    console.say(f"confusion matrix: {table} and {picture}")
    wrong = np.flatnonzero(tally["loss"] >= 0)
    if not len(wrong):
        return
    spec, drawn = run.data.spec, stem.with_name(f"{stem.name}-mistakes.png")
    try:
        source = open_source(
            spec.name, spec.data_dir, split, class_names=run.data.class_names, download=False
        )
        images = [decode.square(source.read(int(tally["id"][i]))[0], THUMBNAIL) for i in wrong]
    except (UserError, OSError, ValueError, decode.BadImage) as error:
        console.say(f"the worst mistakes are not drawn: {error}")
        return
    plots.mistakes(
        str(drawn),
        [
            plots.Mistake(
                image, classes[tally["label"][i]], classes[tally["taken"][i]], tally["share"][i]
            )
            for image, i in zip(images, wrong, strict=True)
        ],
    )
    console.say(f"worst mistakes: {drawn}")
