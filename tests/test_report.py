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
from experiments import drawing, figures, record, report

CHROMIUM = Path("/usr/bin/chromium")


def run_record(variant, seed, errors):
    curve = [
        {"step": i, "epoch": float(i), "split": split, "top1_error": error + shift}
        for i, error in enumerate(errors)
        for split, shift in (("train", -5.0), ("test", 0.0))
    ]
    curve[3]["top1_error"] = None  # as metrics.jsonl has what isn't finite
    last = {"top1_error": errors[-1], "top5_error": 1.5, "loss": 1.0, "step": 3, "epoch": 3.0}
    return {
        **{"variant": variant, "seed": seed, "epochs": 3.0, "final": last, "best": last},
        **{"images_per_second": 1234.5, "commit": 40 * "a" + "-dirty", "date": "2026-11-24T01:02"},
        **{"hardware": {"device_kind": "cpu", "cpu": "AMD <EPYC>"}, "curve": curve},
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page of records and figures made up here."""
    root = tmp_path_factory.mktemp("experiments")
    bench, lrn, single = (root / "results" / name for name in ("bench", "lrn", "own <net>"))
    for folder in (bench, lrn, single, root / "figures"):
        folder.mkdir(parents=True)
    errors = {"baseline": (40, 42), "no LRN": (50, 51)}
    runs = [
        run_record(variant, seed, [90, 60, error])
        for variant, own in errors.items()
        for seed, error in enumerate(own)
    ]
    (lrn / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    (lrn / "floors.json").write_text("{}")
    own = run_record("", 0, [90, 50, 33]) | {"config": {"data": {"name": "photos"}}}
    (single / "runs.jsonl").write_text(json.dumps(own) + "\n")
    steps = [
        {"config": "configs/default.py", "overrides": {}, "images_per_second": 500.0 + i}
        | {"step_seconds": 0.128, "device": "cpu", "date": f"2026-11-2{i}T00:00"}
        | {"hardware": {"device_kind": "cpu"}}
        for i in range(2)
    ]
    (bench / "step.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    told = {"caption": "Kernels & more", "wide": True}
    told |= {"light": "heat map.png", "dark": "heat map-dark.png"}
    (root / "figures" / "captions.json").write_text(json.dumps({"kernels": told}))
    for kind in ("light", "dark"):
        pixels = np.full((300, 900, 3), 255 if kind == "light" else 0, np.uint8)
        Image.fromarray(pixels).save(root / "figures" / told[kind])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "RESULTS", root / "results")
        patch.setattr(figures, "PUBLISHED", root / "figures")
        return report.build(tmp_path_factory.mktemp("site") / "site").parent


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        names = ("href", "src", "srcset")
        self.links += [attributes[name] for name in names if name in attributes]
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
    links = set(check_links(site))
    assert {"figures/heat%20map.png", "figures/heat%20map-dark.png"} <= links
    assert {"results/lrn/runs.jsonl", "results/lrn/floors.json"} <= links
    assert {"charts/lrn-errors.svg", "charts/lrn-curves-dark.svg"} <= links
    assert {"#claims", "#figures", "#runs", "#speed", "#lrn"} <= links


def test_it_shows_the_records(site):
    text = (site / "index.html").read_text("utf-8")
    assert "1,234" in text
    assert "own &lt;net&gt;" in text
    assert "AMD &lt;EPYC&gt;" in text
    for value in ("50.50 ± 0.71", "aaaaaaa-dirty", "501.0", "128.0", "Kernels &amp; more"):
        assert value in text
    assert "17 of 17 claims have not been run" not in text
    assert "Imagenette, 32 pixels, bench_imagenette, 2 seeds." in text
    assert "the photos set, seed 0" in text
    # A click on the claim opens the finding, with its number of seeds.
    claim = text[text.index('id="claim-2"') : text.index('id="claim-3"')]
    assert '<span class="verdict not-run">not run</span>' in claim
    assert '<a href="#lrn">no LRN</a>, top-1 error' in claim
    assert "+9.50 points [+3.15, +15.85]" in claim
    assert "nan" not in text.lower()
    assert "None" not in text


def test_the_projects_own_records(tmp_path, monkeypatch):
    """All of them, with no charts drawn."""

    def write(_, stem):
        stem.parent.mkdir(exist_ok=True)
        files = [stem.with_name(f"{stem.name}{end}.svg") for end in ("", "-dark")]
        for file in files:
            file.touch()
        return [file.name for file in files]

    monkeypatch.setattr(drawing, "write", write)
    page = report.build(tmp_path / "site")
    links = check_links(page.parent)
    assert "results/imagenette/runs.jsonl" in links


def test_a_project_without_records(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "nothing")
    monkeypatch.setattr(figures, "PUBLISHED", tmp_path / "nothing")
    page = report.build(tmp_path / "site")
    check_links(page.parent)
    assert "16 have not been run" in page.read_text()
    monkeypatch.setattr(record, "RESULTS", tmp_path / "broken")
    (tmp_path / "broken" / "x").mkdir(parents=True)
    (tmp_path / "broken" / "x" / "runs.jsonl").write_text("{}\n{\n")
    with pytest.raises(UserError, match=r"runs.jsonl, line 2: not JSON"):
        report.build(tmp_path / "site")


PROBE = """<!doctype html><iframe src="index.html" style="border:0" width=%d height=900></iframe>
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  setTimeout(() => {
    const broken = [...page.images].filter(i => !i.naturalWidth).map(i => i.src);
    const style = getComputedStyle(page.body);
    const shown = [...page.images].map(i => i.currentSrc).filter(s => s.includes("figures"));
    document.title = JSON.stringify({broken, shown, width: root.scrollWidth,
      background: style.backgroundColor});
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
    (figure,) = seen["shown"]
    assert figure.endswith("map-dark.png" if dark else "map.png")
    assert seen["width"] <= width  # nothing is cut off or has to be scrolled to
    channels = [int(c) for c in re.findall(r"\d+", seen["background"])]
    assert (max(channels) < 60) == dark
