"""The nets that come with the package, by name: alexnet_jax/nets/NAME/, as `export --to=net` made.

Beside its weights and their description each folder has NAME.md, a card that says what the net was
trained on, what it is good for, and under which licences it and its data stand.
"""

import json
from pathlib import Path

from alexnet_jax import console
from alexnet_jax.trained import names as class_names

FOLDER = Path(__file__).parents[1] / "nets"
DEFAULT = "imagenette"  # the net of commands that are given none


def names() -> list[str]:
    """Returns the names of the nets that ship."""
    return sorted(path.parent.name for path in FOLDER.glob("*/weights.json"))


def show() -> None:
    """Prints each net: its error and on what, its input, and its classes."""
    for name in names():
        about = json.loads((FOLDER / name / "weights.json").read_text("utf-8"))
        told, size = about["run"]["result"], about["preprocess"]["image_size"]
        console.say(
            f"{name}: top-1 error {told['top1_error']:.2f}% of {told['count']:,} examples "
            f"({about['run']['config']['data']['name']}, {told['split']}), "
            f"{size} x {size} pixels, {len(about['class_names'])} classes:"
        )
        console.say(f"    {', '.join(class_names.english(about['class_names']))}")
