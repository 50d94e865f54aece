"""Works ahead of a stream in threads, on the cores that this process may use."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def cores() -> int:
    """Returns how many cores this process may use, which can be fewer than the machine has.

    It is the least of its affinity (taskset, Slurm with task/affinity), of the quota of its control
    group (containers, Kubernetes) and of what Slurm gave the task, and at least 1.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has affinities, and macOS doesn't.
    limits = [len(affinity(0)) if affinity else os.cpu_count() or 1, *_quotas()]
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdecimal():
        limits.append(int(slurm))
    return max(1, min(limits))


def _quotas(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Yields the whole cores that each control group of this process is allowed, rounded up."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        # Version 2 has one tree; in version 1 the controller `cpu` has one of its own.
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        place = top / path.strip("/")
        # In a container the path may be that of the host: then only the top is there.
        for folder in {top, *(each for each in (place, *place.parents) if top in each.parents)}:
            try:
                if controllers:
                    quota = (folder / "cpu.cfs_quota_us").read_text()
                    period = (folder / "cpu.cfs_period_us").read_text()
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if int(quota) > 0:
                    yield -(-int(quota) // int(period))
            except (OSError, ValueError):  # There is no such group, or it has "max", no limit.
                continue


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
