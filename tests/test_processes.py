"""Two real processes of four fake devices each, over loopback, train as one device does."""

import os
import socket
import subprocess
import sys

import pytest

from alexnet_jax.config import load_config, override
from alexnet_jax.train import train
from tests import tiny

STEPS = 6


def command(config_file, workdir, *arguments):
    return [
        *(sys.executable, "-m", "alexnet_jax.main"),
        *(f"--config={config_file}", f"--workdir={workdir}", f"--config.num_train_steps={STEPS}"),
        "--config.mesh.data=-1",
        *arguments,
    ]


def start(*arguments):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {tiny.UNOPTIMISED_FLAG}",
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
    processes = [start(*whole, *flags, f"--process_id={rank}") for rank in (0, 1)]
    try:
        return processes, [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_train_as_one(trained, tmp_path, capsys):
    """The other run, which is longer, has one device."""
    config_file = trained.config_file
    towers = ("--config.mesh.layout=towers", "--config.mesh.model=2")
    processes, outputs = run_two(
        config_file, tmp_path / "run", "--config.data.backend=tfdata", *towers
    )
    assert [process.returncode for process in processes] == [0, 0], outputs
    lines = tiny.lines(tmp_path / "run")
    keys = [(line["step"], line["split"]) for line in lines]
    assert keys == [*((step, "train") for step in (2, 4)), (5, "test"), (6, "train"), (6, "test")]
    expected = {(line["step"], line["split"]): line for line in tiny.lines(trained.workdir)}
    for key, line in zip(keys[:-1], lines, strict=False):
        assert line["loss"] == pytest.approx(expected[key]["loss"], rel=1e-4)
    assert "work directory" in outputs[0][0]
    assert "work directory" not in outputs[1][0]

    # One process goes on from the checkpoint of the two.
    longer = override(load_config(config_file), {"num_train_steps": STEPS + 1})
    assert train(longer, tmp_path / "run") == 0
    assert f"goes on from step {STEPS}" in capsys.readouterr().out
