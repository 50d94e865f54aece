"""Errors class by class: the confusion matrix as a table, a CSV file and a picture."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import console
from alexnet_jax.errors import writing
from alexnet_jax.records import files
from alexnet_jax.trained import plots

SHOWN = 20  # classes in the table on the screen; the file has them all


@jax.jit
def add(matrix: jax.Array, log_probs: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Counts a batch in.

    Args:
        matrix: int32 [outputs, outputs], examples by their class and by the likeliest output.
        log_probs: float [B, outputs].
        labels: int32 [B].
        mask: float [B], 1 for an example and 0 for padding.
    """
    return matrix.at[labels, log_probs.argmax(axis=-1)].add(mask.astype(matrix.dtype))


def errors(matrix: np.ndarray) -> np.ndarray:
    """Returns the top-1 error in percent of each class, float [classes]; NaN without examples."""
    counts = matrix.sum(axis=1)
    return np.where(counts, 100 * (1 - np.diag(matrix) / np.maximum(counts, 1)), np.nan)


def show(matrix: np.ndarray, names: Sequence[str], title: str) -> None:
    """Prints a row a class, the worst first: examples, error, and what it is taken for most."""
    share, counts = errors(matrix), matrix.sum(axis=1)
    wrong = matrix - np.diag(np.diag(matrix))
    order = [k for k in np.argsort(-share, kind="stable") if counts[k]]
    rows = []
    for k in order[:SHOWN]:
        most = wrong[k].argmax()
        taken = f"{names[most]} ({wrong[k, most]:,})" if wrong[k, most] else ""
        rows.append((names[k], f"{counts[k]:,}", f"{share[k]:.2f}%", taken))
    worst = f", the worst {SHOWN} of {len(order)}" if len(order) > SHOWN else ""
    header = ("class", "examples", "top-1 error", "most often taken for")
    console.table(f"errors by class{worst}: {title}", header, rows)


def write(stem: Path, matrix: np.ndarray, names: Sequence[str], title: str) -> tuple[Path, Path]:
    """Writes STEM.csv, a row a class with its error and its row of the matrix, and STEM.png.

    Raises:
        UserError: they cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", "examples", "top1_error", *(f"taken for {name}" for name in names)])
    for name, share, row in zip(names, errors(matrix), matrix, strict=True):
        rows.writerow([name, row.sum(), "" if np.isnan(share) else f"{share:.4f}", *row])
    table, picture = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.png")
    with writing(table):
        stem.parent.mkdir(parents=True, exist_ok=True)
        files.replace(table, text.getvalue().encode())
    plots.confusion(str(picture), matrix, names, title)
    return table, picture


def empty(outputs: int) -> jax.Array:
    """Makes a matrix with nothing counted yet."""
    return jnp.zeros((outputs, outputs), jnp.int32)
