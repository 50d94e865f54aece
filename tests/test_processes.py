"""Two real processes of four fake devices each, over loopback, train as one with eight."""

import os
import socket
import subprocess
import sys

import pytest

from alexnet_jax.config import load_config, override
from alexnet_jax.train import train
from tests import tiny

STEPS = 6


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return tiny.make_config(folder / "tiny.py", tiny.make_folder(folder / "photographs"))


def command(config_file, workdir, *arguments):
    return [
        *(sys.executable, "-m", "alexnet_jax.main"),
        *(f"--config={config_file}", f"--workdir={workdir}", f"--config.num_train_steps={STEPS}"),
        "--config.mesh.data=-1",
        *arguments,
    ]


def start(devices, *arguments):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {tiny.UNOPTIMISED}",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        arguments,
        cwd=tiny.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_two(config_file, workdir, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whole = command(config_file, workdir, *arguments)
    flags = (f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2")
    processes = [start(4, *whole, *flags, f"--process_id={rank}") for rank in (0, 1)]
    try:
        return processes, [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def alone(config_file, tmp_path_factory):
    """The same run in one process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    process = start(8, *command(config_file, workdir))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return workdir


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config.data.backend=tfdata",),
        ("--config.mesh.layout=towers", "--config.mesh.model=2"),
    ],
)
def test_two_processes_train_as_one(config_file, alone, tmp_path, capsys, arguments):
    processes, outputs = run_two(config_file, tmp_path / "run", *arguments)
    assert [process.returncode for process in processes] == [0, 0], outputs
    lines, expected = tiny.lines(tmp_path / "run"), tiny.lines(alone)
    keys = [(line["step"], line["split"]) for line in lines]
    assert keys == [(line["step"], line["split"]) for line in expected]  # written once
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert "work directory" in outputs[0][0]
    assert "work directory" not in outputs[1][0]

    # One process goes on from the checkpoint of the two.
    longer = override(load_config(config_file), {"num_train_steps": STEPS + 1})
    assert train(longer, tmp_path / "run") == 0
    assert f"goes on from step {STEPS}" in capsys.readouterr().out
