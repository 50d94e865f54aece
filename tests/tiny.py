"""A small real data set and the smallest eight-layer net, for tests that run whole commands."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def command(module: str, *arguments, env=None, **options) -> subprocess.CompletedProcess:
    """Runs `python -m module arguments` from the project's root; output is captured."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        **options,
    )


# Imports once what all commands import, then runs each command line in a fork of its own: nothing
# has touched a device before.
FORKS = """
import json, os, runpy, sys
from alexnet_jax import bench, cli, prepare, train
from experiments import figures, scale, tables

def read_flags(_, *, takes_files=False, required=(), instead_of_config=()):
    cli._parse(sys.argv, takes_files, required, instead_of_config)

lines, read = json.load(sys.stdin), int(sys.argv[2])
for number, (module, *arguments) in enumerate(lines):
    child = os.fork()
    if child == 0:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{sys.argv[1]}/{number}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
        sys.modules.pop(module, None)
        sys.argv[1:] = arguments
        if number >= len(lines) - read:
            cli.run = read_flags
        status = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int | None) else print(end.code) or 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def commands(
    command_lines: Iterable[Sequence], folder: Path, read: int = 0
) -> list[subprocess.CompletedProcess]:
    """Runs `python -m MODULE ARGUMENTS` for each line (module, *arguments), one after the other.

    As `command`, without the seconds that each start takes; `folder`, an empty one, keeps outputs.
    Of the last `read` lines only the flags are read.
    """
    command_lines = [list(map(str, line)) for line in command_lines]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(folder), str(read)],
        cwd=ROOT,
        input=json.dumps(command_lines),
        capture_output=True,
        text=True,
        check=True,
    )
    outputs = [
        [(folder / f"{number}.{name}").read_text() for name in ("out", "err")]
        for number in range(len(command_lines))
    ]
    return [
        subprocess.CompletedProcess(line, int(status), *output)
        for line, status, output in zip(command_lines, done.stdout.split(), outputs, strict=True)
    ]


def lines(workdir: Path, *, split: str | None = None) -> list[dict]:
    """The lines of metrics.jsonl without what differs from one machine's minute to the next."""
    parsed = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in parsed
        if split is None or line["split"] == split
    ]
