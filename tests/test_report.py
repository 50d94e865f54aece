"""The static page: what is on it, that every link resolves, and how a browser shows it."""

import functools
import html.parser
import http.server
import json
import re
import shutil
import subprocess
import threading
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.errors import UserError
from experiments import report

CHROMIUM = Path("/usr/bin/chromium")


def run_record(variant, seed, errors):
    curve = [
        {"step": i, "epoch": float(i), "split": split, "top1_error": error + shift}
        for i, error in enumerate(errors)
        for split, shift in (("train", -5.0), ("test", 0.0))
    ]
    curve[3]["top1_error"] = None  # as metrics.jsonl has what isn't finite
    last = {"top1_error": errors[-1], "top5_error": 1.5, "step": 3, "epoch": 3.0}
    return {
        **{"variant": variant, "seed": seed, "epochs": 3.0, "final": last, "best": last},
        **{"images_per_second": 1234.5, "commit": 40 * "a" + "-dirty", "date": "2026-11-24T01:02"},
        **{"hardware": {"device_kind": "cpu", "cpu": "AMD <EPYC>"}, "curve": curve},
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page of records, figures and a ledger made up here."""
    root = tmp_path_factory.mktemp("experiments")
    bench, lrn = root / "results" / "bench", root / "results" / "lrn"
    bench.mkdir(parents=True)
    lrn.mkdir()
    runs = [run_record("without <LRN>", 0, [90, 60, 50]), run_record("baseline", 0, [90, 50, 40])]
    (lrn / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    (lrn / "floors.json").write_text("{}")
    steps = [
        {"config": "configs/default.py", "overrides": {}, "images_per_second": 500.0 + i}
        | {"step_seconds": 0.128, "device": "cpu", "date": f"2026-11-2{i}T00:00"}
        for i in range(2)
    ]
    (bench / "step.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (root / "ledger.md").write_text(
        "# Ledger\n\n| claim | paper | here |\n| --- | --- | --- |\n"
        f"| [gone](sweeps/lrn.py), [lrn](results/lrn/table.md) | 1.4<br>1.2 | {'verdict ' * 40} |\n"
    )
    (lrn / "table.md").write_text(
        "About.\n\n| variant | error |\n| --- | --- |\n| no LRN | 40.0 |\n"
    )
    (root / "figures").mkdir()
    pixels = np.full((300, 900, 3), 255, np.uint8)
    Image.fromarray(pixels).save(root / "figures" / "figure_1.png")
    Image.fromarray(pixels).save(root / "figures" / "heat map.png")
    return report.build(tmp_path_factory.mktemp("site") / "site", root).parent


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []


def check_links(page):
    found = Links()
    found.feed((page / "index.html").read_text("utf-8"))
    for link in found.links:
        assert not urllib.parse.urlparse(link).netloc, link
        if link.startswith("#"):
            assert link[1:] in found.ids
        elif not link.startswith("data:"):
            assert (page / urllib.parse.unquote(link)).is_file(), link
    return found.links


def test_every_link_resolves(site):
    links = check_links(site)
    assert {"figures/figure_1.png", "figures/heat%20map.png"} <= set(links)
    assert {"results/lrn/runs.jsonl", "results/lrn/floors.json"} <= set(links)
    assert "results/lrn/table.md" in links
    assert "sweeps/lrn.py" not in links
    assert {"#claims", "#figures", "#runs", "#speed"} <= set(links)


def test_it_shows_the_records(site):
    text = (site / "index.html").read_text("utf-8")
    assert "without &lt;LRN&gt;" in text
    assert "without <LRN>" not in text
    assert "AMD &lt;EPYC&gt;" in text
    for value in ("40.00", "1,234", "aaaaaaa-dirty", "501.0", "128.0", "1.4<br>1.2", "no LRN"):
        assert value in text
    assert len(re.findall("<polyline", text)) == 2 * 2 + 1
    assert "nan" not in text.lower()
    assert "None" not in text


def test_the_projects_own_records(tmp_path):
    page = report.build(tmp_path / "site")
    links = check_links(page.parent)
    assert "results/imagenette/runs.jsonl" in links


def test_a_project_without_records(tmp_path):
    page = report.build(tmp_path / "site", tmp_path / "nothing")
    check_links(page.parent)
    (tmp_path / "broken" / "results" / "x").mkdir(parents=True)
    (tmp_path / "broken" / "results" / "x" / "runs.jsonl").write_text("{}\n{\n")
    with pytest.raises(UserError, match=r"runs.jsonl, line 2: not JSON"):
        report.build(tmp_path / "site", tmp_path / "broken")


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (0, [0, 1]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (40, [0, 10, 20, 30, 40]),
        (90.5, [0, 20, 40, 60, 80, 100]),
        (1234, [0, 500, 1000, 1500]),
    ],
)
def test_ticks(largest, expected):
    assert report._ticks(largest) == pytest.approx(expected)


def test_a_chart_puts_points_where_they_belong():
    svg = report.chart([([(0, 0), (10, 50), (5, None)], 2, "")], "epoch", "error")
    left, bottom = report.LEFT, report.HEIGHT - report.BOTTOM
    right, top = report.WIDTH - report.RIGHT, report.TOP
    assert f'points="{left:.1f},{bottom:.1f} {right:.1f},{top:.1f}"' in svg
    assert "no points" in report.chart([([(None, 1)], 0, "")], "epoch", "error")


PROBE = """<!doctype html><iframe src="index.html" style="border:0" width=%d height=900></iframe>
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  for (const image of page.images) image.loading = "eager";
  setTimeout(() => {
    const broken = [...page.images].filter(i => !i.naturalWidth).map(i => i.src);
    const style = getComputedStyle(page.body);
    document.title = JSON.stringify({broken, images: page.images.length, width: root.scrollWidth,
      background: style.backgroundColor, colour: style.color});
  }, 1000);
});
</script>"""


@pytest.fixture(scope="module")
def served(site, tmp_path_factory):
    """The site behind a server of this test's, which a browser lets a page look into."""
    folder = tmp_path_factory.mktemp("served") / "site"
    shutil.copytree(site, folder)
    for width in (390, 1280):
        (folder / f"probe{width}.html").write_text(PROBE % width)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(served, tmp_path, width, dark):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", f"--user-data-dir={tmp_path}", "--enable-logging=stderr"]
    command += ["--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom"]
    if dark:
        command += ["--blink-settings=preferredColorScheme=0"]
    done = subprocess.run(
        [*command, f"{served}/probe{width}.html"], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
    assert seen["broken"] == []
    assert seen["images"] == 2
    assert seen["width"] <= width  # nothing is cut off or has to be scrolled to
    channels = [int(c) for c in re.findall(r"\d+", seen["background"])]
    assert (max(channels) < 60) == dark
