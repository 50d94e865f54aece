"""Makes tables of the recorded results in Markdown, CSV and LaTeX.

    python -m experiments.tables [NAME | FILE …] [--write | --check]

Prints the tables of the named sweeps, by default of all of experiments/sweeps that have records; a
sweep of your own is named by its file. --write keeps each
beside its records, as experiments/results/NAME/table.md, .csv and .tex, and fills the blocks of
README.md and docs/*.md

    <!-- table: NAME -->
    <!-- end -->

where NAME may also be `ledger`, `claims` (the ledger's first sentence), `results` or `speed`;
--check fails where any of these differs from the records.
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
from experiments import bench_table, findings, ledger, pages, record, results
from experiments.definition import ROOT, Sweep, load_sweep, studies
from experiments.measures import AtLeast
from experiments.tabulate import grid, markdown, rows

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
OTHERS = ("ledger", "claims", "results", "speed")  # blocks that are no sweep's
BLOCK = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def latex(texts: Sequence[Sequence[str]]) -> str:
    """Returns a tabular environment with the rules of the booktabs package."""
    signs = {"%": r"\%", "_": r"\_", "#": r"\#", "&": r"\&", "±": r"$\pm$", "×": r"$\times$"}
    signs["−"] = "$-$"

    def escaped(text: str) -> str:
        return "".join(signs.get(sign, sign) for sign in text)

    header, *body = [" & ".join(map(escaped, line)) + r" \\" for line in texts]
    columns = "l" + "r" * (len(texts[0]) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def comma_separated(sweep: Sweep, lines: Sequence[dict]) -> str:
    """Returns CSV with a line for each variant and measure, and twelve digits of each number."""
    names = ("variant", "measure", "mean", "sd", "n", "difference", "low", "high", "paper")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows(sweep, lines):
        for name, by_seeds in row.values.items():
            own = [value for value in by_seeds.values() if value is not None]
            # A mean over lower bounds would be no mean.
            known = [] if any(isinstance(value, AtLeast) for value in own) else own
            mean = statistics.fmean(known) if known else None
            sd = statistics.stdev(known) if len(known) > 1 else None
            found = row.against.get(name)
            against = (found.mean, found.low, found.high) if found else (None,) * 3
            if found and found.at_least:
                against = (None, found.low, None)
            said = sweep.said(row.variant, name)
            numbers = (mean, sd, len(own), *against, said)
            writer.writerow([row.variant, name, *map(_same_anywhere, numbers)])
    return out.getvalue()


def _same_anywhere(value):
    """Returns a number without its last digits, in which machines differ."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def block(name: str) -> str:
    """Returns the content of the block of this name in a page."""
    if name == "ledger":
        page = f"../{ledger.PATH.relative_to(ROOT)}"  # from docs/
        return markdown(ledger.grid(ledger.judged(), page), numbers=False)
    if name == "speed":
        return bench_table.table()
    if name == "results":
        return results.table()
    if name == "claims":
        return f"{ledger.summary(ledger.judged())}\n"
    sweep = studies()[choose(name, (*studies(), *OTHERS), "table")]
    return markdown(grid(sweep, findings.records(sweep)))


def filled(text: str) -> str:
    """Returns `text` with the content of all its blocks made from the records."""
    return BLOCK.sub(
        lambda match: f"<!-- table: {match[1]} -->\n{block(match[1])}<!-- end -->", text
    )


def differing(text: str) -> list[str]:
    """Returns the names of the blocks in `text` that differ from the records."""
    return [match[1] for match in BLOCK.finditer(text) if match[2] != block(match[1])]


def files(sweep: Sweep, lines: Sequence[dict]) -> dict[Path, str]:
    """Returns the tables that are stored beside a sweep's records, {file: its text}."""
    folder, texts = record.RESULTS / sweep.name, grid(sweep, lines)
    return {
        folder / "table.md": f"{sweep.about}\n\n{markdown(texts)}",
        folder / "table.csv": comma_separated(sweep, lines),
        folder / "table.tex": latex(texts),
    }


def asked_for(names: Sequence[str]) -> dict[str, Sweep]:
    """Returns the sweeps of these names or files, {name: sweep}; without any all of the project.

    Raises:
        UserError: there is no such sweep, or it has no records.
    """
    known = studies()
    if not names:
        return known
    asked = {}
    for name in names:
        own = name.endswith(".py")
        sweep = load_sweep(name) if own else known[choose(name, known, "table")]
        if not record.read_records(sweep.name):
            file = name if own else f"experiments/sweeps/{name}.py"
            raise UserError(f"no records of '{sweep.name}': run {file}")
        asked[sweep.name] = sweep
    return asked


def main(names: list[str]) -> int:
    """Prints, writes or checks the tables; returns the exit status."""
    known = asked_for(names)
    kept = {}
    for name, sweep in known.items():
        if lines := findings.records(sweep):
            kept |= files(sweep, lines)
            if not (flags.FLAGS.check or flags.FLAGS.write):
                print(f"{name}: {sweep.about.splitlines()[0]}\n\n{markdown(grid(sweep, lines))}")
    if flags.FLAGS.check:
        wrong = [str(path) for path, text in kept.items() if not pages.is_current(path, text)]
        wrong += [
            f"{page}, table '{name}',"
            for page in PAGES
            for name in differing(page.read_text("utf-8"))
        ]
        for name in wrong:
            say(f"{name} differs from the records; --write renews it")
        return 1 if wrong else 0
    if flags.FLAGS.write:
        for path, text in kept.items():
            pages.write(path, text)
        for page in PAGES:
            pages.write(page, filled(page.read_text("utf-8")))
    return 0


if __name__ == "__main__":
    pages.define_flags("the tables beside the records, in the README and in docs")
    cli.run(main, takes_files=True)
