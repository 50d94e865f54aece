"""Contains what several benchmarks share: options, a run on made-up images, and tables."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from alexnet_jax import data
from alexnet_jax.assemble import Run, assemble
from alexnet_jax.config import Config
from alexnet_jax.data.decoded import Squares
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError
from alexnet_jax.runtime.ahead import Ahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Holds the options of the command line beside the configuration.

    Attributes:
        repeats: the number of turns over which a median is taken.
        steps: the number of steps of a training loop.
        seconds: the length of a sample of a pipeline, which should be long compared with its start
            and with the batches that it reads ahead.
        torch: whether to measure PyTorch as well.
        cold: whether the pages of a mapped copy are dropped before each sample.
        target: the card to compile for, by the name of its file.
        devices: the number of such cards.
        hlo: the file for the optimised program, if it is to be written.
    """

    repeats: int = 10
    steps: int = 200
    seconds: float = 20.0
    torch: bool = False
    cold: bool = False
    target: str = "h100"
    devices: int = 1
    hlo: str | None = None


def require_torch() -> None:
    """Imports PyTorch, which only `--against=torch` needs.

    Raises:
        UserError: It is not installed, or cannot be imported.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(f"--against=torch needs PyTorch ({error}): pip install torch") from None


@dataclasses.dataclass(frozen=True)
class Table:
    """Holds a result as a table of texts, of which the first column has names.

    `note` is a line below the table, or empty.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def synthetic_run(
    config: Config,
    *,
    images: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """Assembles the configuration's run on one batch of made-up images.

    Args:
        config: the configuration; only the number of classes of its data set is used.
        images: the number of images to make, which may be less than a batch if the program is only
            compiled. None makes a whole batch.
        devices: the devices of the mesh; None takes all that are available.
    """
    spec = dataclasses.replace(config.data, name="synthetic", backend="device", train_split="train")
    size = spec.resize_size or round(spec.image_size * 256 / 224)
    classes, count = _num_classes(config), images or config.batch_size
    rng = np.random.default_rng(0)
    squares = Squares(
        name="synthetic",
        split="train",
        fingerprint="synthetic",
        stamp="synthetic",
        class_names=tuple(map(str, range(classes))),
        squares=rng.integers(0, 256, (count, size, size, 3), np.uint8),
        labels=rng.integers(0, classes, count, np.int32),
        mask=np.ones(count, np.float32),
        bad={},
    )
    dataset = data.open_squares(spec, squares, num_train=config.batch_size)
    return assemble(config, dataset, devices=devices)


def _num_classes(config: Config) -> int:
    if config.model.num_classes is not None:
        return config.model.num_classes
    spec = config.data
    try:
        source = open_source(spec.name, spec.data_dir, spec.train_split, download=False)
        return len(source.class_names)
    except UserError:
        return 1000


def batches(run: Run, num_steps: int | None = None) -> Iterator[dict[str, jax.Array]]:
    """Yields the run's first training batches, as its loop reads them; None: without end."""
    return data.train_batches(
        run.data,
        seed=run.config.seed,
        batch_size=run.config.batch_size,
        num_steps=num_steps,
        shardings=run.layout.batch_shardings(),
    )


def first_batch(run: Run) -> dict[str, jax.Array]:
    """Reads the run's first training batch."""
    return next(batches(run))


def compile_step(run: Run, batch: dict) -> jax.stages.Compiled:
    """Compiles the training step as a new process would."""
    jax.clear_caches()
    return run.train_step.compile(run.abstract_state(), batch)


def step_bytes(compiled: jax.stages.Compiled) -> int:
    """Adds up the bytes on one device of the step's arguments, results and temporaries."""
    needs = compiled.memory_analysis()
    return (
        needs.argument_size_in_bytes
        + needs.output_size_in_bytes
        + needs.temp_size_in_bytes
        - needs.alias_size_in_bytes
    )


def stepper(run: Run, compiled: Callable, batch: dict) -> Callable[[int], None]:
    """Returns a contender that makes training steps with the compiled step on the same batch."""
    state = run.fresh_state()

    def steps(count):
        nonlocal state
        ahead = Ahead()
        for _ in range(count):
            state, sums = compiled(state, batch)
            ahead.add(sums)
        jax.block_until_ready(state)

    return steps


def milliseconds(result: dict, prefix: str = "") -> str:
    """Returns the median, least and greatest of `timing.spread` as text."""
    names = (f"{prefix}seconds{suffix}" for suffix in ("", "_min", "_max"))
    median, least, most = (1e3 * result[name] for name in names)
    return f"{median:.2f} ms  ({least:.2f} to {most:.2f})"
