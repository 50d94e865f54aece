"""Writes the ledger of the paper's claims, with their results, verdicts and findings.

    python -m experiments.ledger [--write | --check]

It prints experiments/ledger.md as it follows from the recorded results. --write writes the file,
and --check fails if the file differs.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet_jax import cli, models
from alexnet_jax.runtime import settings
from experiments import findings, pages, record
from experiments.compare import MEASURES
from experiments.findings import Finding
from experiments.tabulate import markdown

PATH = Path(__file__).parent / "ledger.md"
NOT_RUN = "paper scale: not run"


@dataclass(frozen=True)
class Claim:
    """Describes a claim of the paper.

    Attributes:
        number: its number in the ledger.
        says: what the paper says, with the section.
        paper: the paper's numbers.
        names: the sweeps and analyses that test it.
        own: a function that returns (result, verdict) of a claim that no sweep tests.
        configs: the configurations at the paper's scale.
    """

    number: int
    says: str
    paper: str
    names: tuple[str, ...] = ()
    own: Callable[[], tuple[str, str]] | None = None
    configs: str = "imagenet2012_net145"


def sizes() -> tuple[str, str]:
    """Returns the parameters and units of the paper's net by its shapes, and the verdict."""
    layers = models.activations(models.create("alexnet"), 224)
    parameters = {name: count for name, _, count in layers if count}
    units = {name: math.prod(shape) for name, shape, count in layers if count}
    total = sum(parameters.values())
    largest = {name: 100 * count / total for name, count in parameters.items() if "conv" in name}
    over = ", ".join(f"{name} {share:.2f}%" for name, share in largest.items() if share > 1)
    return (
        f"{total:,} parameters; {sum(units.values()):,} units, {units['conv1']:,} of them in conv1,"
        f" where the text counts 253,440 (its own counts add up to 622,312); over 1%: {over}",
        "agrees in total; the text's count of conv1 and its 1% do not hold",
    )


ONE_GPU = {"model.name": "alexnet_half", "mesh.data": 1}  # half the kernels (3.5)
TWO_GPUS = {"mesh.layout": "towers", "mesh.model": 2, "mesh.data": 1}


def times() -> tuple[str, str]:
    """Compares the training step of the two-GPU net with that of the one-GPU net.

    It takes the newest `bench step --record` of each, of configs/imagenet2012.py on one kind of
    GPU, that agree in all other fields.
    """
    path = record.RESULTS / "bench" / "step.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    seconds = {1: {}, 2: {}}  # of a step on so many GPUs, by their kind and the other fields
    for line in lines:
        kind, fields = line["hardware"]["device_kind"], line["overrides"]
        if kind == "cpu" or Path(line["config"]).name != "imagenet2012.py":
            continue
        for count, own in ((1, ONE_GPU), (2, TWO_GPUS)):
            if own.items() <= fields.items():
                rest = {name: value for name, value in fields.items() if name not in own}
                seconds[count][kind, json.dumps(rest, sort_keys=True)] = line["step_seconds"]
    for (kind, rest), two in reversed(seconds[2].items()):
        if one := seconds[1].get((kind, rest)):
            judged = "agrees" if two < one else "contradicts"
            return f"{two / one:.2f}× the time of half the net on one {kind}", judged
    return "no record of two GPUs", NOT_RUN


CLAIMS = (
    Claim(
        1,
        "Table 2: averaging five nets, and pre-training, lower the error",
        "one net 40.7 / 18.2, five 38.1 / 16.4, pre-trained 39.0 / 16.6, seven 36.7 / 15.4",
        ("averaging", "pretraining"),
        configs="imagenet2012_net145, sweeps/paper",
    ),
    Claim(2, "LRN lowers the error (3.3)", "1.4 / 1.2 points", ("lrn", "lrn_searched")),
    Claim(
        3,
        "CIFAR-10 without and with LRN (3.3)",
        "13% and 11%",
        ("cifar_lrn", "cifar_18pct"),
        configs="cifar_13pct, cifar_11pct, cifar_18pct",
    ),
    Claim(4, "Overlapping pooling lowers the error (3.4)", "0.4 / 0.3 points", ("pooling",)),
    Claim(
        5,
        "Two towers are better than one with half the kernels (3.5)",
        "1.7 / 1.2 points",
        ("towers",),
    ),
    Claim(
        6,
        "Noise along the principal colours lowers the error (4.1)",
        "> 1 point",
        ("colour_noise",),
    ),
    Claim(
        7,
        "Without dropout the net overfits; with it, it needs twice the iterations (4.2)",
        "about 2×",
        ("dropout", "dropout_few"),
    ),
    Claim(
        8,
        "Dropout's rate × the pooling (no such grid in the paper)",
        "",
        ("dropout_pooling", "dropout_pooling_few", "dropout_pooling_long"),
    ),
    Claim(
        9,
        "ReLU reaches 25% training error sooner than tanh (3.1, Figure 1)",
        "6×",
        ("figure1", "activations"),
        configs="cifar_18pct, unregularised",
    ),
    Claim(10, "Ten views are better than the centre (4.1)", "1.55 / 1.30 points", ("views",)),
    Claim(
        11,
        "Each middle convolution is needed (7)",
        "about 2 points",
        ("middle_convs", "middle_convs_long"),
    ),
    Claim(12, "Weight decay lowers the training error too (5)", "", ("weight_decay",)),
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
        "Size (1, 3.5): parameters, units, each convolution's share",
        "60 million, 650,000, at most 1%",
        own=sizes,
        configs="imagenet2012",
    ),
    Claim(
        17,
        "The two-GPU net trains in slightly less time than the one-GPU net (3.5)",
        "< 1×",
        own=times,
        configs="imagenet2012",
    ),
)


SIGNS = {"agrees": "🟢", "contradicts": "🔴", "no effect of that size": "🟠"}  # else ⚪


@dataclass(frozen=True)
class Judged:
    """Holds a claim with its findings, and the result and verdict of its primary finding."""

    claim: Claim
    findings: Sequence[Finding]
    ours: str
    verdict: str


def judge(claim: Claim) -> Judged:
    """Returns the findings for a claim and its verdict, which is that of its primary finding."""
    if claim.own:
        return Judged(claim, (), *claim.own())
    found = findings.of_claim(claim.number, claim.names)
    if not found or not found[0].primary:
        return Judged(claim, found, "not run yet", "not run yet")
    first = found[0]
    return Judged(
        claim, found, f"{first.title} {first.ours}, {first.n} {first.unit}", first.verdict
    )


def summary(judged: Sequence[Judged]) -> str:
    """Returns a sentence with the number of claims of each verdict."""
    verdicts = [each.verdict.partition(" in ")[0] for each in judged]
    counts = [(verdicts.count(word), words) for word, words in SENTENCE.items()]
    rest = len(judged) - sum(count for count, _ in counts)
    parts = [f"{count} {words}" for count, words in counts if count]
    parts += [f"{rest} cannot be judged from what was run"] if rest else []
    return f"Of {len(judged)} claims, {', '.join(parts)}."


SENTENCE = {
    "agrees": "agree",
    "no effect of that size": "show no effect of the paper's size",
    "contradicts": "contradict",
    "visible": "has no statement in the paper to compare with",
}


def grid(*, short: bool = False) -> list[list[str]]:
    """Returns a header and one row per claim as texts; `short` leaves out the configurations."""
    texts = [["claim", "the paper says", "its number", "found here", "verdict"]]
    texts[0] += [] if short else ["at the paper's scale"]
    for judged in map(judge, CLAIMS):
        claim = judged.claim
        verdict = f"{SIGNS.get(judged.verdict.partition(' in ')[0], '⚪')} {judged.verdict}"
        row = [str(claim.number), claim.says, claim.paper, judged.ours, verdict]
        done = claim.own and judged.verdict != NOT_RUN
        where = claim.configs if done else f"{claim.configs}: not run"
        texts.append(row if short else [*row, where])
    return texts


def all_findings() -> list[list[str]]:
    """Returns a header and one row per finding as texts."""
    texts = [["claim", "finding", "the paper's", "found [95%]", "n", "p", "would show", "verdict"]]
    for claim in CLAIMS:
        for each in judge(claim).findings:
            study, variant, measure = each.name
            mark = " **(primary)**" if each.primary else ""
            title = f"[{variant}](results/{study}/table.md), {MEASURES[measure].title}{mark}"
            n = f"{each.n} {each.unit}"
            p = "" if each.p is None else "<0.001" if each.p < 0.001 else f"{each.p:.3f}"
            row = [str(claim.number), title, each.paper, each.ours, n, p, each.power, each.verdict]
            texts.append(row)
    return texts


def text() -> str:
    """Returns the text of ledger.md."""
    return f"""# The paper's claims

{summary([judge(claim) for claim in CLAIMS])}
Each claim is judged by one finding, chosen in `experiments/findings.py` before its runs.

Made by `python -m experiments.ledger --write` from the records in `experiments/results`, not by
hand. Bench scale: small nets on Imagenette at 32 pixels and on CIFAR-10 (re-encoded as JPEG).

{markdown(grid(), numbers=False)}
## All findings

Differences are to each sweep's baseline, in points of top-1 error unless said, with the 95%
interval of Student's t over pairs of one seed. p is of no difference, corrected by Holm's method
where several variants are one family (the grid of dropout and pooling, the middle convolutions, the
readings of the colour noise); intervals are not corrected. "Would show" is the smallest difference
that so many seeds of this spread show with a probability of 80%. "Agrees" and "contradicts" are
about the direction. Where no difference shows, "no effect of that size" means that the interval
leaves the paper's number out, and "not visible" that these seeds cannot tell.

{markdown(all_findings(), numbers=False)}"""


def main(_) -> int:
    """Prints, writes or checks the ledger; returns the exit status."""
    settings.compute_on_cpu()  # Only shapes are computed.
    return pages.answer(PATH, text())


if __name__ == "__main__":
    pages.define_flags("experiments/ledger.md")
    cli.run(main)
