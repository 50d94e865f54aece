"""Makes the sections of the page, in the order in which a picture goes through the net."""

import html

import numpy as np

from alexnet_jax.data import decode
from alexnet_jax.explained import halves, layers, occlusion, page, patches
from alexnet_jax.explained.seen import Seen
from alexnet_jax.trained import names, pictures

TITLE = "What a net sees in "  # …, and the picture's name; explain knows its own pages by it
ANSWERS, COVERED = 5, 3  # the numbers of classes that are named, and for which parts are covered
LEAST = 0.01  # the least probability of a class, but the first, for which parts are covered
MAPS, UNITS = 8, 4  # the numbers of maps and units that are shown of a layer
PIXELS = 6  # the pixels of the screen for a value of a map


def page_of(seen: Seen, encoded: bytes, chosen: list[pictures.Picture], about: str) -> str:
    """Returns the page."""
    parts = [
        *_picture(seen, encoded),
        *_layers(seen),
        *units(seen, chosen, about),
        *(_halves(seen) if seen.net.model.towers == 2 else ()),
        *_answers(seen),
        *_covered(seen),
    ]
    return page.whole(TITLE + seen.name, parts)


def _picture(seen: Seen, encoded: bytes) -> list[str]:
    recipe, size = seen.net.recipe, seen.net.recipe.image_size
    left = seen.image[0] / recipe.scale
    best = seen.likeliest[0]
    return [
        page.paragraph(
            f"The net <b>{html.escape(seen.path)}</b> says <b>"
            f"{html.escape(seen.class_names[best])}</b> ({seen.shares[best]:.0%}). This page "
            "follows the picture through its layers: from pixels to edges, from edges to parts, "
            "from parts to an answer."
        ),
        "<h2>The picture, as the net gets it</h2>",
        page.paragraph(
            f"The net reads {size} × {size} pixels with three colours each, {3 * size**2:,} "
            "numbers and nothing else. The picture's shorter side is resized to "
            f"{recipe.resize_size} pixels and its centre is cut out. Then the mean of all training "
            "pictures is subtracted, so that a number says how much brighter or darker a pixel is "
            "than usual."
        ),
        page.row(
            [
                _captioned(decode.square(encoded, 320), 220, "the photograph, its central square"),
                _captioned(seen.square, 220, f"{size} × {size} pixels, the centre", "map"),
                _captioned(
                    np.clip(128 + left / 2, 0, 255).astype(np.uint8),
                    *(220, "minus the mean; grey means: as usual", "map"),
                ),
            ]
        ),
    ]


def _layers(seen: Seen) -> list[str]:
    fields = layers.fields(seen.table)
    parts = ["<h2>Layer by layer</h2>"]
    parts.append(
        page.paragraph(
            "A convolution slides many small patterns over what the layer before gives. Each "
            "pattern makes one <i>map</i>, bright where the pattern is found. Here are the maps "
            "that answer most strongly, all at the same scale: one value takes "
            f"{PIXELS} pixels of your screen. The maps shrink from layer to layer, and one value "
            "sees more of the picture."
        )
    )
    if seen.net.model.towers == 2:
        parts.append(
            page.paragraph(
                "This net has two halves, as the paper's had one on each of its two GPUs: maps of "
                'the <span class="key one">first half</span> and of the <span class="key two">'
                "second half</span> are underlined in two colours."
            )
        )
    for number, op in enumerate(layers.shown(seen.table)):
        values = seen.activations[op.name][0]
        height, width, maps = op.output
        side = fields[op.name].side
        parts.append(f"<h3>{op.layer}: {maps} maps of {height} × {width}</h3>")
        parts.append(page.paragraph(_about_layer(number, side, len(seen.square)), "soft"))
        kernels = np.asarray(seen.net.params[op.layer]["kernel"]) if number == 0 else None
        figures = []
        for i in layers.strongest(values, MAPS):
            classes = f"map {_class(seen.half(op, i))}"
            shown = page.grey(values[..., i])
            shown = page.image(shown, PIXELS * width, f"map {i + 1} of {op.layer}", classes)
            caption = f"map {i + 1}"
            if kernels is not None and kernels.ndim == 4:
                pattern = page.image(page.pattern(kernels[..., i]), 40, f"pattern {i + 1}", "map")
                caption = f"{pattern} {caption}"
            figures.append(page.figure(shown, caption))
        parts.append(page.row(figures))
    return parts


def _captioned(pixels: np.ndarray, width: int, caption: str, classes: str = "") -> str:
    return page.figure(page.image(pixels, width, caption, classes), html.escape(caption))


def _about_layer(number: int, side: int, size: int) -> str:
    sees = f"One value sees {side} × {side} pixels of the picture"
    if side >= size:
        sees = f"One value can see the whole picture ({side} × {side} pixels with its borders)"
    if number == 0:
        return f"{sees}: enough for edges, lines and colours. Beside a map's number is its pattern."
    return f"{sees}, through the maps of the layers before."


def _class(half: int | None) -> str:
    return "" if half is None else ("one", "two")[half]


def units(seen: Seen, chosen: list[pictures.Picture], about: str) -> list[str]:
    """Returns the section about the strongest units and the pictures that excite them most."""
    last, hidden = layers.shown(seen.table)[-1], layers.hidden(seen.table)
    size = len(seen.square)
    field = layers.fields(seen.table)[last.name]
    maps = seen.activations[last.name][0]
    of_maps = patches.Units(
        last.name, tuple(layers.strongest(maps, UNITS)), field, across=last.output[1]
    )
    wanted = [of_maps]
    if hidden:
        values = seen.activations[hidden][0]
        wanted.append(patches.Units(hidden, tuple(layers.strongest(values, UNITS))))
    wanted = [each for each in wanted if each.numbers]
    found = patches.exciting(seen.net, chosen, wanted) if chosen else {}
    parts = [
        "<h2>What excites the strongest units</h2>",
        page.paragraph(
            "What does a map deep in the net stand for? Nobody told it; what it does is seen from "
            "the pictures that excite it most. On the left is this picture, beside it those of "
            f"the net's data set, the most exciting first. {html.escape(about)}"
        ),
    ]
    for each in wanted:
        if each.field:
            side = patches.shown_side(field, size)
            parts.append(f"<h3>{last.layer}: maps, at the place where each is strongest</h3>")
            parts.append(
                page.paragraph(
                    f"Shown are the {side} × {side} pixels in the middle of what the place sees.",
                    "soft",
                )
            )
        else:
            parts.append(f"<h3>{hidden}: units that read the whole picture</h3>")
        values = seen.activations[each.layer][0]
        flat = values.reshape(-1, values.shape[-1])
        for number, unit in enumerate(each.numbers):
            own = each.part(seen.square, int(flat[:, unit].argmax()))
            what = "map" if each.field else "unit"
            title = f"{what} {unit + 1}, here {flat[:, unit].max():.1f}"
            others = [
                _captioned(one.image, 83, f"{_name(one.label)} {one.value:.1f}")
                for one in (found[each.layer][number] if found else ())
            ]
            parts.append(page.unit(_captioned(own, 104, title), others))
    return parts


def _name(label: str) -> str:
    return names.english([label])[0]


def _halves(seen: Seen) -> list[str]:
    alone = halves.probabilities(seen.net, seen.image, seen.table)
    rows = [
        (html.escape(seen.class_names[i]), f"{seen.shares[i]:.1%}", *(f"{p[i]:.1%}" for p in alone))
        for i in dict.fromkeys([*seen.likeliest[:COVERED], *alone.argmax(axis=1).tolist()])
    ]
    first = layers.shown(seen.table)[0].layer
    kernels = np.asarray(seen.net.params[first]["kernel"])
    colour = [_colour(half) for half in np.split(kernels, 2, axis=-1)] if kernels.ndim == 4 else []
    parts = [
        "<h2>Which half saw what</h2>",
        page.paragraph(
            "The halves read the same picture and meet only in few layers. Here the fully "
            "connected layers hear one half alone, while the other is silent:"
        ),
        page.table(
            (
                *("class", "both halves"),
                *('<span class="key one">first</span>', '<span class="key two">second</span>'),
            ),
            rows,
        ),
    ]
    if colour:
        parts.append(
            page.paragraph(
                f"Of the patterns of {first}, {colour[0]:.0%} is colour in the first half and "
                f"{colour[1]:.0%} in the second; the rest is light and dark. In the paper's net "
                "one half became colour blind and the other looked for colours."
            )
        )
    return parts


def _colour(kernels: np.ndarray) -> float:
    """Returns the share of the energy of kernels [h, w, 3, n] that differs between colours."""
    grey = kernels.mean(axis=2, keepdims=True)
    return float(((kernels - grey) ** 2).sum() / (kernels**2).sum())


def _answers(seen: Seen) -> list[str]:
    shown = [(seen.class_names[i], float(seen.shares[i])) for i in seen.likeliest[:ANSWERS]]
    return [
        "<h2>The answer</h2>",
        page.paragraph(
            "The last layer weighs what the layer before says into one number for each of its "
            f"{len(seen.shares)} classes; softmax makes probabilities of them. The net knows no "
            "other classes: whatever the picture shows, these add up to 100%."
        ),
        page.bars(shown),
    ]


def _covered(seen: Seen) -> list[str]:
    first, *others = seen.likeliest[:COVERED]
    classes = [first, *(i for i in others if seen.shares[i] >= LEAST)]
    falls = occlusion.fall(seen.net, seen.image, classes)
    side = occlusion.side_of(len(seen.square))
    figures = []
    for i, values in zip(classes, falls, strict=True):
        lost = max(0.0, float(values.max()))
        said = f"{seen.class_names[i]}, {seen.shares[i]:.1%}; at most {lost:.1%} less"
        figures.append(_captioned(page.heat(seen.square, values), 240, said))
    return [
        "<h2>What the answer rests on</h2>",
        page.paragraph(
            f"A square of {side} × {side} pixels is covered with the mean, place by place, and the "
            "net asked again (Zeiler and Fergus, 2013). Red is where covering lowers the "
            "probability of the class most: what the net needs to see. Each picture has its own "
            "scale."
        ),
        page.row(figures),
    ]
