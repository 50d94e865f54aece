"""What several processes agree on, and how they end: see test_processes.py for what they train."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags

from alexnet_jax import distributed
from alexnet_jax.errors import UserError
from alexnet_jax.records import lock, restore
from tests import tiny

XLA_FLAGS = f"--xla_force_host_platform_device_count=4 {tiny.UNOPTIMISED}"
SECONDS = 300  # a pair needs some thirty on two free cores

# Runs the command, and writes which examples of which split it read; the second process of the two
# fails at its read number FAIL_AT.
WATCHED = """
import atexit, json, os, runpy, sys
from alexnet_jax.data import squares
from alexnet_jax.errors import UserError

read, reads, rank = squares.read, [], sys.argv.pop()

def watched(source, example, *rest):
    reads.append((source.split, example))
    if rank == "1" and len(reads) == int(os.environ.get("FAIL_AT", 0)):
        raise UserError("a disk is gone")
    return read(source, example, *rest)

squares.read = watched
path = os.path.join(os.environ["READS"], rank)
atexit.register(lambda: open(path, "w").write(json.dumps(reads)))
runpy.run_module("alexnet_jax.main", run_name="__main__")
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return tiny.make_config(folder / "tiny.py", tiny.make_folder(folder / "photographs"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_pair(config_file, workdir, *arguments, second=(), watch=None):
    """Two processes of four devices; the second has the arguments `second` besides.

    `watch`: the environment of WATCHED, to run that.
    """
    port = free_port()

    def start(rank):
        flags = [
            *(f"--config={config_file}", f"--workdir={workdir}", "--config.mesh.data=-1"),
            *(f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"),
            *(f"--process_id={rank}", *arguments, *(second if rank else ())),
        ]
        program = (
            ["-c", WATCHED, *flags, str(rank)] if watch else ["-m", "alexnet_jax.main", *flags]
        )
        env = os.environ | {"XLA_FLAGS": XLA_FLAGS, "PYTHONPATH": str(tiny.ROOT)} | (watch or {})
        return subprocess.Popen(
            [sys.executable, *program],
            cwd=tiny.ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return [start(rank) for rank in (0, 1)]


def ended(processes) -> list[str]:
    """What each wrote; none is left running."""
    try:
        return [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_each_process_reads_its_share(config_file, tmp_path):
    """36 test images in batches of 16: rows 0 to 7 are the first process', 8 to 15 the second's."""
    processes = start_pair(
        config_file,
        tmp_path / "run",
        "--config.data.backend=tfdata",
        "--config.num_train_steps=5",
        watch={"READS": str(tmp_path)},
    )
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    for rank in (0, 1):
        read = json.loads((tmp_path / str(rank)).read_text())
        tested = sorted(example for split, example in read if split == "test")
        assert tested == [example for example in range(36) if example % 16 // 8 == rank]
    assert len(list((tmp_path / "run").glob("events.out.tfevents*"))) == 1


@pytest.mark.slow
def test_bad_images_are_counted_over_all(config_file, tmp_path):
    """One unreadable test image in the share of each: neither process alone meets both."""
    folder = tiny.make_folder(tmp_path / "photographs")
    names = sorted(folder.glob("test/*/*.png"))
    for index in (1, 9):
        names[index].write_bytes(b"no image")
    config = tiny.make_config(tmp_path / "tiny.py", folder)
    arguments = "--config.data.backend=tfdata", "--config.data.bad_images=skip"
    processes = start_pair(config, tmp_path / "run", *arguments, "--config.num_train_steps=2")
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["final"]["count"] == 34
    assert result["bad_images"]["test"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "number"), [(1, signal.SIGTERM), (0, signal.SIGKILL), (1, signal.SIGKILL)]
)
def test_a_signal_to_one_process_stops_all(config_file, tmp_path, rank, number):
    workdir = tmp_path / "run"
    processes = start_pair(config_file, workdir, "--config.num_epochs=100000")
    records, deadline = workdir / "metrics.jsonl", time.monotonic() + SECONDS
    while not (records.exists() and records.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[rank].send_signal(number)
    outputs = ended(processes)
    if number == signal.SIGKILL:
        assert processes[1 - rank].returncode != 0
        errors = [line for line in outputs[1 - rank].splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert "the same command goes on from the last checkpoint" in errors[0]
        assert "Traceback" not in outputs[1 - rank]
        return
    assert [process.returncode for process in processes] == [75, 75], outputs
    step = restore.steps(workdir)[-1]
    assert step % 2 == 0  # they agree at logged steps
    assert f"at step {step} of 500000" in outputs[0]


@pytest.mark.slow
def test_a_lock_that_the_first_process_meets_ends_all(config_file, tmp_path):
    workdir = tmp_path / "run"
    with lock.acquire(workdir):
        processes = start_pair(config_file, workdir)
        outputs = ended(processes)
    assert [process.returncode for process in processes] == [1, 1], outputs
    assert f"error: another run is using {workdir}: process {os.getpid()}" in outputs[0]
    assert "error: process 0 could not start; its own line says why" in outputs[1]
    assert "Traceback" not in "".join(outputs)


@pytest.mark.slow
def test_processes_that_were_started_for_different_runs(config_file, tmp_path):
    processes = start_pair(config_file, tmp_path / "run", second=["--config.batch_size=8"])
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [1, 1], outputs
    assert "error: process 1 could not start; its own line says why" in outputs[0]
    assert "error: process 1 has another configuration or data set than process 0" in outputs[1]
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_process_that_fails_later_ends_all(config_file, tmp_path):
    processes = start_pair(
        config_file,
        tmp_path / "run",
        "--config.data.backend=tfdata",
        "--config.num_epochs=100000",
        watch={"READS": str(tmp_path), "FAIL_AT": "250"},
    )
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [1, 1], outputs
    assert "error: a disk is gone" in outputs[1]
    assert "error: a process of this run ended with an error; its own line says why" in outputs[0]
    assert "Traceback" not in "".join(outputs)


def start_with(*arguments):
    values = flags.FlagValues()
    distributed.define_flags(values)
    values(["program", *arguments])
    distributed.start(values)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--num_processes=2"], "--coordinator_address and --process_id missing"),
        (["--coordinator_address=h:1", "--num_processes=2", "--process_id=2"], "--process_id=2: "),
        (["--coordinator_address=h", "--num_processes=2", "--process_id=0"], "write HOST:PORT"),
        (["--coordinator_address=h:x", "--num_processes=2", "--process_id=0"], "write HOST:PORT"),
        (["--distributed", "--process_id=0"], "either --distributed or"),
    ],
)
def test_mistakes_in_the_flags(arguments, line):
    with pytest.raises(UserError, match=line):
        start_with(*arguments)


def test_no_cluster():
    """In a program of its own, as JAX must not have been used before."""
    done = tiny.command("alexnet_jax.main", "--config=configs/default.py", "--distributed")
    assert done.returncode == 1
    assert "finds no launcher here" in done.stderr


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        address = f"--coordinator_address=127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=r"cannot listen there \(Address already in use\)"):
            start_with(address, "--num_processes=2", "--process_id=0")


def test_a_coordinator_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(distributed, "START_SECONDS", 0.1)
    rest = "--num_processes=2", "--process_id=1"
    with pytest.raises(UserError, match=r"process 0 cannot be reached there \(Connection refused"):
        start_with(f"--coordinator_address=127.0.0.1:{free_port()}", *rest)
    with pytest.raises(UserError, match=r"nowhere\.invalid:80: process 0 cannot be reached"):
        start_with("--coordinator_address=nowhere.invalid:80", *rest)


def test_processes_that_never_come():
    program = (
        "from alexnet_jax import distributed; distributed.START_SECONDS = 1; "
        f"distributed._initialize('127.0.0.1:{free_port()}', 2, 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: not all processes of this run have started within 1 s")
    assert done.stderr.count("\n") == 1


def test_a_coordinator_that_comes_late(monkeypatch):
    port, opened = free_port(), []

    def sleep(_):
        opened.append(socket.create_server(("127.0.0.1", port)))

    monkeypatch.setattr(distributed.time, "sleep", sleep)
    distributed._check_explicit(f"127.0.0.1:{port}", 2, 1)
    assert len(opened) == 1
    opened[0].close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_slow_process_is_waited_for(monkeypatch, fails):
    """Gloo would give up after 30 s: before it is used, all meet at a barrier with a long limit."""
    calls = []
    client = SimpleNamespace(wait_at_barrier=lambda *barrier: calls.append(barrier))
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        distributed.jax_versions, "distributed_state", lambda: SimpleNamespace(client=client)
    )

    def gather(failed):
        calls.append("gather")
        return np.array([failed, [False]])

    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)
    for _ in range(2):
        ends = pytest.raises(UserError, match="a disk is gone") if fails else nullcontext()
        with ends, distributed.together():
            if fails:
                raise UserError("a disk is gone")
    (first, limit), second = calls[0], calls[2][0]
    assert calls[1::2] == ["gather", "gather"]
    assert first != second  # a barrier can be used once
    assert limit >= 24 * 3600 * 1000
