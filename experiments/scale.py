"""Estimates the speed of many GPUs from records of the benchmark, and writes docs/scale.md.

    python -m experiments.scale [--write | --check]

Prints the page; --write writes it, and --check fails when it differs from the records.

Work and bytes of a step and the CPU time of an image are the newest records of the paper's net
under experiments/results/bench/. What a GPU and its links do is not measured here: the vendor's
figures stand for it (alexnet_jax/bench/targets/).
"""

from dataclasses import dataclass
from pathlib import Path

from alexnet_jax import cli
from alexnet_jax.bench.target import Target, load
from alexnet_jax.data import device, exchange, plan
from alexnet_jax.errors import UserError
from experiments import pages
from experiments.bench_table import COPY, IMAGENET, MAPPED, PAPER, SAMPLE, records

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
IMAGES, EPOCHS = 1_281_167, 90  # ILSVRC-2012's training set; the paper's section 5
VALIDATION = 50_000
CARDS = ("a100", "h100")
NETWORK = {"a100": 25e9, "h100": 50e9}  # bytes a second: a port a GPU (DGX A100, DGX H100)
NODE = 8
IMAGES_PER_GPU = 128  # the paper's batch
LARGEST_BATCH = 32_768  # with LARS (You, Gitman and Ginsburg, 2017, arXiv:1708.03888)
GPUS = (1, 8, 64, 1024)
SIZES = ((256, 224), (144, 126), (128, 112))  # sides of a square and of the crop, in pixels
STEP = {"data.image_size": 227, "model.dtype": "bfloat16"}


@dataclass(frozen=True)
class Figures:
    """The benchmark's newest figures.

    Attributes:
        flops: floating-point operations of an image's training step.
        share: of the matmul peak that the compiled step reaches.
        step_bytes: moved between a card's memory and its cores in a step of 128 images.
        gradients: bytes that a device of a pair sends in layout `data`.
        activations: bytes that a device of a pair sends for an image in layout `towers`.
        inputs: the records of each backend's benchmark.
    """

    flops: float
    share: float
    step_bytes: float
    gradients: float
    activations: float
    inputs: dict[str, dict]


def figures() -> Figures:
    """Reads the newest records."""
    step = _newest("step", PAPER)
    comms = _newest("comms", {})
    pairs = {each["layout"]: each for each in comms["layouts"] if each["data"] * each["model"] == 2}
    return Figures(
        flops=step["model_flops"] / step["batch_size"],
        share=step["share_of_peak"],
        step_bytes=next(
            each["bytes"]
            for each in records("compile", IMAGENET, STEP)
            if (each["target"], each["batch_size"], each["devices"]) == ("h100", IMAGES_PER_GPU, 1)
        ),
        gradients=pairs["data"]["bytes_sent"],
        activations=pairs["towers"]["bytes_sent"] / comms["batch_size"],
        inputs={
            "full-size JPEGs": _newest("input", SAMPLE, "python"),
            "a prepared copy": _newest("input", COPY, "python"),
            "a mapped copy": _newest("input", MAPPED, "copying"),
        },
    )


def _newest(mode: str, overrides: dict, field: str = "commit") -> dict:
    """Returns the newest record that has a field. Raises UserError where there is none."""
    found = [each for each in records(mode, IMAGENET, overrides) if field in each]
    if not found:
        raise UserError(f"experiments/results/bench/{mode}.jsonl has no such record: {overrides}")
    return found[0]


def bytes_sent(layout: str, gpus: int, images: int, known: Figures) -> float:
    """Returns the bytes that one GPU sends in a step of `images` images of its own.

    Of `data` that is one gradient, whose ring sends 2 (n - 1) / n of it; of the others what the
    activations take, which grows with the images, and the gradients that the data axis of n/2
    pairs adds.
    """

    def ring(size: float, n: int) -> float:
        return 2 * (n - 1) / n * size

    if layout == "data" or gpus == 1:
        return ring(known.gradients, gpus)
    return 2 * known.activations * images + ring(known.gradients / 2, gpus // 2)


def work_seconds(card: Target, images: int, known: Figures) -> tuple[float, float]:
    """Returns the seconds of a step's arithmetic, and of moving its bytes, by the data sheet."""
    arithmetic = images * known.flops / (known.share * card.peaks["bfloat16"])
    return arithmetic, known.step_bytes / card.bandwidth * images / IMAGES_PER_GPU


def input_seconds(record: dict) -> float:
    """Returns the host's CPU seconds for an image; mirroring is a GPU's work with a mapped copy."""
    return record.get("host", record)["cpu_seconds"]


def input_table(cards: list[Target], known: Figures) -> str:
    """Returns the table of what it takes to feed one GPU."""
    header = ["", "CPU ms an image", "images/s to which a process scales, at least"]
    header += [f"cores for one {card.name.upper()}" for card in cards]
    needed = [IMAGES_PER_GPU / sum(work_seconds(card, IMAGES_PER_GPU, known)) for card in cards]
    rows = []
    for name, record in known.inputs.items():
        seconds = input_seconds(record)
        cores = [f"{rate * seconds:.1f}" for rate in needed]
        most = f"{record['python']['images_per_second']:,.0f}"
        rows.append([f"`{record['backend']}`, {name}", f"{1e3 * seconds:.3f}", most, *cores])
    rows.append(["`device`", "none", "", *["0" for _ in cards]])
    return _markdown(header, rows)


def many_table(card: Target, known: Figures) -> str:
    """Returns the table of layouts and numbers of GPUs."""
    header = ["layout", "GPUs", "batch", "work, ms", "network, ms", "90 epochs, hours"]
    header += [f"cores a GPU: {name}" for name in known.inputs] + ["limit"]
    rows = []
    for gpus in GPUS:
        for layout in ("data", "towers") if gpus > 1 else ("data",):
            images = min(IMAGES_PER_GPU, LARGEST_BATCH // gpus)
            work = sum(work_seconds(card, images, known))
            rate = card.links if gpus <= NODE else NETWORK[card.name]
            talk = bytes_sent(layout, gpus, images, known) / rate
            step = work + talk
            hours = IMAGES * EPOCHS / (images * gpus / step) / 3600
            cores = [images / step * input_seconds(each) for each in known.inputs.values()]
            rows.append(
                [
                    layout if gpus > 1 else "one GPU",
                    f"{gpus}",
                    f"{images * gpus:,}",
                    f"{1e3 * work:.1f}",
                    f"{1e3 * talk:.1f}",
                    f"{hours:.2f}" if hours >= 0.1 else f"{60 * hours:.1f} min",
                    *(f"{each:.1f}" for each in cores),
                    "network" if talk > work else "work",
                ]
            )
    return _markdown(header, rows)


def memory_table() -> str:
    """Returns the table of what the backend `device` holds and sends, split over a node."""
    header = ["squares", "crops", "the set, GB", "a GPU of 8, GB", "a GPU of 80 GB alone"]
    header += ["sent a GPU a step of 8 x 128, MB: mean, most"]
    order, _ = plan.epoch_plan(0, 0, IMAGES, 0, crop=False, flip=False)
    rows = []
    for side, size in SIZES:
        whole = (IMAGES + VALIDATION) * side**2 * 3
        sent = exchange.bytes_sent(order, NODE * IMAGES_PER_GPU, IMAGES, NODE, size)
        alone = "holds it" if whole <= 80e9 - device.RESERVE else "doesn't hold it"
        rows.append(
            [
                f"{side} x {side}",
                f"{size} x {size}",
                f"{whole / 1e9:.0f}",
                f"{whole / NODE / 1e9:.1f}",
                alone,
                f"{sent.mean() / 1e6:.1f}, {sent.max() / 1e6:.1f}",
            ]
        )
    return _markdown(header, rows)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def page() -> str:
    """Returns the page in Markdown."""
    known = figures()
    cards = [load(name) for name in CARDS]
    loads = [record["load_average"] for record in known.inputs.values()]
    text = "\n".join([HEAD, *(f"## {title}\n\n{part}" for title, part in SECTIONS.items())])
    return text.format(
        gflop=known.flops / 1e9,
        share=known.share,
        moved=known.step_bytes / 1e9,
        gradients=known.gradients / 1e6,
        towers=known.activations * IMAGES_PER_GPU / 1e6,
        least=min(loads),
        most=max(loads),
        cards="\n".join(
            f"- {card.description}: {card.peaks['bfloat16'] / 1e12:.0f} TFLOP/s in bfloat16,"
            f" {card.bandwidth / 1e12:.2f} TB/s of memory, {card.links / 1e9:.0f} GB/s to the"
            f" others of its node, {NETWORK[card.name] / 1e9:.0f} GB/s between nodes"
            for card in cards
        ),
        reserve=device.RESERVE / 2**30,
        input=input_table(cards, known),
        memory=memory_table(),
        many="\n\n".join(f"{card.description}:\n\n{many_table(card, known)}" for card in cards),
    )


HEAD = """# ImageNet on many GPUs, on paper

Generated by `python -m experiments.scale --write` from the records in `experiments/results/bench`.
Nothing on this page was run on a GPU: it says what to expect of figures that were measured on two
CPU cores, of programs compiled for a card that wasn't there, and of data sheets.

Measured: an image's training step takes {gflop:.2f} GFLOP; the compiled step reaches a share of
{share:.2f} of the matmul peak (on a CPU; taken for the GPU's share too, which is the weakest
assumption here); the step of 128 images compiled for an H100 in bfloat16 moves {moved:.1f} GB (the
same is taken for the A100); a device of a pair sends {gradients:.1f} MB of gradients in layout
`data` whatever the batch, and {towers:.1f} MB for 128 images in layout `towers`. The CPU time of an
image was measured while other programs used the cores (load average {least:.0f} to {most:.0f}),
which makes it longer, not shorter.

Assumed, by the vendor's data sheets:

{cards}

A step's arithmetic, its bytes and its talk come one after the other, with 128 images a GPU as long
as the batch stays within 32,768.
"""

SECTIONS = {
    "Feeding one GPU": """{input}

A process scales with its cores until Python's lock is held all the time;
[the benchmark](../alexnet_jax/bench/limits.py) measures what it is held for at most. Beyond, a host
takes more processes. [data.md](data.md) says what each backend reads and takes.
""",
    "The set in the devices' memory": """{memory}

{reserve:.0f} GiB of each device are left to the net. Both splits are counted. The exchange is
computed from the plan of an epoch.
""",
    "Many GPUs": """{many}

- **The input is the first limit** where JPEGs are decoded, from the first GPU on: few hosts have
  that many cores for each GPU. A prepared copy takes the resizing away, a mapped copy
  (`alexnet_jax.prepare --raw`) the decoding, and the `device` backend the host.
- **The network is the second**: {gradients:.0f} MB of gradients, most of them of the fully
  connected layers, take longer to send between nodes than a small batch takes to compute. Layout
  `towers` sends half of it and, on a pair, activations that grow with the batch instead: right
  within a node, and for small batches only. "One weird trick" (`hybrid`) doesn't send those
  gradients at all, and pays with activations of the whole batch.
- **The batch is the last**: 128 images each for 1024 GPUs is a batch of 131,072, four times the
  largest at which we know of an AlexNet trained to the paper's error. LARS
  (`--config.optim.optimizer=lars`) is published to hold it to 32,768: so 64 GPUs with 512 images
  each, where work again outweighs the network, are of more use than 1024 with 32.
""",
}


def main(_) -> int:
    """Prints, writes or checks the page; returns the exit status."""
    return pages.answer(PAGE, page())


if __name__ == "__main__":
    pages.define_flags("docs/scale.md")
    cli.run(main)
