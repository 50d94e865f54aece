"""Works ahead of a stream in threads, on the cores that this process may use."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from alexnet_jax.data import control_groups


def cores() -> int:
    """Returns how many cores this process may use, which can be fewer than the machine has.

    It is the least of its affinity (taskset, Slurm with task/affinity), of the quota of its control
    group (containers, Kubernetes) and of what Slurm gave the task, and at least 1.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has affinities, and macOS doesn't.
    limits = [len(affinity(0)) if affinity else os.cpu_count() or 1, *control_groups.cores()]
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdecimal():
        limits.append(int(slurm))
    return max(1, min(limits))


def in_order(
    function: Callable[[Any], Any], items: Iterable, *, num_threads: int | None = None
) -> Iterator:
    """Yields function(item) for each item in order, computed by threads that run a little ahead.

    When the stream ends, fails or is closed, no thread goes on: what has not begun never does, and
    what has is waited for.

    Args:
        function: called with one item, in any of the threads.
        items: read as far ahead as the threads go; it may be endless.
        num_threads: one for each core by default.
    """
    num_threads = num_threads or cores()
    pool = ThreadPoolExecutor(num_threads)
    ahead = collections.deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > num_threads + 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
