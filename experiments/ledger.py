"""Writes the ledger of the paper's claims, with their results, verdicts and findings.

    python -m experiments.ledger [--write | --check]

It prints experiments/ledger.md as it follows from the recorded results. --write writes the file,
and --check fails if the file differs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet_jax import cli
from alexnet_jax.runtime import settings
from experiments import findings, pages
from experiments.findings import Finding
from experiments.net_claims import NOT_RUN, PARTLY, sizes, times
from experiments.tabulate import markdown

PATH = Path(__file__).parent / "ledger.md"


@dataclass(frozen=True)
class Claim:
    """Describes a claim of the paper.

    Attributes:
        number: its number in the ledger.
        says: what the paper says, with its section.
        paper: its number.
        names: the sweeps and analyses that test it.
        own: a function that returns (result, verdict) of a claim that no sweep tests.
        configs: the configurations at the paper's scale; of sweeps, those that were not run.
        ran: what was run as it was published, but on CIFAR-10 re-encoded as JPEG.
    """

    number: int
    says: str
    paper: str
    names: tuple[str, ...] = ()
    own: Callable[[], tuple[str, str]] | None = None
    configs: str = "imagenet2012_net145"
    ran: str = ""


CLAIMS = (
    Claim(
        1,
        "Averaging five nets lowers the error, and so does pre-training (Table 2)",
        "40.7 to 38.1% top-1; pre-trained 39.0%",
        ("averaging", "pretraining"),
        configs="imagenet2012_net145, sweeps/paper",
    ),
    Claim(2, "LRN lowers the error (3.3)", "1.4 points top-1", ("lrn", "lrn_searched", "lrn_long")),
    Claim(
        3,
        "LRN lowers the error on CIFAR-10 (3.3)",
        "13 to 11%",
        ("cifar_lrn", "cifar_18pct", "cifar_18pct_long"),
        configs="cifar_13pct, cifar_11pct",
        ran="cifar_18pct over all of its 140 epochs, one seed",
    ),
    Claim(4, "Overlapping pooling lowers the error (3.4)", "0.4 points top-1", ("pooling",)),
    Claim(
        5,
        "Two towers are better than one with half the kernels (3.5)",
        "1.7 points top-1",
        ("towers",),
    ),
    Claim(
        6,
        "Noise along the principal colours lowers the error (4.1)",
        "over 1 point top-1",
        ("colour_noise",),
    ),
    Claim(
        7,
        "Without dropout the net overfits; with it, it takes longer (4.2)",
        "about twice the iterations",
        ("dropout", "dropout_few"),
    ),
    Claim(
        8,
        "Dropout's rate and the pooling together",
        "no such grid",
        ("dropout_pooling", "dropout_pooling_few", "dropout_pooling_long"),
    ),
    Claim(
        9,
        "ReLU reaches 25% training error sooner than tanh (3.1, Figure 1)",
        "6 times sooner",
        ("figure1", "activations"),
        configs="",
        ran="cifar_18pct, unregularised",
    ),
    Claim(10, "Ten views are better than the centre (4.1)", "1.55 points top-1", ("views",)),
    Claim(
        11,
        "Each middle convolution is needed (7)",
        "about 2 points",
        ("middle_convs", "middle_convs_long"),
    ),
    Claim(
        12,
        "Weight decay lowers the training error too (5)",
        "",
        ("weight_decay", "weight_decay_long"),
    ),
    Claim(
        13,
        "Without crops and flips the net overfits (4.1)",
        "",
        ("augmentation", "augmentation_long"),
    ),
    Claim(
        14,
        "The towers specialise, one in colour (6.1, Figure 3)",
        "",
        ("specialisation_large", "specialisation"),
    ),
    Claim(15, "Near in fc7 means alike (6.1, Figure 4)", "", ("neighbours",)),
    Claim(
        16,
        "The net's size (1, 3.5)",
        "60 million parameters, 650,000 units, at most 1% in each convolution",
        own=sizes,
        configs="imagenet2012",
    ),
    Claim(
        17,
        "The two-GPU net trains faster than half of it on one (3.5)",
        "slightly less time",
        own=times,
        configs="imagenet2012",
    ),
)


# A verdict: its sign, and how one claim and several have it, in a sentence.
VERDICTS = {
    "agrees": ("🟢", "agrees", "agree"),
    PARTLY: ("🟡", "agrees in part", "agree in part"),
    "contradicts": ("🔴", "contradicts", "contradict"),
    "no effect of that size": (
        "🟠",
        "shows no effect of the paper's size",
        "show no effect of the paper's size",
    ),
    "not visible": ("⚪", "cannot be told from chance", "cannot be told from chance"),
    "visible": (
        "🔵",
        "shows an effect on which the paper is silent",
        "show effects on which the paper is silent",
    ),
    NOT_RUN: ("⚪", "has not been run", "have not been run"),
}
OTHERS = ("⚪", "is not decided by its runs", "are not decided by their runs")


@dataclass(frozen=True)
class Judged:
    """Holds a claim with its findings, and the result and verdict of its primary finding."""

    claim: Claim
    findings: Sequence[Finding]
    ours: str
    verdict: str

    @property
    def sign(self) -> str:
        """Returns the colour of the verdict."""
        return VERDICTS.get(self.verdict, OTHERS)[0]

    @property
    def word(self) -> str:
        """Returns the verdict as a word that a style can be named by."""
        return self.verdict.replace(" ", "-")

    @property
    def scale(self) -> str:
        """Returns which configurations have it at the paper's scale, and whether they were run."""
        claim = self.claim
        if claim.own and self.verdict != NOT_RUN:
            return claim.configs
        told = [f"{claim.configs}: not run"] if claim.configs else []
        how = "run, on CIFAR-10 re-encoded as JPEG" if self.findings else "not run"
        return "; ".join([*told, *([f"{claim.ran}: {how}"] if claim.ran else [])])


def judge(claim: Claim) -> Judged:
    """Returns the findings for a claim and its verdict, which is that of its primary finding."""
    if claim.own:
        return Judged(claim, (), *claim.own())
    found = findings.of_claim(claim.number, claim.names)
    if not found or not found[0].primary:
        return Judged(claim, found, "", NOT_RUN)
    first = found[0]
    ours = f"{first.name[1]}: {first.measured} {first.amount}, {first.runs}"
    return Judged(claim, found, ours, first.verdict)


def judged() -> list[Judged]:
    """Returns all claims, judged."""
    return [judge(claim) for claim in CLAIMS]


def summary(claims: Sequence[Judged]) -> str:
    """Returns a sentence with the number of claims of each verdict."""
    kinds = [VERDICTS.get(each.verdict, OTHERS) for each in claims]
    parts = []
    for kind in (*VERDICTS.values(), OTHERS):
        if count := kinds.count(kind):
            total = "" if parts else f"of {len(claims)} claims "
            parts.append(f"{count} {total}{kind[1] if count == 1 else kind[2]}")
    return f"{', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}."


def grid(claims: Sequence[Judged], page: str = "") -> list[list[str]]:
    """Returns one row a claim as texts, the header first; numbers lead to findings on `page`."""
    texts = [["", "the paper", "found here", "verdict"]]
    for each in claims:
        claim = each.claim
        number = f"[{claim.number}]({page}#claim-{claim.number})"
        says = f"{claim.says}: {claim.paper}" if claim.paper else claim.says
        texts.append([number, says, each.ours, f"{each.sign} {each.verdict}"])
    return texts


def behind(each: Judged) -> list[list[str]]:
    """Returns one row a finding of the claim as texts, the header first."""
    texts = [["finding", "the paper", "found [95%]", "n", "p", "would show", "verdict"]]
    for found in each.findings:
        study, variant, _ = found.name
        mark = " **(primary)**" if found.primary else ""
        title = f"[{variant}](results/{study}/table.md), {found.measured}{mark}"
        p = p_value(found)
        row = [title, found.paper, found.amount, found.runs, p, found.power, found.verdict]
        texts.append(row)
    return texts


def p_value(found: Finding) -> str:
    """Returns the finding's p with three digits."""
    return "" if found.p is None else "<0.001" if found.p < 0.001 else f"{found.p:.3f}"


NOTES = """
Differences are to each sweep's baseline, with the 95% interval of Student's t over pairs of one
seed. p is of no difference, corrected by Holm's method where several variants are one family (the
grid of dropout and pooling, the middle convolutions, the readings of the colour noise); intervals
are not corrected. "Would show" is the smallest difference that so many seeds of this spread show
with a probability of 80%; in a family of k findings p has to be below 5% over k for that, as in
the first step of Holm's method.

"Agrees" and "contradicts" are about the direction. Where no difference shows, "no effect of that
size" means that the interval leaves the paper's number out, and "not visible" that these seeds
cannot tell. A "visible" effect is one on which the paper says nothing. One seed has no interval,
and decides nothing. "At least" is the smallest of the pairs, some of which ended before they got
there; it is no confidence limit.
""".strip()


def text() -> str:
    """Returns the text of ledger.md."""
    claims = judged()
    parts = [
        f"""# The paper's claims

**{summary(claims)}**
Each claim that is tried by runs is judged by one finding, named in `experiments/findings.py`: of
claims {", ".join(map(str, findings.NAMED_FIRST))} before their runs, of the others when these were
known. A claim's number leads to all findings behind it.

{markdown(grid(claims), numbers=False)}
These are small nets on Imagenette at 32 pixels and on CIFAR-10 (re-encoded as JPEG), made on two
CPU cores. `python -m experiments.ledger --write` makes this page from the records in
`experiments/results`.

## How to read the findings

{NOTES}
"""
    ]
    for each in claims:
        claim = each.claim
        said = f" The paper's number: {claim.paper}." if claim.paper else ""
        found = markdown(behind(each), numbers=False) if each.findings else f"{each.ours}\n"
        parts.append(
            f"""## Claim {claim.number}

{claim.says}.{said} {each.sign} {each.verdict}

{found}
At the paper's scale: {each.scale}.
"""
        )
    return "\n".join(parts)


def main(_) -> int:
    """Prints, writes or checks the ledger; returns the exit status."""
    settings.compute_on_cpu()  # Only shapes are computed.
    return pages.answer(PATH, text())


if __name__ == "__main__":
    pages.define_flags("experiments/ledger.md")
    cli.run(main)
