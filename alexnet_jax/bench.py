"""How fast: the step, its layers, the input, the loop, and what the devices say to each other.

python -m alexnet_jax.bench step|layers|input|train|comms --config=FILE [--config.FIELD=VALUE]
    [--against=torch] [--repeats=N] [--steps=N] [--seconds=S] [--json=FILE] [--record]

step    the compiled training step, its compilation, memory and share of the matmul peak; forward
layers  where the step's time goes: each layer forward and its two gradients, timed alone
input   the training pipeline alone, beside bare JPEG decoding of the same files
train   what the loop costs over the slower of the bare step and the bare input
comms   collectives and their bytes in each layout, from the compiled step

`step`, `layers` and `comms` make up images and need no data set; their number of classes is 1000
where the data isn't here and model.num_classes isn't set. What is compared is timed in turn, after
a warm-up (see timing.py). `--against=torch` runs the same in PyTorch (see bench_torch.py).
`--record` appends a line to experiments/results/bench/MODE.jsonl.
"""

import contextlib
import dataclasses
import io
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
from ml_collections.config_flags import get_config_filename
from PIL import Image

from alexnet_jax import bench_layers as layers
from alexnet_jax import cli, console, data, timing
from alexnet_jax.assemble import Run, assemble, data_spec, make_model
from alexnet_jax.config import flatten, load_config
from alexnet_jax.data.device import Squares
from alexnet_jax.data.plan import epoch_plan
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError, choose
from alexnet_jax.parallel import make_layout
from alexnet_jax.records import metrics
from alexnet_jax.train import train

RESULTS = metrics.ROOT / "experiments" / "results" / "bench"
TRAIN_ROUNDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """repeats: turns; steps: of a training loop; torch: compare with PyTorch.

    seconds: of a sample of a pipeline, beside which its start and the batches that it reads ahead
    should be short.
    """

    repeats: int = 10
    steps: int = 200
    seconds: float = 20.0
    torch: bool = False


# What is measured


def synthetic_run(config: ConfigDict) -> Run:
    """The configuration's run on one batch of made-up images."""
    spec = dataclasses.replace(
        data_spec(config), name="synthetic", backend="device", train_split="train"
    )
    size = spec.resize_size or round(spec.image_size * 256 / 224)
    classes, count = _num_classes(config), config.batch_size
    rng = np.random.default_rng(0)
    squares = Squares(
        name="synthetic",
        split="train",
        fingerprint="synthetic",
        class_names=tuple(map(str, range(classes))),
        squares=rng.integers(0, 256, (count, size, size, 3), np.uint8),
        labels=rng.integers(0, classes, count, np.int32),
        mask=np.ones(count, np.float32),
        bad={},
    )
    dataset = data.Data(
        spec=spec,
        num_train=count,
        num_eval=0,
        num_classes=classes,
        class_names=squares.class_names,
        resize_size=size,
        fingerprint="synthetic",
        bad={},
        _splits={"train": squares},
    )
    return assemble(config, dataset)


def _num_classes(config: ConfigDict) -> int:
    if config.model.num_classes is not None:
        return config.model.num_classes
    spec = data_spec(config)
    try:
        source = open_source(spec.name, spec.data_dir, spec.train_split, download=False)
        return len(source.class_names)
    except UserError:
        return 1000


def _batch(run: Run) -> dict[str, jax.Array]:
    return next(batches(run))


def batches(run: Run, start_step: int = 0) -> Iterator[dict[str, jax.Array]]:
    """The run's training batches, as its loop reads them."""
    return data.train_batches(
        run.data,
        seed=run.config.seed,
        batch_size=run.config.batch_size,
        start_step=start_step,
        shardings=run.layout.batch_shardings(),
    )


def _stepper(run: Run, compiled: Callable, batch: dict) -> Callable[[int], None]:
    """A contender: training steps on the same batch."""
    state = run.fresh_state()

    def steps(count):
        nonlocal state
        for _ in range(count):
            state, sums = compiled(state, batch)
        jax.block_until_ready((state, sums))

    return steps


def compile_seconds(run: Run, batch: dict) -> tuple[float, float]:
    """Seconds until the step can run, traced and compiled: at a first start, and at a second."""
    folder = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    with tempfile.TemporaryDirectory() as cold:
        _use_cache(cold, 0)
        try:
            return tuple(timing.elapsed(lambda _: _compile(run, batch), 1) for _ in range(2))
        finally:
            _use_cache(folder, least)


def _use_cache(folder: str | None, least_seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    compilation_cache.reset_cache()


def _compile(run: Run, batch: dict) -> jax.stages.Compiled:
    jax.clear_caches()  # of this process: as if it had just started
    return run.train_step.lower(run.abstract_state(), batch).compile()


# The benchmarks


def bench_step(config: ConfigDict, options: Options) -> dict:
    """The training step, and the net forward on batches of 1 and of the configuration's size."""
    run = synthetic_run(config)
    if options.torch and run.layout.mesh.size > 1:
        raise UserError("--against=torch compares on one device: set --config.mesh.data=1")
    batch = _batch(run)
    first, second = compile_seconds(run, batch)
    compiled = _compile(run, batch)
    tasks = {"step": _stepper(run, compiled, batch)}
    tasks["step"](1)
    memory = _memory(compiled)  # before anything else takes some
    params = jax.device_put(run.fresh_state().params, jax.devices()[0])
    images = {f"forward_{count}": _float_images(config, count) for count in (1, config.batch_size)}
    forward = jax.jit(lambda params, images: run.model.apply({"params": params}, images)[0])
    tasks |= {task: timing.repeated(forward, params, each) for task, each in images.items()}
    peak = timing.matmul_peak(run.model.dtype)
    if options.torch:
        from alexnet_jax import bench_torch

        times, torch = bench_torch.compare(run, params, batch, tasks, images, options.repeats)
    else:
        times, torch = timing.take_turns(tasks, options.repeats), None
    peak = max(peak, timing.matmul_peak(run.model.dtype))

    seconds = statistics.median(times["step"])
    flops = layers.step_flops(run.model, config.data.image_size, config.batch_size)
    result = {
        "images_per_second": config.batch_size / seconds,
        **timing.spread(times["step"], "step_"),
        "compile_seconds": first,
        "second_compile_seconds": second,
        "peak_matmul_flops": peak,
        "model_flops": flops,
        "share_of_peak": flops / seconds / peak / run.layout.mesh.size,
        **memory,
        "forward": {str(len(images[task])): timing.spread(times[task]) for task in images},
    }
    rows = [
        ("images/s", f"{result['images_per_second']:.1f}"),
        ("step", _ms(times["step"])),
        ("first compilation", f"{first:.2f} s"),
        ("second start", f"{second:.2f} s"),
        ("operations", f"{flops / 1e9:.3g} GFLOP"),
        ("matmul peak", f"{peak / 1e9:.0f} GFLOP/s"),
        ("share of peak", f"{result['share_of_peak']:.2f}"),
        ("the step's arrays", f"{result['step_bytes'] / 2**20:.0f} MiB"),
        ("peak memory", f"{result['peak_memory_bytes'] / 2**20:.0f} MiB"),
    ]
    rows += [(f"forward, batch {len(images[task])}", _ms(times[task])) for task in images]
    console.table("step", ("", ""), rows)
    if torch:
        result["torch"] = torch
        bench_torch.show(torch)
    return result


def _float_images(config: ConfigDict, count: int) -> jax.Array:
    """Images as the net reads them, preprocessed; made up."""
    shape = (count, config.data.image_size, config.data.image_size, 3)
    dtype = jnp.result_type(float)
    images = np.random.default_rng(1).normal(size=shape) * 60 * config.data.scale
    return jax.device_put(images.astype(dtype), jax.devices()[0])


def _memory(compiled: jax.stages.Compiled) -> dict:
    """Bytes of the step's arguments, results and temporaries, and the most that was in use."""
    needs = compiled.memory_analysis()
    step_bytes = (
        needs.argument_size_in_bytes
        + needs.output_size_in_bytes
        + needs.temp_size_in_bytes
        - needs.alias_size_in_bytes
    )
    on_device = jax.devices()[0].memory_stats()  # None on a CPU
    return {
        "step_bytes": step_bytes,
        "peak_memory_bytes": on_device["peak_bytes_in_use"] if on_device else _process_peak(),
    }


def _process_peak() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bench_layers(config: ConfigDict, options: Options) -> dict:
    """Each operation of the net alone, on one device with the whole batch; then the whole step."""
    run, repeats = synthetic_run(config), options.repeats
    size, count = config.data.image_size, config.batch_size
    peak = timing.matmul_peak(run.model.dtype)
    flops = layers.layer_flops(run.model, size)
    params = jax.device_put(run.fresh_state().params, jax.devices()[0])
    found = []
    for name, function, weights, maps in layers.operations(run.model, params, size, count):
        times = layers.layer_times(function, weights, maps, repeats, first=not found)
        found.append({"layer": name, "flops": count * flops.get(name, 0), **times})
    arguments = (jax.tree.map(jnp.zeros_like, params), run.tx.init(params), params)
    update = timing.repeated(jax.jit(run.tx.update), *arguments)
    found.append({"layer": "update", "flops": 0, "forward": timing.median(update, repeats)})

    batch = _batch(run)
    seconds = timing.median(_stepper(run, _compile(run, batch), batch), repeats)
    total = sum(layer.get(part, 0) for layer in found for part in layers.PARTS)
    rows = []
    for layer in found:
        cells = [f"{layer['flops'] / 1e9:.3g}" if layer["flops"] else ""]
        for part in layers.PARTS:
            share = layer["flops"] / layer[part] / peak if part in layer else 0
            cells += [f"{1e3 * layer[part]:.2f}" if part in layer else ""]
            cells += [f"{share:.2f}" if share else ""]
        own = sum(layer.get(part, 0) for part in layers.PARTS)
        rows.append((layer["layer"], *cells, f"{100 * own / total:.1f}"))
    header = ("layer", "GFLOP", "out ms", "of peak", "d in ms", "of peak", "d w ms", "of peak", "%")
    console.table(f"layers; matmul peak {peak / 1e9:.0f} GFLOP/s", header, rows)
    console.say(f"sum {1e3 * total:.1f} ms, whole step {1e3 * seconds:.1f} ms")
    return {
        "peak_matmul_flops": peak,
        "layers": found,
        "sum_seconds": total,
        "step_seconds": seconds,
    }


def bench_input(config: ConfigDict, options: Options) -> dict:
    """The training pipeline alone: images cropped, flipped and on the device."""
    dataset = data.open_data(data_spec(config))
    run = _input_run(config, dataset)
    batch_size, cores = config.batch_size, os.cpu_count()
    contenders = {"pipeline": _pipeline(run)}
    if config.data.backend == "tfdata":
        contenders["decoding"] = _bare_decoding(config, dataset, cores)
        if options.torch:
            from alexnet_jax import bench_torch

            contenders["torch"] = bench_torch.loader(config, dataset, cores)
    times = timing.take_turns(contenders, options.repeats, options.seconds)
    result = {
        "images_per_second": batch_size / statistics.median(times["pipeline"]),
        "cores": cores,
        "resize_size": dataset.resize_size,
        "sample_seconds": options.seconds,
        **timing.spread(times["pipeline"], "batch_"),
    }
    rows = [("pipeline", f"{result['images_per_second']:,.0f}", "")]
    if config.data.backend == "device":
        result["transfers_between_steps"] = 0  # else the guard in _pipeline had raised
        rows.append(("host-to-device transfers between steps", "0", ""))
    names = {"decoding": "bare decoding", "torch": f"DataLoader, {cores} workers, Pillow"}
    for name in [name for name in names if name in contenders]:
        result[name] = {
            "images_per_second": batch_size / statistics.median(times[name]),
            **timing.ratios(times[name], times["pipeline"]),
        }
        row = (names[name], f"{result[name]['images_per_second']:,.0f}")
        rows.append((*row, f"{result[name]['ratio']:.2f}"))
    console.table("input", ("", "images/s", "pipeline over it"), rows)
    if "torch" in contenders:
        result["torch"]["pixel_difference"] = difference = bench_torch.pixel_difference(
            config, dataset
        )
        console.say(f"mean difference from its pixels: {difference:.2f} grey levels")
    return result


@dataclasses.dataclass(frozen=True)
class _InputRun:
    """What `batches` reads of a run."""

    config: ConfigDict
    data: data.Data
    layout: object


def _input_run(config: ConfigDict, dataset: data.Data) -> _InputRun:
    """Without the statistics, which would be a pass over the data."""
    layout = make_layout(
        config.mesh.layout,
        data=config.mesh.data,
        model=config.mesh.model,
        towers=make_model(config, dataset.num_classes).towers,
        batch_size=config.batch_size,
    )
    return _InputRun(config, dataset, layout)


def _pipeline(run: Run | _InputRun) -> Callable[[int], None]:
    """A contender: the training batches. With the device backend the host may send nothing."""
    on_device = run.config.data.backend == "device"
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


def _order(config: ConfigDict, dataset: data.Data, count: int) -> np.ndarray:
    """The first `count` examples that training reads."""
    order, _ = epoch_plan(config.seed, 0, dataset.num_train, 0, crop=False, flip=False)
    return np.resize(order, count)


def _bare_decoding(config: ConfigDict, dataset: data.Data, cores: int) -> Callable[[int], None]:
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


def bench_train(config: ConfigDict, options: Options) -> dict:
    """The loop of main.py, whole but for evaluations and checkpoints before its end."""
    steps = options.steps
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.num_train_steps = config.eval_every_steps = config.checkpoint_every_steps = steps
        config.log_every_steps = max(1, min(config.log_every_steps, steps // 4))
    run = assemble(config)
    batch = _batch(run)
    step = _stepper(run, _compile(run, batch), batch)
    pipeline = _pipeline(run)

    def loop():
        with tempfile.TemporaryDirectory() as workdir:
            with contextlib.redirect_stdout(io.StringIO()):
                train(config, workdir)
            result = json.loads((Path(workdir) / "result.json").read_text())
        return config.batch_size / result["images_per_second"]

    times = {"step": [], "input": [], "loop": []}
    for turn in range(-1, min(options.repeats, TRAIN_ROUNDS)):
        took = (
            timing.elapsed(step, steps) / steps,
            timing.elapsed(pipeline, steps) / steps,
            loop(),
        )
        if turn >= 0:  # the first warms up
            for name, seconds in zip(times, took, strict=True):
                times[name].append(seconds)
    slower = [max(pair) for pair in zip(times["step"], times["input"], strict=True)]
    overhead = timing.ratio(times["loop"], slower) - 1
    rows = [(name, _ms(values)) for name, values in times.items()]
    console.table(f"train, {steps} steps", ("", "a step"), rows)
    console.say(f"the loop takes {100 * overhead:+.1f}% over the slower of step and input")
    return {
        "steps": steps,
        "log_every_steps": config.log_every_steps,
        "images_per_second": config.batch_size / statistics.median(times["loop"]),
        **{f"{name}_seconds": statistics.median(values) for name, values in times.items()},
        "overhead": overhead,
    }


def bench_comms(config: ConfigDict, options: Options) -> dict:
    """Each layout's collectives on 2 devices and on all, from its compiled step; nothing runs."""
    from alexnet_jax.collectives import collectives

    total = jax.device_count()
    if total < 2:
        raise UserError("comms needs two devices or more and here is one: try JAX_PLATFORMS=cpu")
    meshes = [("data", total, 1), ("towers", total // 2, 2), ("hybrid", 1, total)]
    if total > 2:
        meshes = [("data", 2, 1), ("towers", 1, 2), ("hybrid", 1, 2), *meshes]
    layouts, rows = [], []
    for layout, across, model in meshes:
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.mesh = dict(layout=layout, data=across, model=model)
        try:
            run = synthetic_run(changed)
        except UserError as error:
            console.say(f"{layout} {across} x {model} left out: {error}")
            continue
        found = collectives(_compile(run, _batch(run)).as_text())
        kinds = {}
        for each in found:
            kind = kinds.setdefault(each.kind, {"count": 0, "bytes_sent": 0})
            kind["count"] += 1
            kind["bytes_sent"] += each.bytes_sent
        sent = sum(each.bytes_sent for each in found)
        mesh = {"layout": layout, "data": across, "model": model}
        layouts.append({**mesh, "bytes_sent": sent, "collectives": kinds})
        text = ", ".join(
            f"{kind['count']} {name} {kind['bytes_sent'] / 1e6:.2f}" for name, kind in kinds.items()
        )
        rows.append((f"{layout} {across} x {model}", f"{sent / 1e6:.2f}", text))
    header = ("layout, data x model", "MB sent by a device", "of which")
    console.table("a training step's collectives", header, rows)
    return {"layouts": layouts}


MODES = {
    "step": bench_step,
    "layers": bench_layers,
    "input": bench_input,
    "train": bench_train,
    "comms": bench_comms,
}


def _ms(times: list[float]) -> str:
    median, least, most = (1e3 * value for value in timing.spread(times).values())
    return f"{median:.2f} ms  ({least:.2f} to {most:.2f})"


def overrides(config: ConfigDict, path: str) -> dict:
    """The fields in which `config` differs from its file."""
    own, given = flatten(load_config(path)), flatten(config)
    return {name: value for name, value in given.items() if value != own.get(name)}


def main(files):
    """Measures, prints, and writes what was asked for."""
    if len(files) != 1:
        raise UserError(f"say what to measure, one of {', '.join(MODES)}")
    mode = choose(files[0], MODES, "benchmark")
    values = flags.FLAGS
    if values.repeats < 1 or values.steps < 4:
        raise UserError("--repeats must be at least 1, and --steps at least 4")
    options = Options(
        repeats=values.repeats,
        steps=values.steps,
        seconds=values.seconds,
        torch=values.against == "torch",
    )
    if options.torch:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is shared
    if mode == "comms" and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", 8)
    path = get_config_filename(values["config"])
    result = {
        "mode": mode,
        "config": path,
        "overrides": overrides(values.config, path),
        "batch_size": values.config.batch_size,
        "image_size": values.config.data.image_size,
        **MODES[mode](values.config, options),
        **metrics.provenance(),
    }
    hardware = result["hardware"]
    kind = hardware["device_kind"]
    result["device"] = hardware["cpu"] if kind == "cpu" else kind
    if values.json:
        metrics.write_json(values.json, result)
    if values.record:
        metrics.append_json(RESULTS / f"{mode}.jsonl", result)


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_enum("against", None, ["torch"], "Measure PyTorch too, in turn (step, input).")
    flags.DEFINE_integer("repeats", 10, "Turns that a median is taken over.")
    flags.DEFINE_integer("steps", 200, "Steps of a loop (train).")
    flags.DEFINE_float("seconds", 20.0, "Of a sample of a pipeline (input).")
    flags.DEFINE_string("json", None, "A file to write the result to.")
    flags.DEFINE_bool("record", False, "Append the result to experiments/results/bench.")
    cli.run(main, takes_files=True)
