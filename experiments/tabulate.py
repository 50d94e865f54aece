"""Tabulates variants with their spread over seeds and their differences to the baseline."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.compare import Interval, paired
from experiments.definition import Sweep
from experiments.measures import MEASURES, AtLeast, by_seed


@dataclass(frozen=True)
class Row:
    """Holds the results of a variant.

    Attributes:
        variant: its name.
        values: {measure: {seed: value, or None if the run has none}}.
        against: {measure: the difference to the baseline}, for the compared measures.
    """

    variant: str
    values: dict[str, dict[int, float | None]]
    against: dict[str, Interval | None]

    @property
    def seeds(self) -> int:
        """Returns the number of runs."""
        return max(map(len, self.values.values()))


def compared(sweep: Sweep) -> list[str]:
    """Returns the measures that are compared: the first, and those of which the paper speaks."""
    return [
        measure
        for measure in sweep.measures
        if measure == sweep.measures[0]
        or any(sweep.said(variant, measure) is not None for variant in sweep.variants)
    ]


def rows(sweep: Sweep, lines: Sequence[dict]) -> list[Row]:
    """Returns a row for each variant with records, in the order of the sweep."""
    shown = []
    for variant in (each for each in sweep.variants if each not in sweep.sources):
        values = {name: by_seed(lines, variant, name) for name in sweep.measures}
        if not any(values.values()):
            continue
        against = {}
        if variant != sweep.baseline:
            for name in compared(sweep):
                base = by_seed(lines, sweep.baseline, name)
                against[name] = paired(values[name], base, ratio=MEASURES[name].ratio)
        shown.append(Row(variant, values, against))
    return shown


def grid(sweep: Sweep, lines: Sequence[dict]) -> list[list[str]]:
    """Returns the table as texts, with its header first."""
    header = ["variant", *(MEASURES[name].title for name in sweep.measures), sweep.unit]
    header += ["in print"] if sweep.published else []
    for name in compared(sweep):
        what = "quotient" if MEASURES[name].ratio else "difference"
        unit = "" if name == sweep.measures[0] else f" in {MEASURES[name].title}"
        header += [f"{what} to {sweep.baseline}{unit}, 95% interval", "paper"]
    texts = [header]
    for row in rows(sweep, lines):
        line = [row.variant]
        line += [spread(list(row.values[name].values()), name) for name in sweep.measures]
        line.append(str(row.seeds))
        if sweep.published:
            said = sweep.published.get(row.variant)
            line.append("" if said is None else f"{said:g}")
        for name in compared(sweep):
            said = sweep.said(row.variant, name)
            line += [difference(row.against.get(name), name), paper(said, name)]
        texts.append(line)
    return texts


def spread(values: Sequence[float | None], measure: str) -> str:
    """Returns the mean and the standard deviation over seeds as text, such as '12.30 ± 0.45'."""
    digits = MEASURES[measure].digits
    known = [value for value in values if value is not None and not isinstance(value, AtLeast)]
    if len(known) < len(values):
        bounds = [value for value in values if isinstance(value, AtLeast)]
        if bounds and not known:
            return f"not within {min(bounds):.{digits}f}"
        what = "reached" if MEASURES[measure].awaited else "recorded"
        return f"{what} by {len(known)} of {len(values)}" if known else f"not {what}"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def difference(interval: Interval | None, measure: str) -> str:
    """Returns an interval as text: '+1.20 [0.30, 2.10]', or '×3.1 [2.8, 3.4]' for a ratio."""
    if interval is None:
        return ""
    digits = MEASURES[measure].digits
    if interval.at_least:  # what the shortest of the runs allows to say
        sign = "×" if interval.ratio else ""
        return f"at least {sign}{interval.low:.{digits}f}"
    mean = f"×{interval.mean:.{digits}f}" if interval.ratio else f"{interval.mean:+.{digits}f}"
    if interval.low is None:
        return _minus(mean)
    sign = "" if interval.ratio else "+"
    return _minus(f"{mean} [{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]")


def paper(said: float | str | None, measure: str) -> str:
    """Returns the paper's number in the form of `difference`."""
    if said is None or isinstance(said, str):
        return said or ""
    return f"×{said:g}" if MEASURES[measure].ratio else _minus(f"{said:+g}")


def _minus(number: str) -> str:
    """Returns a number with the sign for minus, after which no line breaks."""
    return number.replace("-", "−")


def markdown(texts: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Returns a table in Markdown, in which all columns but the first are numbers if `numbers`."""
    rule = [":---", *["---:" if numbers else ":---"] * (len(texts[0]) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (texts[0], rule, *texts[1:]))
