"""One static page of the whole state of the project, from recorded results alone.

    python -m experiments.report --out=site/

SITE/index.html begins with a summary, then has the paper's claims with the findings behind them,
the figures, every recorded run with a chart of its sweep, and the history of the benchmarks. It
needs no server and no network, and has no script; figures, charts and records are copied beside it.
"""

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from absl import flags

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.records import provenance
from alexnet_jax.runtime import settings
from experiments import drawing, figures, findings, ledger, pages, record, results
from experiments.definition import Sweep, studies
from experiments.drawing import Drawing
from experiments.tabulate import grid

CURVES = 5  # variants whose curves one chart tells apart
MANY = 6  # lines that a history tells apart


@dataclass(frozen=True)
class Picture:
    """Holds a figure or chart: its files for light and for dark pages, and what it shows."""

    light: str
    dark: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Holds rows of texts; the columns from the number `flush` on hold numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    flush: int = 1


@dataclass(frozen=True)
class Study:
    """Holds a sweep, an analysis or single runs: its subject, charts, table and runs."""

    name: str
    about: str
    charts: Sequence[Picture]
    table: Table | None
    runs: Table | None
    files: Sequence[str]


def build(out: Path) -> Path:
    """Writes the page and all that it shows to the folder `out`; returns its index.html.

    Raises:
        UserError: a record is not JSON, or `out` cannot be written.
    """
    made = provenance.collect()
    claims = ledger.judged()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if record.RESULTS.is_dir():
            shutil.copytree(record.RESULTS, out / "results", dirs_exist_ok=True)
        folder = Path(__file__).parent
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True
        )
        nets, *rows = results.grid()
        text = environment.get_template("report.html").render(
            date=made["date"][:16].replace("T", " ") + " UTC",
            commit=_short(made["commit"]),
            summary=ledger.summary(claims),
            notes=ledger.NOTES.split("\n\n"),
            claims=claims,
            p_value=ledger.p_value,
            nets=Table(nets, [[cell.strip("`") for cell in row] for row in rows], flush=2),
            figures=_figures(out),
            studies=[*_studies(out), *_single_runs(out)],
            speed=_speed(out),
            others=_others(),
        )
        pages.write(out / "index.html", text)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return out / "index.html"


def _figures(out: Path) -> list[Picture]:
    """Returns the published figures, copied into the site, in the order of their captions."""
    path = figures.PUBLISHED / "captions.json"
    if not path.exists():
        return []
    shown = []
    for told in json.loads(path.read_text("utf-8")).values():
        places = []
        for kind in ("light", "dark"):
            (out / "figures").mkdir(exist_ok=True)
            shutil.copyfile(figures.PUBLISHED / told[kind], out / "figures" / told[kind])
            places.append(f"figures/{told[kind]}")
        shown.append(Picture(*places, told["caption"], told["wide"]))
    return shown


def _studies(out: Path) -> list[Study]:
    """Returns every sweep and analysis that has records."""
    shown = []
    # Searches and the like, which no claim is of, come last.
    ordered = sorted(studies().items(), key=lambda each: each[1].claim or len(ledger.CLAIMS) + 1)
    for name, sweep in ordered:
        if not (lines := findings.records(sweep)):
            continue
        header, *rows = grid(sweep, lines)
        charts = [_drawn(out, f"{name}-{kind}", each) for kind, each in _charts(sweep, lines)]
        runs = _runs(lines) if _is_run(lines[0]) else None
        kept = [
            f"results/{name}/{file}"
            for file in ("runs.jsonl", "table.csv", "table.tex")
            if (record.RESULTS / name / file).exists()
        ]
        shown.append(Study(name, sweep.about, charts, Table(header, rows), runs, kept))
    return shown


def _charts(sweep: Sweep, lines: Sequence[dict]) -> Iterable[tuple[str, Drawing]]:
    """Yields the errors of all variants; the curves too, where they can be told apart."""
    what = f"{drawing.setting(sweep)}, {drawing.seeds(lines)}."
    counted = f"{what[:-1]} (here: {sweep.unit})." if sweep.unit != "seeds" else what
    caption = f"A dot a run, a stroke at the mean, the baseline red. {counted}"
    yield "errors", Drawing(lambda: drawing.dots(sweep, lines), caption)
    runs = {v: [line for line in lines if line["variant"] == v] for v in sweep.variants}
    runs = {v: own for v, own in runs.items() if own and v not in sweep.sources}
    if _is_run(lines[0]) and len(runs) <= CURVES:
        caption = f"Error over epochs, a line a run; dotted: as the training steps saw it. {what}"
        yield "curves", Drawing(lambda: drawing.curves(runs), caption)


def _single_runs(out: Path) -> Iterable[Study]:
    """Yields the records that no sweep made: of single configurations."""
    known = studies()
    for path in sorted(record.RESULTS.glob("*/runs.jsonl")):
        name = path.parent.name
        if name in known or not (lines := record.read_lines(path)):
            continue
        data = lines[0]["config"]["data"] if isinstance(lines[0].get("config"), dict) else {}
        named = drawing.DATA.get(data.get("name"), data.get("name", name))
        what = f"configs/{name}.py, {named}, seed {', '.join(str(line['seed']) for line in lines)}"
        groups = {f"{str(line['date'])[:10]}, seed {line['seed']}": [line] for line in lines}
        caption = f"Error over epochs; dotted: as the training steps saw it. {what}."
        drawn = Drawing(lambda groups=groups: drawing.curves(groups), caption)
        charts = [_drawn(out, f"{name}-curves", drawn)] if len(groups) <= CURVES else []
        yield Study(
            name,
            f"Single runs: {what}.",
            charts,
            None,
            _runs(lines),
            [f"results/{name}/runs.jsonl"],
        )


def _drawn(out: Path, name: str, drawn: Drawing) -> Picture:
    light, dark = drawing.write(drawn, out / "charts" / name)
    return Picture(f"charts/{light}", f"charts/{dark}", drawn.caption)


def _is_run(line: dict) -> bool:
    return isinstance(line.get("final"), dict) and bool(line.get("curve"))


def _runs(lines: Sequence[dict]) -> Table:
    """Returns a row a run, with what it was made on."""
    header = ("run", "seed", "epochs", "top-1 error", "top-5 error", "best top-1", "images/s")
    rows = []
    for line in lines:
        final, best, hardware = (line.get(name) or {} for name in ("final", "best", "hardware"))
        rows.append(
            [
                str(line.get("variant", "")),
                str(line.get("seed")),
                _number(line.get("epochs"), "{:.4g}"),
                *(_number(final.get(name), "{:.2f}") for name in ("top1_error", "top5_error")),
                _number(best.get("top1_error"), "{:.2f}"),
                _number(line.get("images_per_second"), "{:,.0f}"),
                f"{hardware.get('device_kind', '')}, {hardware.get('cpu', '')}",
                _short(line.get("commit")),
                str(line.get("date", ""))[:10],
            ]
        )
    return Table((*header, "hardware", "commit", "date"), rows)


def _speed(out: Path) -> list[Study]:
    """Returns the history of each benchmark: images/s by record, and the newest records first."""
    shown = []
    for path in sorted((record.RESULTS / "bench").glob("*.jsonl")):
        lines = record.read_lines(path)
        groups: dict[str, list[float]] = {}
        for line in lines:
            if _finite(line.get("images_per_second")):
                groups.setdefault(_measured(line), []).append(line["images_per_second"])
        several = {name: values for name, values in groups.items() if len(values) > 1}
        charts = []
        if several and len(several) <= MANY:
            caption = "Images/s of what was measured more than once, in the order of the records."
            drawn = Drawing(lambda several=several: drawing.history(several, "images/s"), caption)
            charts = [_drawn(out, f"bench-{path.stem}", drawn)]
        header = ("date", "what", "images/s", "step, ms", "device", "commit")
        rows = [
            [
                str(line.get("date", ""))[:16].replace("T", " "),
                _measured(line),
                _number(line.get("images_per_second"), "{:,.1f}"),
                _number(line.get("step_seconds"), "{:,.1f}", 1000),
                str(line.get("device") or ""),
                _short(line.get("commit")),
            ]
            for line in reversed(lines)
        ]
        about = f"Records of python -m alexnet_jax.bench {path.stem}, the newest first."
        place = f"results/bench/{path.name}"
        shown.append(Study(path.stem, about, charts, None, Table(header, rows, flush=2), [place]))
    return shown


def _measured(line: dict) -> str:
    overrides = line.get("overrides") or {}
    changed = ", ".join(f"{name}={value}" for name, value in sorted(overrides.items()))
    name = Path(str(line.get("config", ""))).stem
    return f"{name} ({changed})" if changed else name


def _others() -> list[str]:
    """Returns the records that have no part of their own."""
    every = sorted(record.RESULTS.glob("**/*.json*"))
    shown = [path for path in every if path.parent.name != "bench" and path.name != "runs.jsonl"]
    return [f"results/{path.relative_to(record.RESULTS).as_posix()}" for path in shown]


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value, form: str, factor: float = 1) -> str:
    return form.format(factor * value) if _finite(value) else ""


def _short(commit: str | None) -> str:
    digest, dash, dirty = str(commit or "unknown").partition("-")
    return digest[:7] + dash + dirty


def main(_):
    """Writes the page."""
    settings.compute_on_cpu()  # only shapes are computed
    print(f"page: {build(Path(flags.FLAGS.out))}")


if __name__ == "__main__":
    cli.define_path("out", "site", "The folder to write.")
    cli.run(main)
