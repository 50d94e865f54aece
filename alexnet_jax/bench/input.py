"""The training pipeline alone, beside bare JPEG decoding of the same files."""

import contextlib
import dataclasses
import io
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from PIL import Image

from alexnet_jax import data
from alexnet_jax.assemble import Run, make_model
from alexnet_jax.bench import timing
from alexnet_jax.bench.common import Options, Table, batches
from alexnet_jax.config import Config
from alexnet_jax.data.plan import epoch_plan
from alexnet_jax.data.sources import open_source
from alexnet_jax.parallel import Layout, make_layout


def measure(config: Config, options: Options) -> dict:
    """Times the training pipeline alone: images cropped, flipped and on the device."""
    dataset = data.open_data(config.data)
    batch_size, cores = config.batch_size, os.cpu_count()
    contenders = {"pipeline": pipeline(_input_run(config, dataset))}
    if dataset.spec.backend == "tfdata":
        contenders["decoding"] = _bare_decoding(config, dataset, cores)
        if options.torch:
            from alexnet_jax.bench import torch_input

            contenders["torch"] = torch_input.loader(config, dataset, cores)
    times = timing.take_turns(contenders, options.repeats, options.seconds)
    result = {
        "images_per_second": batch_size / statistics.median(times["pipeline"]),
        "cores": cores,
        "resize_size": dataset.resize_size,
        "sample_seconds": options.seconds,
        **timing.spread(times["pipeline"], "batch_"),
    }
    if dataset.spec.backend == "device":
        result["transfers_between_steps"] = 0  # else the guard in `pipeline` had raised
    for name in [each for each in contenders if each != "pipeline"]:
        result[name] = {
            "images_per_second": batch_size / statistics.median(times[name]),
            **timing.ratios(times[name], times["pipeline"]),
        }
    if "torch" in contenders:
        result["torch"]["pixel_difference"] = torch_input.pixel_difference(config, dataset)
    return result


def tables(result: dict) -> list[Table]:
    """Lays out the pipeline's rate beside those of what it was compared with."""
    rows = [("pipeline", f"{result['images_per_second']:,.0f}", "")]
    if "transfers_between_steps" in result:
        transfers = str(result["transfers_between_steps"])
        rows.append(("host-to-device transfers between steps", transfers, ""))
    names = {
        "decoding": "bare decoding",
        "torch": f"DataLoader, {result['cores']} workers, Pillow",
    }
    for name in [each for each in names if each in result]:
        each = result[name]
        rows.append((names[name], f"{each['images_per_second']:,.0f}", f"{each['ratio']:.2f}"))
    note = ""
    if "torch" in result:
        difference = result["torch"]["pixel_difference"]
        note = f"mean difference from its pixels: {difference:.2f} grey levels"
    return [Table("input", ("", "images/s", "pipeline over it"), rows, note)]


@dataclasses.dataclass(frozen=True)
class _InputRun:
    """What `batches` reads of a run."""

    config: Config
    data: data.Data
    layout: Layout


def _input_run(config: Config, dataset: data.Data) -> _InputRun:
    """Leaves the statistics out, which would be a pass over the data."""
    layout = make_layout(
        config.mesh,
        towers=make_model(config, dataset.num_classes).towers,
        batch_size=config.batch_size,
    )
    return _InputRun(config, dataset, layout)


def pipeline(run: Run | _InputRun) -> Callable[[int], None]:
    """Makes a contender of the training batches.

    With the device backend the host may send nothing between steps: JAX raises if it does.
    """
    on_device = run.data.spec.backend == "device"
    streams = {}

    def take(count):
        # A stream of its own for each sample: one that waited would have filled its buffers.
        stream = streams.pop("kept", None) or batches(run)
        guard = jax.transfer_guard("disallow") if on_device else contextlib.nullcontext()
        with guard:
            for _ in range(count):
                jax.block_until_ready(next(stream))
        if on_device:
            streams["kept"] = stream
        else:
            stream.close()

    return take


def _order(config: Config, dataset: data.Data, count: int) -> np.ndarray:
    """The first `count` examples that training reads."""
    order, _ = epoch_plan(config.seed, 0, dataset.num_train, 0, crop=False, flip=False)
    return np.resize(order, count)


def _bare_decoding(config: Config, dataset: data.Data, cores: int) -> Callable[[int], None]:
    """A contender: the files of as many batches, read and decoded by Pillow in threads, no more."""
    source = open_source(config.data.name, config.data.data_dir, config.data.train_split)

    def decode(i):
        with Image.open(io.BytesIO(source.read(i)[0])) as image:
            image.load()

    pool = ThreadPoolExecutor(cores)

    def run(count):
        ids = _order(config, dataset, count * config.batch_size).tolist()
        for _ in pool.map(decode, ids):
            pass

    return run
