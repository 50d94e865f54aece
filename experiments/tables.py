"""Tables of the recorded results: Markdown, CSV and LaTeX.

    python -m experiments.tables [NAME …] [--write | --check]

Prints the tables of the named sweeps, by default of all that have records, and keeps each beside
its records as experiments/results/NAME/table.md, .csv and .tex. --write fills the README's blocks

    <!-- table: NAME -->
    <!-- end -->

where NAME may also be `ledger`, and --check fails when they differ from the records.
"""

import csv
import io
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from alexnet_jax import cli
from alexnet_jax.console import say
from alexnet_jax.errors import UserError, choose
from experiments import findings, ledger, record
from experiments.definition import ROOT, Sweep, studies
from experiments.tabulate import grid, markdown, rows

BLOCK = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def latex(texts: Sequence[Sequence[str]]) -> str:
    """A tabular environment with rules of the booktabs package."""
    signs = {"%": r"\%", "_": r"\_", "#": r"\#", "&": r"\&", "±": r"$\pm$", "×": r"$\times$"}

    def escaped(text: str) -> str:
        return "".join(signs.get(sign, sign) for sign in text)

    header, *body = [" & ".join(map(escaped, line)) + r" \\" for line in texts]
    columns = "l" + "r" * (len(texts[0]) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def comma_separated(sweep: Sweep, lines: Sequence[dict]) -> str:
    """A line for each variant and measure, with unrounded numbers."""
    names = ("variant", "measure", "mean", "sd", "n", "difference", "low", "high", "paper")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows(sweep, lines):
        for name, by_seeds in row.values.items():
            known = [value for value in by_seeds.values() if value is not None]
            mean = statistics.fmean(known) if known else None
            sd = statistics.stdev(known) if len(known) > 1 else None
            found = row.against.get(name)
            against = (found.mean, found.low, found.high) if found else (None,) * 3
            said = sweep.said(row.variant, name)
            writer.writerow([row.variant, name, mean, sd, len(known), *against, said])
    return out.getvalue()


def block(name: str) -> str:
    """What stands in the README's block of that name."""
    if name == "ledger":
        return markdown(ledger.grid(short=True), numbers=False)
    sweep = studies()[choose(name, (*studies(), "ledger"), "table")]
    return markdown(grid(sweep, findings.records(sweep)))


def filled(text: str) -> str:
    """`text` with all its blocks as the records have them."""
    return BLOCK.sub(
        lambda match: f"<!-- table: {match[1]} -->\n{block(match[1])}<!-- end -->", text
    )


def differing(text: str) -> list[str]:
    """The names of the blocks in `text` that differ from the records."""
    return [match[1] for match in BLOCK.finditer(text) if match[2] != block(match[1])]


def write(sweep: Sweep, lines: Sequence[dict]) -> None:
    """Keeps the sweep's table beside its records."""
    folder = record.RESULTS / sweep.name
    texts = grid(sweep, lines)
    (folder / "table.md").write_text(f"{sweep.about}\n\n{markdown(texts)}")
    (folder / "table.csv").write_text(comma_separated(sweep, lines))
    (folder / "table.tex").write_text(latex(texts))


def main(names: list[str]) -> int:
    """Prints and keeps the tables; returns the exit status."""
    readme = Path(flags.FLAGS.readme)
    if flags.FLAGS.check:
        wrong = differing(readme.read_text())
        for name in wrong:
            say(f"{readme}: table '{name}' differs from the records; --write renews it")
        return 1 if wrong else 0
    if flags.FLAGS.write:
        readme.write_text(filled(readme.read_text()))
        return 0
    known = studies()
    for name in names:
        choose(name, known, "table")
        if not record.read_records(name):
            raise UserError(f"no records of '{name}': run experiments/sweeps/{name}.py")
    for name, sweep in known.items():
        if names and name not in names:
            continue
        if lines := findings.records(sweep):
            write(sweep, lines)
            print(f"{name}: {sweep.about.splitlines()[0]}\n\n{markdown(grid(sweep, lines))}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_boolean("check", False, "Only compare the README's tables with the records.")
    flags.DEFINE_boolean("write", False, "Only write the README's tables anew.")
    flags.DEFINE_string("readme", str(ROOT / "README.md"), "The file with the blocks.")
    cli.run(main, takes_files=True)
