"""Processes that see each other end: three real ones, without JAX, of which one goes."""

import os
import signal
import subprocess
import sys

import pytest

from tests import tiny

# Process sys.argv[1] ends by the expression sys.argv[2], and the others wait for whatever comes.
# Pipes stand for the key-value store. Prints what the processes wrote, and their statuses by rank.
PROGRAM = """
import os, signal, socket, sys, time, types
from alexnet_jax.runtime import jax_versions
from alexnet_jax.distributed import peers

peers.STAY_SECONDS = peers.FAILED_SECONDS = peers.ALIVE_SECONDS = 0.2
peers.SILENT_SECONDS = 3
store = {rank: os.pipe() for rank in (1, 2)}  # one each: two readers would share the bytes of one


def process(rank):
    client = types.SimpleNamespace(
        key_value_set=lambda key, value: [
            os.write(written, value.encode()) for _, written in store.values()
        ],
        blocking_key_value_get=lambda key, timeout: os.read(store[rank][0], 1000).decode(),
    )
    state = types.SimpleNamespace(
        client=client, process_id=rank, num_processes=3, coordinator_address="127.0.0.1:1"
    )
    jax_versions.distributed_state = lambda: state
    peers.connect()
    while rank == 0 and len(peers._links) < 2:
        time.sleep(0.01)
    if rank == int(sys.argv[1]):
        time.sleep(0.1)
        eval(sys.argv[2])
    time.sleep(10)
    sys.exit(3)


children = []
for rank in range(3):
    child = os.fork()
    if child == 0:
        process(rank)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
LOST = "error: a process of this run was lost"
FAILED = "error: a process of this run ended with an error; its own line says why"


@pytest.mark.parametrize(
    ("how", "status", "line", "others"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, LOST, os.EX_TEMPFAIL),
        ("peers.fail(1)", 1, FAILED, 1),
        ("setattr(peers, 'announce', lambda word: None)", os.EX_TEMPFAIL, LOST, os.EX_TEMPFAIL),
    ],
)
@pytest.mark.parametrize("rank", [0, 2])
def test_all_end_with_one(how, status, line, others, rank):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(rank), how],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [others] * 3
    expected[rank] = status
    assert done.stdout == f"{expected}\n", done.stderr
    assert all(text.startswith(line) for text in done.stderr.splitlines())
