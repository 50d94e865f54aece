"""A small real data set and the smallest eight-layer net, for tests that run whole commands."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))  # what users read
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "gravel.png", "rocket.jpg")
SIDE = 36

CONFIG = """
from alexnet_jax.configs import base

def get_config():
    config = base.get_config()
    config.batch_size = 16
    config.num_epochs = 3
    config.log_every_steps = 2
    config.data.name = "folder:{folder}"
    config.data.eval_split = "test"
    config.data.image_size = 32
    config.data.resize_size = 36
    config.data.backend = "device"
    config.data.scale = 1 / 64
    config.model.kernel_init = "he"
    config.model.width = 1 / 16
    config.model.hidden_units = 32
    config.model.conv1_kernel = 5
    config.model.conv1_stride = 2
    config.model.conv1_padding = (2, 2)
    config.model.pool_window = 2
    config.model.pool_overhang = True
    config.mesh.data = 1
    return config
"""


@dataclass(frozen=True)
class Trained:
    """A finished run; the folder of images with its splits; its configuration's file."""

    workdir: Path
    images: Path
    config_file: Path


def make_folder(path: Path, train: int = 20, test: int = 9) -> Path:
    """PATH/SPLIT/CLASS/*.png: patches of four photographs, for testing of their right sides."""
    for name in PHOTOGRAPHS:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            photograph = image.convert("RGB").resize((400, 400))
        for split, count, left in (("train", train, 0), ("test", test, 300)):
            folder = path / split / name.partition(".")[0]
            folder.mkdir(parents=True)
            for i in range(count):
                x, y = left + (i % 6) * 9, (i * 53) % 360
                photograph.crop((x, y, x + SIDE, y + SIDE)).save(folder / f"{i:02d}.png")
    return path


def make_config(path: Path, folder: Path) -> Path:
    """Writes the configuration of a run on `folder` that takes a second."""
    path.write_text(CONFIG.format(folder=folder))
    return path


# For what does not depend on the machine code: half of a compilation's time goes into optimising
# it. Runs that must repeat to the last bit are compiled as users compile them.
UNOPTIMISED = "--xla_backend_optimization_level=0"
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@contextlib.contextmanager
def unoptimised():
    """The commands that start meanwhile compile without optimisation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}")
        yield


def he_weights(shapes):
    """He's kernels by NumPy, and biases of 0.1: JAX's drawing takes seconds to compile."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        std = (2 / np.prod(leaf.shape[:-1])) ** 0.5
        bias = path[-1].key == "bias"
        value = np.full(leaf.shape, 0.1) if bias else rng.normal(0, std, leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def command(module: str, *arguments, env=None) -> subprocess.CompletedProcess:
    """Runs `python -m module arguments` from the project's root; output is captured.

    With variables of its own, `env`, it is a process that starts anew, else a fork of `_forks`.
    """
    line = [module, *map(str, arguments)]
    if env:
        return subprocess.run(
            [sys.executable, "-m", *line],
            cwd=ROOT,
            env=os.environ | env,
            capture_output=True,
            text=True,
            check=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        return _forked(line, Path(folder, "out"), Path(folder, "err"))


# Imports once what all commands import, then runs each command line that it reads in a fork of its
# own: nothing has touched a device before.
FORKS = """
import json, os, runpy, sys
from alexnet_jax import bench, cli, prepare, train
from experiments import figures, scale, tables

def read_flags(_, *, takes_files=False, required=(), instead_of_config=()):
    cli._parse(sys.argv, takes_files, required, instead_of_config)

for request in sys.stdin:
    (module, *arguments), out, err, read, environment = json.loads(request)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, out), (2, err)):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), descriptor)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        sys.modules.pop(module, None)
        sys.argv[1:] = arguments
        if read:
            cli.run = read_flags
        status = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            known = isinstance(end.code, int | None)
            status = end.code if known else print(end.code, file=sys.stderr) or 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _forks() -> subprocess.Popen:
    """The process that forks; it ends with this one, which closes its standard input."""
    return subprocess.Popen(
        [sys.executable, "-c", FORKS],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def _forked(line: list[str], out: Path, err: Path, *, read: bool = False):
    """Runs a command line in a fork; with `read` only its flags are read."""
    forks = _forks()
    try:
        request = json.dumps([line, str(out), str(err), read, dict(os.environ)])
        print(request, file=forks.stdin, flush=True)
        status = int(forks.stdout.readline())
    except BaseException:  # Of a test that ran out of time, say: the next command starts afresh.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(forks.pid, signal.SIGKILL)
        _forks.cache_clear()
        raise
    return subprocess.CompletedProcess(line, status, out.read_text(), err.read_text())


def commands(
    command_lines: Iterable[Sequence], folder: Path, read: int = 0
) -> list[subprocess.CompletedProcess]:
    """Runs `python -m MODULE ARGUMENTS` for each line (module, *arguments), one after the other.

    As `command`; `folder`, an empty one, keeps outputs. Of the last `read` lines only the flags are
    read.
    """
    lines = [list(map(str, line)) for line in command_lines]
    return [
        _forked(line, folder / f"{n}.out", folder / f"{n}.err", read=n >= len(lines) - read)
        for n, line in enumerate(lines)
    ]


def lines(workdir: Path, *, split: str | None = None) -> list[dict]:
    """The lines of metrics.jsonl without what differs from one machine's minute to the next."""
    parsed = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in parsed
        if split is None or line["split"] == split
    ]
