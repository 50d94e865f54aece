"""One static page of the whole state of the project, from recorded results alone.

    python -m experiments.report --out=site/

SITE/index.html has the ledger of the paper's claims, figures, tables, every recorded run with its
curves, and the history of the benchmarks. It needs no server and no network, and has no script:
curves are drawn here as SVG; figures and records are copied beside it.
"""

import html
import itertools
import json
import math
import re
import shutil
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from absl import flags
from markdown_it import MarkdownIt

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.records import provenance

EXPERIMENTS = Path(__file__).parent
WIDTH, HEIGHT = 400, 230  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34  # its margins
COLOURS = 6  # of the page's style; a chart of more variants doesn't tell them apart


def build(out: Path, experiments: Path = EXPERIMENTS) -> Path:
    """Writes the page and all that it shows to the folder `out`; returns its index.html.

    Args:
        out: the folder to write, made where it is missing.
        experiments: the folder with `ledger.md`, `figures/*` and `results/**`, each as far as it
            is there.

    Raises:
        UserError: a record is not JSON, or `out` cannot be written.
    """
    results = experiments / "results"
    made = provenance.collect()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if results.is_dir():
            shutil.copytree(results, out / "results", dirs_exist_ok=True)
        sections = [
            ("Claims", _markdown(experiments / "ledger.md", out)),
            ("Figures", _figures(experiments / "figures", out)),
            ("Runs", _runs(results, out)),
            ("Speed", _speed(results / "bench")),
            ("Other records", _others(results)),
        ]
        present = [(title, body) for title, body in sections if body]
        page = Template((Path(__file__).parent / "report.html").read_text("utf-8"))
        text = page.substitute(
            date=_text(made["date"][:16].replace("T", " ") + " UTC"),
            commit=_text(_short(made["commit"])),
            contents=" ".join(f'<a href="#{_anchor(t)}">{t}</a>' for t, _ in present),
            sections="\n".join(
                f'<section id="{_anchor(t)}"><h2>{t}</h2>\n{body}</section>' for t, body in present
            ),
        )
        (out / "index.html").write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return out / "index.html"


def _markdown(path: Path, out: Path) -> str:
    """A Markdown file as HTML, with those of its links that lead to something in the site."""
    if not path.exists():
        return ""

    def link(match: re.Match) -> str:
        return match[0] if (out / urllib.parse.unquote(match[1])).is_file() else match[2]

    render = MarkdownIt("commonmark", {"html": False}).enable("table")
    text = render.render(path.read_text("utf-8")).replace("&lt;br&gt;", "<br>")
    text = re.sub(r"<h1>.*?</h1>\n?", "", text)  # the section has a title
    text = re.sub(r'<a href="([^"]*)">(.*?)</a>', link, text)
    opening, closing = '<div class="scroll" tabindex="0"><table>', "</table></div>"
    return text.replace("<table>", opening).replace("</table>", closing)


def _figures(folder: Path, out: Path) -> str:
    """Each figure once, as SVG where there is one, copied into the site."""
    found = {}
    for suffix in (".png", ".svg"):
        found |= {path.stem: path for path in sorted(folder.glob(f"*{suffix}"))}
    shown = []
    for name, path in sorted(found.items()):
        (out / "figures").mkdir(exist_ok=True)
        shutil.copyfile(path, out / "figures" / path.name)
        title = _text(name.replace("_", " "))
        link = urllib.parse.quote(f"figures/{path.name}")
        shown.append(
            f'<figure><a href="{link}"><img src="{link}" alt="{title}" loading="lazy"></a>'
            f"<figcaption>{title}</figcaption></figure>"
        )
    return f'<div class="grid">{"".join(shown)}</div>' if shown else ""


def _runs(results: Path, out: Path) -> str:
    """For each experiment its table, a chart of its runs' errors, and a list of them."""
    parts = []
    for folder in sorted(path for path in results.glob("*") if path.is_dir()):
        file = folder / "runs.jsonl"
        runs = [each for each in _records(file) if _is_run(each)] if file.exists() else []
        table = _markdown(folder / "table.md", out)
        if not runs and not table:
            continue
        parts += [f"<h3>{_text(folder.name)}</h3>", table]
        if runs:
            raw = f"results/{folder.name}/{file.name}"
            parts.append(_runs_of_one(runs, raw, spread_out=not table))
    return "\n".join(parts)


def _runs_of_one(runs: list[dict], raw: str, *, spread_out: bool) -> str:
    colours = {name: i for i, name in enumerate(dict.fromkeys(map(_name, runs)))}
    runs = sorted(runs, key=lambda run: colours[_name(run)])
    if len(colours) > COLOURS:
        colours = dict.fromkeys(colours)
    header = ("", "run", "seed", "epochs", "top-1 error", "top-5 error", "best top-1", "images/s")
    header += ("hardware", "commit", "date")
    rows = [_run_row(run, colours[_name(run)]) for run in runs]
    caption = (
        "Top-1 error in percent over epochs: evaluation, and (thin) training, on the images and "
        "with the dropout of training."
    )
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    return "\n".join(
        [
            _captioned(_curves(runs, colours), f"{_key(colours)}{caption}"),
            f"<details{' open' * spread_out}><summary>{count}</summary>"
            f"{_table(header, rows, numbers=range(2, 8))}"
            f"<p>{_link(raw)} holds commands, configurations and versions.</p></details>",
        ]
    )


def _is_run(record: dict) -> bool:
    return isinstance(record.get("final"), dict) and bool(record.get("curve"))


def _name(run: dict) -> str:
    """The variant of a sweep, or else the net."""
    if "variant" in run:
        return str(run["variant"])
    config = run.get("config")
    return str(config["model"]["name"] if isinstance(config, dict) else config)


def _run_row(run: dict, colour: int | None) -> list[str]:
    final, best, hardware = (run.get(name) or {} for name in ("final", "best", "hardware"))
    return [
        "" if colour is None else _swatch(colour),
        _text(_name(run)),
        _text(run.get("seed")),
        _number(run.get("epochs"), "{:.4g}"),
        _number(final.get("top1_error"), "{:.2f}"),
        _number(final.get("top5_error"), "{:.2f}"),
        _number(best.get("top1_error"), "{:.2f}"),
        _number(run.get("images_per_second"), "{:,.0f}"),
        _text(f"{hardware.get('device_kind', '')}, {hardware.get('cpu', '')}"),
        f"<code>{_text(_short(run.get('commit')))}</code>",
        _text(str(run.get("date", ""))[:10]),
    ]


def _curves(runs: Sequence[dict], colours: dict[str, int | None]) -> str:
    series = []
    for run in runs:
        for split in dict.fromkeys(line.get("split") for line in run["curve"]):
            points = [
                (line.get("epoch"), line.get("top1_error"))
                for line in run["curve"]
                if line.get("split") == split
            ]
            kind = "train" if split == "train" else "evaluated"
            series.append((points, colours[_name(run)] or 0, kind))
    return chart(series, "epoch", "top-1 error, %")


def _key(colours: dict[str, int | None]) -> str:
    """Which colour is which variant, where there are several and they can be told apart."""
    if len(colours) == 1 or None in colours.values():
        return ""
    shown = [f"{_swatch(colour)}{_text(name)}" for name, colour in colours.items()]
    return f"{' &ensp; '.join(shown)}<br>"


def _speed(bench: Path) -> str:
    """The history of each benchmark: a chart of images/s by record, and the newest first."""
    parts = []
    for path in sorted(bench.glob("*.jsonl")):
        records = list(_records(path))
        groups = {}
        for record in records:
            groups.setdefault(_measured(record), []).append(record)
        groups = {name: group for name, group in groups.items() if len(group) > 1}
        series = [
            (list(enumerate((r.get("images_per_second") for r in group), start=1)), i % COLOURS, "")
            for i, group in enumerate(groups.values())
        ]
        parts.append(f"<h3>{_text(path.stem)}</h3>")
        if any(_finite(point) for points, *_ in series for point in points):
            colours = {name: i if len(groups) <= COLOURS else None for i, name in enumerate(groups)}
            caption = "Images/s by record, of what was measured more than once."
            drawing = chart(series, "record", "images/s")
            parts.append(_captioned(drawing, f"{_key(colours)}{caption}"))
        rows = [
            [
                _text(str(record.get("date", ""))[:16].replace("T", " ")),
                _text(_measured(record)),
                _number(record.get("images_per_second"), "{:,.1f}"),
                _number(_step_ms(record), "{:,.1f}"),
                _text(record.get("device")),
                f"<code>{_text(_short(record.get('commit')))}</code>",
            ]
            for record in reversed(records)
        ]
        header = ("date", "what", "images/s", "step, ms", "device", "commit")
        parts.append(_table(header, rows, numbers=(2, 3)))
    return "\n".join(parts)


def _measured(record: dict) -> str:
    overrides = record.get("overrides") or {}
    changed = ", ".join(f"{name}={value}" for name, value in sorted(overrides.items()))
    name = Path(str(record.get("config", ""))).stem
    return f"{name} ({changed})" if changed else name


def _step_ms(record: dict) -> float | None:
    seconds = record.get("step_seconds")
    return None if seconds is None else 1000 * seconds


def _others(results: Path) -> str:
    """Links to the records that have no part of their own."""
    links = []
    for path in sorted(results.glob("**/*.json*")):
        shown = path.parent.name == "bench" or path.name == "runs.jsonl"
        if not shown:
            links.append(f"<li>{_link(f'results/{path.relative_to(results).as_posix()}')}</li>")
    return f"<ul>{''.join(links)}</ul>" if links else ""


def chart(series: Sequence[tuple], x_title: str, y_title: str) -> str:
    """Draws lines in a coordinate system from 0, and returns them as SVG.

    Args:
        series: (points, colour number, CSS class) of each line; points whose x or y is None or
            not finite are left out.
        x_title: the name of the horizontal axis, with its unit.
        y_title: the name of the vertical axis, with its unit.
    """
    series = [([p for p in points if _finite(p)], *style) for points, *style in series]
    everything = [point for points, *_ in series for point in points]
    if not everything:
        return '<p class="soft">no points</p>'
    x_ticks, y_ticks = (_ticks(max(values)) for values in zip(*everything, strict=True))
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + across * x / x_ticks[-1], TOP + down * (1 - y / y_ticks[-1])

    parts = []
    for tick in y_ticks:
        _, y = at(0, tick)
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(f'<line class="rule" {ends}/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    for tick in x_ticks:
        x, bottom = at(tick, 0)
        place = f'x="{x:.1f}" y="{bottom + 14:.1f}"'
        parts.append(f'<text {place} text-anchor="middle">{tick:,g}</text>')
    for points, colour, kind in series:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in itertools.starmap(at, points))
        parts.append(f'<polyline class="{kind}" stroke="var(--c{colour})" points="{places}"/>')
    parts.append(
        f'<text x="{LEFT + across / 2}" y="{HEIGHT - 5}" text-anchor="middle">{x_title}</text>'
        f'<text x="{LEFT + 4}" y="{TOP + 11}">{y_title}</text>'
    )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    label = f'role="img" aria-label="{y_title} over {x_title}"'
    return f"<svg {size} {label}>{''.join(parts)}</svg>"


def _ticks(largest: float) -> list[float]:
    """From 0 in steps of 1, 2 or 5 times a power of ten, up to the first that isn't below."""
    if largest <= 0:
        return [0.0, 1.0]
    magnitude = 10 ** math.floor(math.log10(largest / 5))
    step = next(m * magnitude for m in (1, 2, 5, 10) if largest <= 6 * m * magnitude)
    return [i * step for i in range(math.ceil(largest / step - 1e-9) + 1)]


def _finite(point: Sequence) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in point)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int]) -> str:
    """A table of cells that are HTML already; the columns `numbers` are set flush right."""
    numbers = set(numbers)

    def row(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="number"' if i in numbers else "" for i in range(len(cells))]
        written = (f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(written)}</tr>"

    body = "\n".join(row("td", cells) for cells in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead>{row("th", header)}</thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _records(path: Path) -> Iterable[dict]:
    """The JSON objects of a .jsonl file, one a line."""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise UserError(f"{path}, line {number}: not JSON") from None


def _text(value) -> str:
    return "" if value is None else html.escape(str(value))


def _number(value, form: str) -> str:
    return form.format(value) if _finite([value]) else ""


def _short(commit: str | None) -> str:
    digest, dash, dirty = str(commit or "unknown").partition("-")
    return digest[:7] + dash + dirty


def _swatch(colour: int) -> str:
    return f'<span class="key" style="background:var(--c{colour})"></span>'


def _link(place: str) -> str:
    return f'<a href="{urllib.parse.quote(place)}">{_text(place)}</a>'


def _captioned(drawing: str, caption: str) -> str:
    return f'<figure class="chart">{drawing}<figcaption>{caption}</figcaption></figure>'


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def main(_):
    """Writes the page."""
    print(f"page: {build(Path(flags.FLAGS.out))}")


if __name__ == "__main__":
    cli.define_path("out", "site", "The folder to write.")
    cli.run(main)
