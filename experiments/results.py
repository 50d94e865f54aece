"""The table of results: each recorded configuration's errors, with their spread over seeds.

    python -m experiments.results

prints it as Markdown from experiments/results; `python -m experiments.tables --write` puts it into
the pages that have a block of that name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from alexnet_jax import cli
from alexnet_jax.assemble import make_model
from alexnet_jax.config import load_config
from alexnet_jax.models import operations
from alexnet_jax.runtime import settings
from experiments.definition import ROOT
from experiments.record import read_records
from experiments.tabulate import markdown, spread


@dataclass(frozen=True)
class Net:
    """Describes a row: the records in experiments/results/NAME of a configuration's runs.

    Attributes:
        config: the configuration's name.
        data: what it is trained on, and what its errors are of.
        classes: how many outputs it has.
        name: where its records are.
        variant: which of them are its own; None: all.
        published: the error in print, and whose.
    """

    config: str
    data: str
    classes: int
    name: str
    variant: str | None = None
    published: str = ""


NETS = (
    Net("default", "photos, 600 test patches", 12, "default"),
    Net("imagenette", "Imagenette, 3,925 validation images", 10, "imagenette"),
    Net("imagenette128", "the same", 10, "kernels", "baseline"),
    Net("cifar10", "CIFAR-10 re-encoded as JPEG, 10,000 test images", 10, "cifar10"),
    Net("cifar_18pct", "the same", 10, "cifar_18pct_long", "baseline", "18"),
)
HEADER = ("configuration", "data", "top-1 error, %", "top-5", "seeds", "in print", "parameters")
HEADER += ("pixels", "epochs")


def grid() -> list[list[str]]:
    """Returns one row a net that has records, as texts, the header first."""
    texts = [list(HEADER)]
    for net in NETS:
        if not (runs := by_seed(net)):
            continue
        config = load_config(ROOT / "configs" / f"{net.config}.py")
        size = config.data.image_size
        model = make_model(config, num_classes=net.classes)
        errors = [
            spread([run["final"][name] for run in runs], name)
            for name in ("top1_error", "top5_error")
        ]
        parameters = sum(op.parameters for op in operations(model, size))
        row = [f"`{net.config}`", net.data, *errors, str(len(runs)), net.published]
        texts.append([*row, f"{parameters:,}", str(size), f"{runs[-1]['epochs']:g}"])
    return texts


def by_seed(net: Net) -> Sequence[dict]:
    """Returns the newest record of each seed."""
    own = [line for line in read_records(net.name) if net.variant in (None, line.get("variant"))]
    return list({line["seed"]: line for line in own}.values())


def table() -> str:
    """Returns the table in Markdown."""
    return markdown(grid(), numbers=False)


def main(_):
    """Prints the table."""
    settings.compute_on_cpu()  # only shapes are computed
    print(table(), end="")


if __name__ == "__main__":
    cli.run(main)
