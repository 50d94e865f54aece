"""Eight fake CPU devices for every test, and caches that the tests of one session share."""

import importlib.util
import os
import tempfile

import pytest

_caches = tempfile.TemporaryDirectory(prefix="alexnet_jax-tests-")

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Most of the suite's time would be compilation, much of it of the same programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{_caches.name}/xla")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["ALEXNET_JAX_CACHE"] = f"{_caches.name}/data"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run of the tiny net on four photographs: its work directory, data and file."""
    from alexnet_jax.config import load_config
    from alexnet_jax.train import train
    from tests import tiny

    folder = tmp_path_factory.mktemp("trained")
    images = tiny.make_folder(folder / "photographs")
    config_file = tiny.make_config(folder / "tiny.py", images)
    assert train(load_config(config_file), folder / "run") == 0
    return tiny.Trained(folder / "run", images, config_file)


@pytest.fixture
def small(monkeypatch):
    """Files of nets at 99 pixels instead of 224 and 227."""
    from alexnet_jax.weights import caffe, torchvision

    monkeypatch.setattr(torchvision, "POOLED", 2)
    for module in (torchvision, caffe):
        monkeypatch.setattr(module, "IMAGE_SIZE", 99)


MISSING = [
    name for name in ("tensorflow", "tensorflow_datasets") if importlib.util.find_spec(name) is None
]


def skipping(item):
    """Where TensorFlow or TFDS isn't installed, skips a test that ends because of that.

    What must work without them has tests of its own (test_without_tensorflow.py).
    """
    try:
        return (yield)
    except Exception as error:
        names = str(error).lower().replace("-", "_")
        if MISSING and any(name in names for name in ("tensorflow", "tfds")):
            pytest.skip(f"needs {' and '.join(MISSING)}, not installed here")
        raise


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(skipping)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(skipping)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))
