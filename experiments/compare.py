"""Numbers of a run, their spread over seeds, and differences between variants with intervals."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats
from statsmodels.stats.power import TTestPower

from alexnet_jax.errors import choose

CONFIDENCE = 0.95
POWER = 0.8  # with which `Interval.detectable` would be seen
TARGET = 25.0  # training error in percent of Figure 1


@dataclass(frozen=True)
class Measure:
    """Describes a number of a run.

    Attributes:
        title: its name in a table, with the unit.
        of: the number in a record; None where the run has none.
        digits: after the point.
        ratio: whether variants are compared by their quotient instead of their difference.
    """

    title: str
    of: Callable[[dict], float | None]
    digits: int = 2
    ratio: bool = False


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
    return min(curve(line, training=False), key=lambda each: each["loss"])["epoch"]


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
    "best_epoch": Measure("epoch of the lowest loss", _best_epoch, digits=1, ratio=True),
    "epochs_to_25": Measure("epochs to 25% training error", _epochs_to_target, ratio=True),
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


@dataclass(frozen=True)
class Interval:
    """Holds a mean difference or geometric mean ratio over `n` pairs, and its 95% interval.

    Attributes:
        low, high: None with fewer than two pairs. Of a lower bound, `high` is infinite.
        p: of Student's two-sided t-test of no difference.
        detectable: the smallest difference, or quotient above 1, that so many pairs of this spread
            would show with a probability of 80%.
        at_least: whether some value of the variant is a lower bound: then so is all of this, and
            `low` is the smallest of the pairs.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    ratio: bool = False
    p: float | None = None
    detectable: float | None = None
    at_least: bool = False

    @property
    def neutral(self) -> float:
        """Returns the value that stands for no difference."""
        return 1.0 if self.ratio else 0.0

    @property
    def visible(self) -> bool:
        """Returns whether the interval excludes no difference."""
        return self.low is not None and not self.low <= self.neutral <= self.high


def paired(a: dict[int, float | None], b: dict[int, float | None], *, ratio=False):
    """Compares `a` with `b` on the seeds that both have, by a difference or ratio and Student's t.

    None where there is no such seed, a value is missing, or one of `b` is a lower bound.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds or any(values[seed] is None for values in (a, b) for seed in seeds):
        return None
    if any(isinstance(b[seed], AtLeast) for seed in seeds):
        return None
    turn = math.log if ratio else float
    back = math.exp if ratio else float
    differences = [turn(a[seed]) - turn(b[seed]) for seed in seeds]
    mean, n = statistics.fmean(differences), len(seeds)
    if any(isinstance(a[seed], AtLeast) for seed in seeds):
        low = back(min(differences))
        return Interval(back(mean), low, math.inf, n, ratio, at_least=True)
    if n < 2:
        return Interval(back(mean), None, None, n, ratio)
    spread = statistics.stdev(differences)
    error = spread / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    effect = float(TTestPower().solve_power(nobs=n, alpha=1 - CONFIDENCE, power=POWER))
    detectable = back(effect * spread)
    return Interval(back(mean), back(mean - half), back(mean + half), n, ratio, p, detectable)


def verdict(interval: Interval | None, paper: float | str | None, p: float | None = None) -> str:
    """Returns the verdict on a difference, compared with what the paper says of it.

    Only the direction decides between "agrees" and "contradicts": at another scale the size may
    well be another. Where no difference shows, the interval either leaves the paper's out ("no
    effect of that size") or not ("not visible": these seeds cannot tell). One pair has no interval,
    and decides nothing ("one seed").

    Args:
        interval: that of the difference or quotient; None if there were too few runs.
        paper: its difference or quotient, or "higher" or "lower"; None if it says nothing.
        p: of no difference, corrected for the family of the finding; the interval decides if None.
    """
    if interval is None:
        return "not decided"
    if interval.low is None:
        return "one seed"
    shows = interval.visible if p is None else p < 1 - CONFIDENCE
    if not shows:
        if isinstance(paper, str) or paper is None or interval.low <= paper <= interval.high:
            return "not visible"
        return "no effect of that size"
    if paper is None:
        return "visible"
    higher = paper == "higher" if isinstance(paper, str) else paper > interval.neutral
    return "agrees" if higher == (interval.mean > interval.neutral) else "contradicts"
