"""A library's errors that have a line of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from alexnet_jax.runtime import failures
from tests import tiny


def too_much_for_a_device():
    jax.block_until_ready(jnp.zeros(2**46, jnp.uint8))


def too_much_for_the_host():
    np.empty(2**62, np.uint8)


@pytest.mark.parametrize(
    ("allocate", "size"),
    [(too_much_for_a_device, "70368.7 GB"), (too_much_for_the_host, "4.00 EiB")],
)
def test_out_of_memory_says_how_much_was_asked_for(allocate, size):
    with pytest.raises((MemoryError, jax.errors.JaxRuntimeError)) as caught:
        allocate()
    assert failures.explain(caught.value).startswith(f"out of memory for {size}: ")


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (
            "Out of memory while trying to allocate 17179869184 bytes.\nBufferAssignment: …",
            "17.2 GB",
        ),
        ("Out of memory while trying to allocate 5.00GiB.", "5.00GiB"),
        ("Failed to allocate request for 64.00GiB (68719476736B) on device ordinal 0", "64.00GiB"),
        ("Attempting to allocate 2.00G. That was not possible.", "2.00G"),
    ],
)
def test_other_devices_word_it_otherwise(words, size):
    error = jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {words}")
    line = failures.explain(error)
    assert line.startswith(f"out of memory for {size}: ")
    assert "\n" not in line


def test_an_error_that_is_nothing_of_these_keeps_its_traceback():
    assert failures.explain(ValueError("x")) is None


@pytest.mark.parametrize(
    ("options", "env", "parts"),
    [
        ([], {"JAX_PLATFORMS": "cuda"}, ["JAX_PLATFORMS=cuda names nothing", "set it to cpu"]),
        (["--config.batch_size=1_000_000_000_000"], {}, ["out of memory", "--config.batch_size"]),
    ],
)
def test_a_command_ends_in_one_line(options, env, parts):
    done = tiny.command(
        "alexnet_jax.bench", "step", "--config=configs/default.py", *options, env=env
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def test_a_plugin_without_its_gpu_is_told_in_one_line(tmp_path):
    """As jax[cuda12] on a machine without a driver: JAX would print a traceback for each start."""
    plugin = tmp_path / "jax_plugins" / "xla_broken"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(
        "def initialize():\n    raise RuntimeError('cuInit(0) failed: error 303; no name for it')\n"
    )
    env = {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": ""}
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    done = tiny.command("alexnet_jax.classify", tmp_path / "black.png", env=env)
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "xla_broken" in line]
    assert lines == [
        "warning: JAX computes without xla_broken, which can't start here: cuInit(0) failed: error "
        "303. On a machine with a GPU check its driver"
    ]
    assert "Traceback" not in done.stderr
