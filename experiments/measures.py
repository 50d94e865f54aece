"""The numbers that a run is judged by, from its record."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alexnet_jax.errors import choose

TARGET = 25.0  # training error in percent of Figure 1


@dataclass(frozen=True)
class Measure:
    """Describes a number of a run.

    Attributes:
        title: its name in a table, with the unit.
        of: the number in a record; None where the run has none.
        digits: after the point.
        ratio: whether variants are compared by their quotient instead of their difference.
        awaited: whether it is when something happens, which a run may end without.
    """

    title: str
    of: Callable[[dict], float | None]
    digits: int = 2
    ratio: bool = False
    awaited: bool = False


def _final(name: str) -> Callable[[dict], float]:
    return lambda line: line["final"][name]


def curve(line: dict, *, training: bool) -> list[dict]:
    """Returns the lines of a record's curve of the training split, or of the evaluation split."""
    return [each for each in line["curve"] if (each["split"] == "train") == training]


def _trained(name: str) -> Callable[[dict], float | None]:
    """Returns the mean of a training metric over the last epoch, as the steps recorded it."""

    def of(line):
        train = curve(line, training=True)
        last = [each[name] for each in train if each["epoch"] > train[-1]["epoch"] - 1]
        return statistics.fmean(last)

    return of


def _gap(line: dict) -> float:
    return line["final"]["top1_error"] - _trained("top1_error")(line)


class AtLeast(float):
    """Represents a number that is at least this, because the run ended before it was known."""


def _epochs_to_target(line: dict) -> float:
    train = curve(line, training=True)
    reached = (each["epoch"] for each in train if each["top1_error"] <= TARGET)
    return next(reached, AtLeast(train[-1]["epoch"]))


def _best_epoch(line: dict) -> float:
    evaluated = curve(line, training=False)
    best = min(evaluated, key=lambda each: each["loss"])["epoch"]
    return AtLeast(best) if best == evaluated[-1]["epoch"] else best


def _rise(line: dict) -> float:
    losses = [each["loss"] for each in curve(line, training=False)]
    return losses[-1] - min(losses)


MEASURES = {
    "top1_error": Measure("top-1 error, %", _final("top1_error")),
    "top5_error": Measure("top-5 error, %", _final("top5_error")),
    "loss": Measure("loss", _final("loss"), digits=3),
    "train_top1_error": Measure("training error, %", _trained("top1_error")),
    "train_loss": Measure("training loss", _trained("loss"), digits=3),
    "gap": Measure("validation error above training error, points", _gap),
    "rise": Measure("rise of the loss after its lowest", _rise, digits=3),
    "best_epoch": Measure(
        "epoch of the lowest loss", _best_epoch, digits=1, ratio=True, awaited=True
    ),
    "epochs_to_25": Measure(
        "epochs to 25% training error", _epochs_to_target, ratio=True, awaited=True
    ),
    # Of analyses, whose records hold them: see experiments/analyse.py.
    "colour_gap": Measure("towers' difference in colour energy, points", lambda line: None),
    "low_frequency": Measure("energy at low frequencies, %", lambda line: None),
    "precision_at_5": Measure("nearest 5 of its class, %", lambda line: None),
}


def value(line: dict, measure: str) -> float | None:
    """Returns the measure of one record, or None if it has none."""
    choose(measure, MEASURES, "measure")
    if measure in line.get("measures", {}):
        return line["measures"][measure]
    return MEASURES[measure].of(line)


def by_seed(lines: Sequence[dict], variant: str, measure: str) -> dict[int, float | None]:
    """Returns {seed: the measure} of the records of a variant."""
    chosen = [line for line in lines if line["variant"] == variant]
    return {line["seed"]: value(line, measure) for line in chosen}
