"""Makes the table of speeds in docs/speed.md: targets and what the newest records reached.

    python -m experiments.bench_table

prints it as Markdown from experiments/results/bench/*.jsonl, which `python -m alexnet_jax.bench
MODE … --record` appends to; `python -m experiments.tables --write` puts it there. A row
takes the newest record of its configuration and overrides that has the figure.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from alexnet_jax import cli

RESULTS = Path(__file__).parent / "results" / "bench"
PAPER = {"batch_size": 64, "data.image_size": 227, "mesh.data": 1}
ON_GPU = {"data.image_size": 227, "mesh.data": 1}  # 128 images, of experiments/on_gpu.py
BFLOAT16 = {**ON_GPU, "model.dtype": "bfloat16"}
NO_LRN = {**PAPER, "model.lrn": False}
# Where something lies, or that there is one device, makes no other measurement.
IGNORED = ("data.data_dir", "data.copies", "mesh.data")


@dataclass(frozen=True)
class Row:
    """Describes what to show of the newest record in `mode` of `config` with `overrides`.

    It is a record of a CPU or of a GPU.
    """

    what: str
    target: str
    mode: str
    config: str
    reached: Callable[[dict], str]
    overrides: dict = field(default_factory=dict)
    gpu: bool = False


def _ratios(task: str) -> Callable[[dict], str]:
    def show(record):
        kinds = record["torch"][task]
        return ", ".join(f"{each['ratio']:.2f}× {kind}" for kind, each in kinds.items())

    return show


def _speed(record) -> str:
    ratios = [_ratios("step")(record)] if "torch" in record else []
    return ", ".join([f"{record['images_per_second']:,.0f} images/s", *ratios])


def _share(record) -> str:
    return f"{record['share_of_peak']:.2f}"


def _against_loader(record) -> str:
    torch = record["torch"]
    return f"{torch['ratio']:.2f}×, {torch['pixel_difference']:.2f} grey levels"


def _of_decoding(record) -> str:
    return _by_cpu_time(record["decoding"])


def _of_copying(record) -> str:
    rate = record["cores"] / record["host"]["cpu_seconds"]
    return f"{rate:,.0f} images/s and {_by_cpu_time(record['copying'])}"


def _of_reading(record) -> str:
    return f"{_by_cpu_time(record['reading'])}, from {record['disk']}"


def _by_cpu_time(limit: dict) -> str:
    """Shows a ratio by CPU time, which other programs on the same cores change little."""
    if "cpu_ratio" in limit:
        return f"{100 * limit['cpu_ratio']:.0f}% by CPU time"
    return f"{100 * limit['ratio']:.0f}%"


IMAGENET, DEFAULT = "configs/imagenet2012.py", "configs/default.py"
CIFAR, IMAGENETTE = "configs/cifar_18pct.py", "configs/imagenette.py"
TEN_CLASSES = {"model.num_classes": 10}  # the benchmark opens no data that would say so
SAMPLE = {
    "data.name": "folder:../shared/data/imagenet_sample",
    "data.train_split": "validation",
    "data.backend": "tfdata",
}
COPY = {
    "data.name": "imagenet_sample_prepared_256",
    "data.train_split": "validation",
    "data.backend": "tfdata",
}
MAPPED = {"data.name": "imagenette/160px-v2", "data.backend": "mapped"}
ROWS = (
    Row("the paper's net, train step", "≥ 1.0× stock", "step", IMAGENET, _ratios("step"), PAPER),
    Row("the same without LRN", "0.9× sought", "step", IMAGENET, _ratios("step"), NO_LRN),
    Row("forward, batch 1", "≥ 1.0×", "step", IMAGENET, _ratios("forward_1"), PAPER),
    Row("forward, batch 64", "≥ 1.0×", "step", IMAGENET, _ratios("forward_64"), PAPER),
    Row("`cifar_18pct`, train step", "≥ 1.0×", "step", CIFAR, _ratios("step"), TEN_CLASSES),
    Row("`imagenette`, train step", "≥ 1.0×", "step", IMAGENETTE, _ratios("step"), TEN_CLASSES),
    Row("share of the matmul peak", "0.7 sought", "step", IMAGENET, _share, PAPER),
    Row(
        "the loop over the slower of bare step and input",
        "within 2%",
        "train",
        DEFAULT,
        lambda record: f"{100 * record['overhead']:+.1f}%",
    ),
    Row(
        "input from full-size JPEGs",
        "≥ 1.0× a Pillow DataLoader, ≤ 2 grey levels",
        "input",
        IMAGENET,
        _against_loader,
        SAMPLE,
    ),
    Row("input from a prepared copy", "≥ 90% of decoding", "input", IMAGENET, _of_decoding, COPY),
    Row(
        "input from a mapped copy, on the host",
        "≥ 80% of bare copying, ≥ 20,000 images/s",
        "input",
        IMAGENET,
        _of_copying,
        MAPPED,
    ),
    Row(
        "the same from its disk",
        "≥ 90% of bare reading",
        "input",
        IMAGENET,
        _of_reading,
        MAPPED,
    ),
    Row(
        "device backend on CIFAR-10, transfers between steps",
        "none",
        "input",
        "configs/cifar10.py",
        lambda record: str(record["transfers_between_steps"]),
        {"data.name": "cifar10_jpeg"},
    ),
    Row(
        "compilation at the second start of the default job",
        "< 1 s",
        "step",
        DEFAULT,
        lambda record: f"{record['second_compile_seconds']:.2f} s",
    ),
    Row(
        "the paper's step on a GPU, bfloat16", "none", "step", IMAGENET, _speed, BFLOAT16, gpu=True
    ),
    Row("the paper's step on a GPU, float32", "none", "step", IMAGENET, _speed, ON_GPU, gpu=True),
)


def records(mode: str, config: str, overrides: dict, results: Path = RESULTS) -> list[dict]:
    """Returns the records of `mode` with this configuration and these overrides, newest first."""
    path = results / f"{mode}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [each for each in map(json.loads, reversed(lines)) if _matches(each, config, overrides)]


def _matches(record: dict, config: str, overrides: dict) -> bool:
    def relevant(fields):
        return {name: value for name, value in fields.items() if name not in IGNORED}

    same = Path(record["config"]).name == Path(config).name
    given = record["overrides"]
    if same and record["mode"] == "input" and config == IMAGENET and "backend" not in record:
        given = {"data.backend": "tfdata"} | given  # It was the default before 'auto' was.
    return same and relevant(given) == relevant(overrides)


def table(results: Path = RESULTS) -> str:
    """Returns the table in Markdown."""
    lines = ["| what | target | reached | on |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        shown, device = "not measured", ""
        for record in records(row.mode, row.config, row.overrides, results):
            if row.gpu == (record["hardware"]["device_kind"] == "cpu"):
                continue
            try:
                shown, device = row.reached(record), record["device"]
            except KeyError:  # A run without --against=torch.
                continue
            break
        lines.append(f"| {row.what} | {row.target} | {shown} | {device} |")
    return "\n".join([*lines, ""])


def main(_) -> None:
    """Prints the table."""
    print(table(), end="")


if __name__ == "__main__":
    cli.run(main)
