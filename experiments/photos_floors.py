"""Finds the errors of simple methods on the photos set, which a net must clearly beat.

    python -m experiments.photos_floors [--data_dir=DIR] [--record]

All see the pixels that the net sees in evaluation: the patch resized to 73x73, its central 64x64.
- chance
- nearest neighbour among the training patches by each channel's mean and standard deviation, as
  they are or each divided by its spread
- a linear classifier on the pixels: multinomial logistic regression, with several strengths of
  regularisation (ridge regression to the one-hot labels, tried, is well behind it)

Where there are several variants, the floor is the best of them on the test split itself, so that a
floor errs only upwards. Prints the errors; with --record it appends one line to
experiments/results/photos_floors/results.jsonl.
"""

import io
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image
from scipy.optimize import minimize
from scipy.special import logsumexp

from alexnet_jax import cli
from alexnet_jax.data import sources
from alexnet_jax.records import files, provenance

RESIZED, CROP = 73, 64  # those of configs/default.py
RESULTS = Path(__file__).parent / "results" / "photos_floors" / "results.jsonl"
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01)
MAX_ITERATIONS = 100  # of L-BFGS

_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of TFDS data sets (default: TFDS's own).")


def load(data_dir: str, split: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns uint8 images [N, CROP, CROP, 3], integer labels [N], and the number of classes."""
    source = sources.open_source("photos", data_dir, split)
    images, labels = zip(*map(source.read, range(source.num_examples)), strict=True)
    return (
        np.stack([_central(image) for image in images]),
        np.array(labels),
        len(source.class_names),
    )


def _central(encoded: bytes) -> np.ndarray:
    resized = Image.open(io.BytesIO(encoded)).resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
    start = (RESIZED - CROP) // 2
    return np.asarray(resized.crop((start, start, start + CROP, start + CROP)))


def nearest_by_colour(train, train_labels, test, test_labels) -> dict[str, float]:
    """Returns the error in percent of nearest neighbours on channel means and deviations."""

    def colour(images):
        pixels = images.reshape(len(images), -1, 3).astype(np.float64)
        return np.concatenate([pixels.mean(1), pixels.std(1)], axis=1)

    train, test = colour(train), colour(test)
    errors = {}
    for name, scale in (("as they are", 1.0), ("divided by their spread", train.std(0))):
        distances = (((test[:, None] - train) / scale) ** 2).sum(-1)
        errors[name] = _error(train_labels[distances.argmin(1)], test_labels)
    return errors


def linear_on_pixels(train, train_labels, test, test_labels, classes: int) -> dict[str, float]:
    """Returns the error in percent of logistic regression on the pixels, by penalty.

    A linear classifier with an L2 penalty on its weights has them in the span of the training
    images, so that it is fitted exactly in the coordinates of that span, which are fewer.
    """
    train, test = (images.reshape(len(images), -1) / np.float32(64) for images in (train, test))
    mean = train.mean(0)
    train, test = train - mean, test - mean
    variances, axes = np.linalg.eigh(train @ train.T)
    kept = variances > 1e-5 * variances[-1]  # Smaller ones are rounding.
    variances, axes = variances[kept], axes[:, kept]
    train, test = axes * np.sqrt(variances), test @ (train.T @ axes) / np.sqrt(variances)

    targets = np.eye(classes, dtype=np.float32)[train_labels]
    errors = {}
    weights = np.zeros((train.shape[1], classes))
    for penalty in PENALTIES:  # Each starts from the last.
        weights = _logistic_regression(train, targets, penalty, weights)
        errors[f"penalty {penalty:g}"] = _error((test @ weights).argmax(1), test_labels)
    return errors


def _logistic_regression(x, targets, penalty: float, start):
    """Minimises mean cross-entropy + penalty / 2 * |weights|^2; returns [features, classes].

    No bias: `x` is centred and the classes are balanced.
    """

    def loss_and_gradient(flat):
        weights = flat.reshape(start.shape)
        logits = x @ weights.astype(np.float32)
        log_probabilities = logits - logsumexp(logits, axis=1, keepdims=True)
        loss = -(targets * log_probabilities).sum() / len(x) + penalty / 2 * (weights**2).sum()
        gradient = x.T @ (np.exp(log_probabilities) - targets) / len(x) + penalty * weights
        return float(loss), gradient.ravel().astype(np.float64)

    options = {"maxiter": MAX_ITERATIONS}
    found = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape)


def _error(predicted, labels) -> float:
    return 100 * float(np.mean(predicted != labels))


def main(_) -> None:
    """Measures the floors, prints and records them."""
    train, train_labels, classes = load(_DATA_DIR.value, "train")
    test, test_labels, _ = load(_DATA_DIR.value, "test")
    split = (train, train_labels, test, test_labels)
    variants = {
        "chance": {"": 100 * (1 - 1 / classes)},
        "linear classifier on the pixels": linear_on_pixels(*split, classes),
        "nearest neighbour by colour": nearest_by_colour(*split),
    }
    floors = {
        name: min((errors[variant], variant) for variant in errors)
        for name, errors in variants.items()
    }
    print(f"photos: {classes} classes, {len(train)} train and {len(test)} test patches")
    for name, (error, variant) in floors.items():
        print(f"{name:32} {error:5.1f}% top-1 error" + (f"  ({variant})" if variant else ""))
    record = {
        **provenance.collect(),
        "examples": {"train": len(train), "test": len(test)},
        "top1_error": {name: error for name, (error, _) in floors.items()},
        "variants": variants,
    }
    if flags.FLAGS.record:
        files.append_json(RESULTS, record)
        print(f"recorded in {RESULTS.relative_to(provenance.ROOT)}")


if __name__ == "__main__":
    flags.DEFINE_boolean("record", False, "Append the result to experiments/results/photos_floors.")
    cli.run(main)
