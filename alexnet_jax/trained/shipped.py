"""Lists the nets that come with the package, in folders alexnet_jax/nets/NAME/.

`export --to=net` made the folders. Beside the weights and their description, each folder has a card
NAME.md, which says on what the net was trained, for what it can be used, and which licences apply.
"""

import json
from pathlib import Path

from alexnet_jax import console
from alexnet_jax.trained import names as class_names

FOLDER = Path(__file__).parents[1] / "nets"
DEFAULT = "imagenette"  # the net that commands use if none is given


def names() -> list[str]:
    """Returns the names of the nets."""
    return sorted(path.parent.name for path in FOLDER.glob("*/weights.json"))


def show() -> None:
    """Prints the error, the data, the input and the classes of each net."""
    for name in names():
        about = json.loads((FOLDER / name / "weights.json").read_text("utf-8"))
        told, size = about["run"]["result"], about["preprocess"]["image_size"]
        console.say(
            f"{name}: top-1 error {told['top1_error']:.2f}% of {told['count']:,} examples "
            f"({about['run']['config']['data']['name']}, {told['split']}), "
            f"{size} x {size} pixels, {len(about['class_names'])} classes:"
        )
        console.say(f"    {', '.join(class_names.english(about['class_names']))}")
