"""Times the training pipeline without the net, and its limit: the least that it has to do.

The limit of `tfdata` is plain decoding of the same files. That of `mapped` is plain copying of the
same crops, or plain reading of their bytes where --cold drops the pages before each sample. CPU
time is given with wall time, because only it is meaningful while other programs use the cores.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable

import jax

from alexnet_jax import data
from alexnet_jax.assemble import Run, make_model
from alexnet_jax.bench import limits, timing
from alexnet_jax.bench.common import Options, Table, batches
from alexnet_jax.config import Config
from alexnet_jax.data import threads
from alexnet_jax.data.copies import Copy
from alexnet_jax.data.sources import Source
from alexnet_jax.parallel import Layout, make_layout

_TITLES = {
    "pipeline": "pipeline",
    "host": "on the host alone",
    "decoding": "bare decoding",
    "copying": "bare copying",
    "reading": "bare reading",
    "torch": "DataLoader of Pillow",
}


def measure(config: Config, options: Options) -> dict:
    """Times the training pipeline, up to cropped and flipped images on the device."""
    dataset = data.open_data(config.data)
    opened = dataset.splits[config.data.train_split]
    contenders, compared = _contenders(config, dataset, opened, options)
    meters = {name: _Meter(contender) for name, contender in contenders.items()}
    cold = options.cold and isinstance(opened, Copy)
    before = functools.partial(limits.drop_pages, opened) if cold else lambda: None
    times = timing.take_turns(meters, options.repeats, options.seconds, before)
    cpu = {name: meter.seconds(options.repeats) for name, meter in meters.items()}
    result = {
        "backend": dataset.spec.backend,
        "cores": threads.cores(),
        "load_average": os.getloadavg()[0],
        "resize_size": dataset.resize_size,
        "sample_seconds": options.seconds,
        **({"disk": limits.disk(opened)} if cold else {}),
        **timing.spread(times["pipeline"], "batch_"),
        **_rates(times["pipeline"], cpu["pipeline"], config.batch_size),
    }
    if dataset.spec.backend == "device":
        result["transfers_between_steps"] = 0  # The guard in `pipeline` raises otherwise.
    for name in [each for each in contenders if each != "pipeline"]:
        ours = compared if name != "host" else "pipeline"
        ratios = {
            **timing.ratios(times[name], times[ours]),
            "cpu_ratio": timing.ratio(cpu[name], cpu[ours]),
        }
        result[name] = _rates(times[name], cpu[name], config.batch_size) | ratios
    if isinstance(opened, Source | Copy):
        held = limits.python_seconds(config, dataset, opened)
        result["python"] = {
            "cpu_seconds": held,
            "share": held / result["cpu_seconds"],
            "images_per_second": 1 / held,
        }
    if "torch" in contenders:
        from alexnet_jax.bench import torch_input

        result["torch"]["pixel_difference"] = torch_input.pixel_difference(config, dataset)
    return result


def _contenders(
    config: Config, dataset: data.Data, opened: data.Opened, options: Options
) -> tuple[dict[str, Callable[[int], None]], str]:
    """Returns the contenders, and the name of the one that is compared with the limits."""
    contenders = {"pipeline": pipeline(_input_run(config, dataset))}
    if isinstance(opened, Source):
        contenders["decoding"] = limits.decoding(config, opened)
        if options.torch:
            from alexnet_jax.bench import torch_input

            contenders["torch"] = torch_input.loader(config, dataset, threads.cores())
    if isinstance(opened, Copy) and dataset.spec.backend == "mapped":
        contenders["host"] = limits.host(config, dataset, opened)
        limit = limits.reading if options.cold else limits.copying
        contenders[limit.__name__] = limit(config, dataset, opened)
        return contenders, "host"
    return contenders, "pipeline"


class _Meter:
    """Measures the CPU time of a contender, with all threads and PyTorch's worker processes."""

    def __init__(self, contender: Callable[[int], None]):
        self._contender = contender
        self._noted: list[tuple[int, float]] = []

    def __call__(self, count: int) -> None:
        others = getattr(self._contender, "cpu_of_workers", lambda: 0.0)
        start = time.process_time() + others()
        self._contender(count)
        self._noted.append((count, time.process_time() + others() - start))

    def seconds(self, repeats: int) -> list[float]:
        """Returns the CPU seconds of a batch in each of the last samples.

        What a stream takes to start is left out: it is known from the second sample, of one batch,
        as the first has compiled what there is to compile.
        """
        first = self._noted[1][1]
        return [
            (used - first) / (count - 1) if count > 1 else used
            for count, used in self._noted[-repeats:]
        ]


def _rates(wall: list[float], cpu: list[float], batch_size: int) -> dict:
    """Returns images a second, and the CPU seconds of an image, by the medians of the samples."""
    return {
        "images_per_second": batch_size / statistics.median(wall),
        "cpu_seconds": statistics.median(cpu) / batch_size,
    }


def tables(result: dict) -> list[Table]:
    """Makes a table of the pipeline's rates and those of its limits."""
    rows = []
    for name in [each for each in _TITLES if each == "pipeline" or each in result]:
        each = result if name == "pipeline" else result[name]
        ratios = [f"{each[key]:.2f}" if key in each else "" for key in ("ratio", "cpu_ratio")]
        rate, used = f"{each['images_per_second']:,.0f}", f"{1e3 * each['cpu_seconds']:.3f}"
        rows.append((_TITLES[name], rate, used, *ratios))
    notes = []
    if "python" in result:
        python = result["python"]
        notes.append(
            f"Python holds its lock for {1e3 * python['cpu_seconds']:.3f} ms an image at most,"
            f" {100 * python['share']:.0f}% of the CPU time: a process stops scaling at"
            f" {python['images_per_second']:,.0f} images/s or above"
        )
    if "transfers_between_steps" in result:
        notes.append(f"host-to-device transfers between steps: {result['transfers_between_steps']}")
    if "torch" in result:
        difference = result["torch"]["pixel_difference"]
        notes.append(f"mean difference from the DataLoader's pixels: {difference:.2f} grey levels")
    header = ("", "images/s", "CPU ms an image", "ours over it", "by CPU time")
    title = f"input, backend {result['backend']}, {result['cores']} cores"
    return [Table(title, header, rows, "; ".join(notes))]


@dataclasses.dataclass(frozen=True)
class _InputRun:
    """Holds the part of a run that `batches` reads."""

    config: Config
    data: data.Data
    layout: Layout


def _input_run(config: Config, dataset: data.Data) -> _InputRun:
    """Makes a run without statistics, which would need a pass over the data."""
    layout = make_layout(
        config.mesh,
        towers=make_model(config, dataset.num_classes).towers,
        batch_size=config.batch_size,
    )
    return _InputRun(config, dataset, layout)


def pipeline(run: Run | _InputRun) -> Callable[[int], None]:
    """Returns a contender that reads training batches.

    With the device backend the host must send nothing between steps; JAX raises if it does.
    """
    on_device = run.data.spec.backend == "device"
    kept = batches(run) if on_device else None

    def take(count: int) -> None:
        # A stream of its own for each sample, which ends with it: one that waited would have
        # filled its buffers. With the device backend nothing is done ahead.
        stream = itertools.islice(kept, count) if on_device else batches(run, count)
        guard = jax.transfer_guard("disallow") if on_device else contextlib.nullcontext()
        with guard:
            for batch in stream:
                jax.block_until_ready(batch)

    return take
