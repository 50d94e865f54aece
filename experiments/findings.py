"""Derives from the records what was found for each claim: one finding per variant and measure.

Differences are to the sweep's baseline, over pairs of runs of one seed. Each claim that is tried by
runs has one primary finding, which gives the claim's verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from statsmodels.stats.multitest import multipletests

from alexnet_jax.errors import UserError
from experiments import record
from experiments.compare import Interval, paired, verdict
from experiments.definition import Sweep, cell, studies
from experiments.measures import MEASURES, by_seed
from experiments.tabulate import compared, difference, paper, rows, spread

Name = tuple[str, str, str]  # of a finding: study, variant, measure

# By claim; the others of a claim are listed, and decide nothing. Those of NAMED_FIRST were named
# here before their runs. The rest were named on 2026-11-27, when the runs of 2026-11-25 were known;
# one that is changed has to be named before the runs that decide it.
NAMED_FIRST = (2, 9, 12, 14)
PRIMARY: dict[int, Name] = {
    1: ("averaging", "five averaged", "top1_error"),
    2: ("lrn_long", "no LRN, 45 epochs", "top1_error"),
    3: ("cifar_lrn", "no LRN", "top1_error"),
    4: ("pooling", "2x2, no overlap", "top1_error"),
    5: ("towers", "one tower, half the kernels", "top1_error"),
    6: ("colour_noise", "text, unit pixels", "top1_error"),
    7: ("dropout_few", "no dropout, a fifth of the images", "best_epoch"),
    8: ("dropout_pooling", "dropout 0.0, max 3x3", "top1_error"),
    9: ("figure1", "tanh", "epochs_to_25"),
    10: ("views", "ten views", "top1_error"),
    11: ("middle_convs_long", "no conv4, 45 epochs", "top1_error"),
    12: ("weight_decay_long", "no weight decay, 45 epochs", "train_top1_error"),
    13: ("augmentation_long", "no crops or flips, 45 epochs", "top1_error"),
    14: ("specialisation_large", "as trained", "colour_gap"),
    15: ("neighbours", "fc7", "precision_at_5"),
}


@dataclass(frozen=True)
class Finding:
    """Holds what came out of a variant in one measure, as texts and as numbers.

    Attributes:
        name: study, variant and measure.
        ours: the difference to the baseline with its interval; the spread of the variant's own
            values where there is none, or where a value in print stands beside it.
        paper: the paper's difference, or the value in print, or "".
        n: pairs of runs; `unit` says of what.
        p: of no difference, corrected within its family; None with fewer than two pairs.
        power: the smallest difference that so many pairs of this spread would show, in a family
            after its correction.
    """

    name: Name
    ours: str
    paper: str
    n: int
    unit: str
    p: float | None
    power: str
    verdict: str
    primary: bool
    against_baseline: bool = True

    @property
    def measured(self) -> str:
        """Returns what was measured, without its unit."""
        return MEASURES[self.name[2]].title.partition(", ")[0]

    @property
    def amount(self) -> str:
        """Returns `ours` with its unit, as in '+0.8 points [−0.4, +2.0]'."""
        unit = MEASURES[self.name[2]].title.partition(", ")[2]
        if not unit or "×" in self.ours:
            return self.ours
        number, bracket, rest = self.ours.partition(" [")
        return f"{number}{' points' if self.against_baseline else unit}{bracket}{rest}"

    @property
    def runs(self) -> str:
        """Returns how many pairs of runs it rests on, and of what."""
        return "one seed" if self.n == 1 and self.unit == "seeds" else f"{self.n} {self.unit}"


def of_claim(number: int, names: Sequence[str]) -> list[Finding]:
    """Returns the findings for a claim in the studies `names`, with the primary one first."""
    known = studies()
    found = [
        finding
        for name in names
        if name in known
        for finding in of_study(known[name], PRIMARY.get(number))
    ]
    return sorted(found, key=lambda finding: not finding.primary)


def of_study(sweep: Sweep, primary: Name | None = None) -> list[Finding]:
    """Returns the findings in the records of one sweep or analysis.

    Raises:
        UserError: see `records`.
    """
    chosen = []
    lines = records(sweep)
    for row in rows(sweep, lines):
        for measure in compared(sweep):
            said = sweep.said(row.variant, measure)
            name = (sweep.name, row.variant, measure)
            listed = said is not None or not sweep.paper or name == primary
            if row.variant != sweep.baseline and listed:
                chosen.append((name, row, row.against.get(measure), said))
    corrected = _corrected([interval for *_, interval, _ in chosen], together=sweep.family)
    family = sum(p is not None for p in corrected) if sweep.family else 1
    findings = []
    for (name, row, interval, said), p in zip(chosen, corrected, strict=True):
        measure = name[-1]
        values = list(row.values[measure].values())
        findings.append(
            Finding(
                name=name,
                ours=difference(interval, measure) or spread(values, measure),
                paper=paper(said, measure),
                n=interval.n if interval else row.seeds,
                unit=sweep.unit,
                p=p,
                power=_power(interval, measure, family),
                verdict=verdict(interval, said, p),
                primary=name == primary,
            )
        )
    return [*_in_print(sweep, lines, primary), *findings]


def _in_print(sweep: Sweep, lines: Sequence[dict], primary: Name | None) -> list[Finding]:
    """Returns a finding for each variant whose own value is published, beside that value."""
    findings, measure = [], sweep.measures[0]
    for variant, said in sweep.published.items():
        if not (values := by_seed(lines, variant, measure)):
            continue
        name = (sweep.name, variant, measure)
        interval = paired(values, dict.fromkeys(values, said))
        findings.append(
            Finding(
                name=name,
                ours=spread(list(values.values()), measure),
                paper=f"{said:g}",
                n=len(values),
                unit=sweep.unit,
                p=interval.p,
                power=_power(interval, measure),
                verdict=_beside_print(interval),
                primary=name == primary,
                against_baseline=False,
            )
        )
    return findings


def _beside_print(interval: Interval) -> str:
    """Returns what seeds of one net say of its value in print, by their difference."""
    if interval.low is None:
        return "one seed"
    if not interval.visible:
        return "not told from print"
    return "higher than in print" if interval.mean > 0 else "lower than in print"


def records(sweep: Sweep) -> list[dict]:
    """Returns the records of a sweep.

    Raises:
        UserError: one is of another configuration than the sweep has now.
    """
    lines = record.read_records(sweep.name)
    for number, line in enumerate(lines, start=1):
        variant, seed, digest = line["variant"], line["seed"], line.get("digest")
        known = variant in sweep.variants
        if not known or digest not in (None, cell(sweep, variant, seed).digest):
            raise UserError(
                f"experiments/results/{sweep.name}/runs.jsonl, line {number}: '{variant}', seed "
                f"{seed}, is of another configuration than the sweep has now; run the sweep anew, "
                "or move the line away"
            )
    return lines


def _corrected(intervals: Sequence[Interval | None], *, together: bool) -> list[float | None]:
    """Returns the p values of the intervals, corrected by Holm's method if `together`."""
    raw = [interval.p if interval else None for interval in intervals]
    known = [p for p in raw if p is not None]
    if together and known:
        known = [float(p) for p in multipletests(known, method="holm")[1]]
    rest = iter(known)
    return [None if p is None else next(rest) for p in raw]


def _power(interval: Interval | None, measure: str, family: int = 1) -> str:
    if interval is None or (detectable := interval.detectable(family)) is None:
        return ""
    digits = MEASURES[measure].digits
    sign = "×" if interval.ratio else "±"
    return f"{sign}{detectable:.{digits}f}"
