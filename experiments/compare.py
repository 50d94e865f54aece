"""Differences between variants over pairs of runs, with their intervals, and verdicts on them."""

import functools
import math
import statistics
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from experiments.measures import AtLeast

CONFIDENCE = 0.95
POWER = 0.8  # with which `Interval.detectable()` would be seen


@dataclass(frozen=True)
class Interval:
    """Holds a mean difference or geometric mean ratio over `n` pairs, and its 95% interval.

    Attributes:
        low, high: None with fewer than two pairs. Of a lower bound, `high` is infinite.
        p: of Student's two-sided t-test of no difference.
        spread: the standard deviation of the pairs' differences, or of their quotients' logarithms.
        at_least: whether some value of the variant is a lower bound: then so is all of this, and
            `low` is the smallest of the pairs.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    ratio: bool = False
    p: float | None = None
    spread: float | None = None
    at_least: bool = False

    @property
    def neutral(self) -> float:
        """Returns the value that stands for no difference."""
        return 1.0 if self.ratio else 0.0

    @property
    def visible(self) -> bool:
        """Returns whether the interval excludes no difference."""
        return self.low is not None and not self.low <= self.neutral <= self.high

    def detectable(self, family: int = 1) -> float | None:
        """Returns the smallest difference, or quotient above 1, that would show in 80 of 100 cases.

        Args:
            family: how many findings are corrected together: by the first step of Holm's method,
                the one with the least p shows if this is below 5% over their number.
        """
        if self.spread is None:
            return None
        difference = _effect(self.n, family) * self.spread
        return math.exp(difference) if self.ratio else difference


@functools.cache
def _effect(n: int, family: int) -> float:
    """Returns the mean of n pairs, in their deviations, that shows with the probability POWER.

    statsmodels' TTestPower ends far from it, without an error, where p must be small.
    """
    critical = stats.t.isf((1 - CONFIDENCE) / family / 2, n - 1)
    quantiles = (np.arange(10_000) + 0.5) / 10_000
    measured = np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))  # deviations that n pairs have

    def lacking(effect: float) -> float:
        centre = effect * math.sqrt(n)
        above = special.ndtr(centre - critical * measured)
        below = special.ndtr(-centre - critical * measured)
        return (above + below).mean() - POWER

    return float(optimize.brentq(lacking, 0, 2 * critical))


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
    return Interval(back(mean), back(mean - half), back(mean + half), n, ratio, p, spread)


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
    if interval.n < 2:
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
