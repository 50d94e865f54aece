"""Analyses the trained nets of the sweeps beyond their errors, for claims 1, 10, 14 and 15.

    python -m experiments.analyse [averaging|views|specialisation|neighbours …]
        [--out=runs/sweeps] [--data_dir=DIR] [--record]

It reads the best checkpoints of finished runs in --out, trains nothing, and prints its
measurements. With --record it writes them to experiments/results/NAME/runs.jsonl, in the place of
those of the same nets; those of nets that are not in --out stay. `experiments.definition.ANALYSES`
describes each analysis.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from alexnet_jax import cli, data
from alexnet_jax.assemble import Run
from alexnet_jax.console import say
from alexnet_jax.errors import UserError, choose
from alexnet_jax.evaluate import evaluate, evaluate_together, load_run
from alexnet_jax.features import nearest
from alexnet_jax.records import provenance
from experiments.definition import FOLDER, Cell, cell, load_sweep
from experiments.record import read_records, write_records

AVERAGED = 5  # the number of averaged nets, as in the paper's Table 2
NEAREST = 5
SHUFFLES = 10_000  # the number of random divisions of conv1's kernels into two towers
LOW_FREQUENCY = 0.25  # in cycles per pixel
NEEDED = {"specialisation_large": "kernels"}  # {analysis: its kind of net, if not the baseline}
# {kind of net: its sweep and variant}. Those of the bench are the ones that are averaged.
BENCH = {"baseline": ("lrn", "baseline")} | {
    f"{sweep}: {variant}": (sweep, variant)
    for sweep, variant in (
        ("lrn", "no LRN"),
        ("lrn", "source's form"),
        ("lrn", "as written"),
        ("pooling", "2x2, no overlap"),
        ("weight_decay", "no weight decay"),
    )
}
KINDS_OF_NET = BENCH | {"kernels": ("kernels", "baseline")}  # conv1 of the paper's size

Trained = tuple[Run, dict]  # a run and its parameters


def finished(out: Path) -> dict[str, list[Cell]]:
    """Returns the finished cells of each kind of net, by seed; without the kinds that have none."""
    found = {}
    for kind, (name, variant) in KINDS_OF_NET.items():
        sweep = load_sweep(FOLDER / f"{name}.py")
        cells = [cell(sweep, variant, seed) for seed in range(min(sweep.seeds, AVERAGED))]
        if ended := [each for each in cells if (out / each.folder / "result.json").exists()]:
            found[kind] = ended
    return found


def averaging(runs: dict[str, list[Cell]], load: Callable[[Cell], Trained]) -> Iterator[dict]:
    """Yields, for each kind of net, the mean error of one net and that of five nets averaged."""
    for number, name in enumerate(BENCH):
        if len(cells := runs.get(name, ())) < AVERAGED:
            continue
        nets, params = zip(*map(load, cells), strict=True)
        *alone, together = evaluate_together(nets, params)
        for variant, results in (("one net", alone), ("five averaged", [together])):
            mean = {
                key: float(np.mean([each[key] for each in results]))
                for key in ("top1_error", "top5_error", "loss")
            }
            yield {"variant": variant, "seed": number, "kind": name, "measures": mean}


def views(runs: dict[str, list[Cell]], load: Callable[[Cell], Trained]) -> Iterator[dict]:
    """Yields the baseline's errors from the centre crop and from ten views."""
    for each in runs["baseline"]:
        run, params = load(each)
        for variant, count in (("centre", 1), ("ten views", 10)):
            result = evaluate(run, params, views=count)
            yield {**_own(each), "variant": variant, "measures": result}


def specialisation(
    runs: dict[str, list[Cell]], load: Callable[[Cell], Trained], kind: str = "baseline"
) -> Iterator[dict]:
    """Yields how much the towers' kernels of conv1 differ in colour, and how much by chance.

    `p` is the share of random divisions into towers with a difference as large as that of the net.
    """
    for each in runs[kind]:
        _, params = load(each)
        kernel = np.asarray(params["conv1"]["kernel"])
        share, low = colour_energy(kernel), float(100 * low_frequency_energy(kernel).mean())
        rng = np.random.default_rng(each.seed)
        shuffled = np.array([gap(rng.permutation(share)) for _ in range(SHUFFLES)])
        own = gap(share)
        told = {
            **_own(each),
            "towers": [100 * float(half.mean()) for half in np.split(share, 2)],
            "p": float((1 + (shuffled >= own).sum()) / (1 + SHUFFLES)),
        }
        for variant, value in (("kernels shuffled", shuffled.mean()), ("as trained", own)):
            measured = {"colour_gap": float(value), "low_frequency": low}
            yield {"variant": variant, "measures": measured, **told}


def _own(trained: Cell) -> dict:
    """Returns what a record says of the net that was analysed."""
    return {"seed": trained.seed, "digest": trained.digest}


def colour_energy(kernel: np.ndarray) -> np.ndarray:
    """Returns the share of energy in colour, [C] in 0..1, for kernels [h, w, 3, C].

    It is the part of the sum of squares that remains without the mean over red, green and blue.
    """
    grey = kernel.mean(axis=2, keepdims=True)
    return ((kernel - grey) ** 2).sum((0, 1, 2)) / (kernel**2).sum((0, 1, 2))


def low_frequency_energy(kernel: np.ndarray) -> np.ndarray:
    """Returns each kernel's share of energy below a quarter of a cycle per pixel, [C] in 0..1.

    For white noise it is about a fifth, the share of such frequencies among all.
    """
    power = np.abs(np.fft.fft2(kernel, axes=(0, 1))) ** 2
    rows, columns = (np.fft.fftfreq(size) for size in kernel.shape[:2])
    low = np.hypot(rows[:, None], columns) <= LOW_FREQUENCY
    return power[low].sum((0, 1)) / power.sum((0, 1, 2))


def gap(share: np.ndarray) -> float:
    """Returns the difference of the means of the two halves, in percentage points."""
    first, second = np.split(share, 2)
    return 100 * abs(float(first.mean() - second.mean()))


def neighbours(runs: dict[str, list[Cell]], load: Callable[[Cell], Trained]) -> Iterator[dict]:
    """Yields the share of the query's class among the five nearest images, in fc7 and in pixels."""
    for each in runs["baseline"]:
        run, params = load(each)
        spec = run.data.spec
        splits = [features(run, params, split) for split in (spec.eval_split, spec.train_split)]
        for variant in ("pixels", "fc7"):
            queries, base = (split[variant] for split in splits)
            labels, base_labels = (split["labels"] for split in splits)
            near, _ = nearest(queries, NEAREST, base)
            right = 100 * float(np.mean(base_labels[near] == labels[:, None]))
            measured = {"precision_at_5": right}
            yield {**_own(each), "variant": variant, "measures": measured}


def features(run: Run, params: dict, split: str) -> dict[str, np.ndarray]:
    """Computes the features of the centre crop of every example of a split.

    Returns:
        `fc7` float32 [N, units], `logits` float32 [N, classes], `pixels` float32 [N, S*S*3] as the
        net reads them, `images` uint8 [N, S, S, 3] and `labels` int32 [N].
    """

    @jax.jit
    def forward(params, batch):
        images, crops = batch["images"][:, 0], batch["crops"][:, 0]
        pixels = run.preprocess(images, crops, None, jnp.int32(0))
        logits, activations = run.model.apply({"params": params}, pixels)
        flat = pixels.reshape(len(pixels), -1)
        return {"fc7": activations["fc7"], "logits": logits, "pixels": flat, "images": images}

    batches = data.eval_batches(
        data.open_split(run.data, split),
        split,
        batch_size=run.config.batch_size,
        views=data.views(1, run.data.resize_size - run.data.spec.image_size),
        shardings=run.layout.batch_shardings(),
    )
    parts = [
        jax.device_get({**forward(params, each), "labels": each["labels"], "mask": each["mask"]})
        for each in batches
    ]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    real = whole.pop("mask") > 0
    return {name: values[real] for name, values in whole.items()}


KINDS = {
    "averaging": averaging,
    "views": views,
    "specialisation": specialisation,
    "specialisation_large": functools.partial(specialisation, kind="kernels"),
    "neighbours": neighbours,
}


def loader(out: Path, data_dir: str = "") -> Callable[[Cell], Trained]:
    """Returns a function that opens the run of a finished cell with its parameters."""

    @functools.lru_cache(maxsize=AVERAGED)  # Each run holds its data set.
    def load(of: Cell) -> Trained:
        run, params, _ = load_run(out / of.folder, data_dir=data_dir)
        return run, params

    return load


def add_records(name: str, lines: Sequence[dict]) -> None:
    """Writes the lines into an analysis' records, in the place of those of the same nets."""
    measured = {(line["seed"], line["variant"]): line for line in [*read_records(name), *lines]}
    write_records(name, sorted(measured.values(), key=lambda line: line["seed"]))


def main(names: Sequence[str]) -> None:
    """Runs the named analyses, prints them, and records them with --record."""
    for name in names:
        choose(name, KINDS, "analysis")
    out = Path(flags.FLAGS.out)
    runs = finished(out)
    load = loader(out, flags.FLAGS.data_dir)
    produced = provenance.collect()
    for name in names or KINDS:
        if (kind := NEEDED.get(name, "baseline")) not in runs:
            raise UserError(f"{name}: no finished {kind} run in '{out}': run experiments/sweeps")
        lines = [{**line, **produced} for line in KINDS[name](runs, load)]
        for line in lines:
            measures = ", ".join(f"{key} {value:.4g}" for key, value in line["measures"].items())
            say(f"{name}: {line['variant']}, {line['seed']}: {measures}")
        if flags.FLAGS.record:
            add_records(name, lines)


if __name__ == "__main__":
    cli.define_path("out", "runs/sweeps", "The folder of the sweeps' work directories.")
    flags.DEFINE_string("data_dir", "", "The folder of TFDS's data sets.")
    flags.DEFINE_boolean("record", False, "Write experiments/results/NAME/runs.jsonl.")
    cli.run(main, takes_files=True)
