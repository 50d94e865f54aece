"""Makes a page of HTML that contains its pictures, for any width and for light and dark modes."""

import base64
import html
import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5b6470; --back: #fbfaf7;
  --card: #ffffff; --line: #dcd9d2; --one: #b4532a; --two: #2a6f97; --bar: #5a7fb5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #a3abb6; --back: #16181c;
  --card: #1f2227; --line: #363b43; --one: #e08a5f; --two: #6db1d8; --bar: #7d9fd0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--back);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .4rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { max-width: 44rem; margin: .4rem 0 .8rem; }
.soft, figcaption { color: var(--soft); font-size: .85rem; line-height: 1.35; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-end; margin: .6rem 0; }
figure { margin: 0; } figcaption img { display: inline-block; vertical-align: middle; }
figcaption { margin-top: .25rem; max-width: 18rem; }
img { display: block; max-width: 100%; border-radius: 3px; }
.map { image-rendering: pixelated; }
.one { border-bottom: 3px solid var(--one); } .two { border-bottom: 3px solid var(--two); }
.key.one, .key.two { padding: 0 .2rem; white-space: nowrap; }
.unit { display: grid; grid-template-columns: 6.5rem 1fr; gap: .8rem; padding: .7rem;
  margin: .6rem 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
.unit .row { margin: 0; gap: .4rem; align-items: flex-start; }
.unit .row figure { width: 5.2rem; } .unit .row img { width: 100%; }
@media (max-width: 30rem) { .unit { grid-template-columns: 1fr; }
  .row > figure { max-width: calc(50% - .4rem); } }
.bars { display: grid; grid-template-columns: minmax(6rem, 14rem) 4rem 1fr; gap: .3rem .7rem;
  align-items: center; max-width: 44rem; }
.bars .share { text-align: right; font-variant-numeric: tabular-nums; }
.bars .bar { height: .8rem; background: var(--bar); border-radius: 2px; min-width: 1px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .9rem .25rem 0; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; white-space: normal; }
th { font-weight: 600; border-bottom: 1px solid var(--line); }
"""


def image(pixels: np.ndarray, width: int, alt: str, classes: str = "") -> str:
    """Returns pixels, uint8 [H, W] or [H, W, 3], as an image shown `width` pixels wide.

    Args:
        pixels: the picture.
        width: the width in pixels of the screen; a narrow screen shrinks it.
        alt: a description in words.
        classes: the classes of the image in the style sheet.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img class="{classes}" width="{width}" alt="{html.escape(alt)}" '
        f'src="data:image/png;base64,{data}">'
    )


def figure(shown: str, caption: str) -> str:
    """Returns an image with a caption, both HTML, below it."""
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def row(figures: Iterable[str]) -> str:
    """Returns figures side by side, as many as fit into the width."""
    return f'<div class="row">{"".join(figures)}</div>'


def paragraph(text: str, classes: str = "") -> str:
    """Returns a paragraph of HTML."""
    return f'<p class="{classes}">{text}</p>'


def unit(own: str, others: Iterable[str]) -> str:
    """Returns a unit's card: its part of the picture beside other pictures that excite it."""
    return f'<div class="unit"><div>{own}</div>{row(others)}</div>'


def bars(shares: Iterable[tuple[str, float]]) -> str:
    """Returns named shares of one, each with a bar."""
    cells = [
        f"<div>{html.escape(name)}</div>"
        f'<div class="share">{share:.1%}</div>'
        f'<div><div class="bar" style="width:{100 * share:.2f}%"></div></div>'
        for name, share in shares
    ]
    return f'<div class="bars">{"".join(cells)}</div>'


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table of HTML texts."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in each) + "</tr>" for each in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def whole(title: str, parts: Iterable[str]) -> str:
    """Returns the page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def grey(values: np.ndarray) -> np.ndarray:
    """Returns a map as grey levels, black at 0 and white at its largest value."""
    top = float(values.max())
    return (255 * np.clip(values / top if top > 0 else values, 0, 1)).astype(np.uint8)


def pattern(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel of pixels [h, w, 3] as a picture, in which grey stands for 0."""
    top = float(np.abs(kernel).max()) or 1.0
    return (127.5 + 127.5 * kernel / top).astype(np.uint8)


def heat(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns a picture in grey, red where `values`, a coarser map above 0, are large."""
    size = image.shape[:2][::-1]
    share = np.clip(values / max(float(values.max()), 1e-9), 0, 1)
    smooth = Image.fromarray((255 * share).astype(np.uint8)).resize(size, Image.BICUBIC)
    weight = np.asarray(smooth, np.float32)[..., None] / 255 * 0.85
    plain = image.mean(axis=-1, keepdims=True) * 0.7 + 55
    red = np.array([214, 40, 40], np.float32)
    return (plain * (1 - weight) + red * weight).astype(np.uint8)
