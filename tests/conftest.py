"""Eight fake CPU devices for every test, and caches that the tests of one session share."""

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


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))
