"""Times contenders in turn, for the benchmarks.

Contenders run in turn in one process, so that what slows the machine for a while slows all of them.
The ratio of two contenders is the median of the ratios in each turn.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from alexnet_jax.runtime.ahead import Ahead

SAMPLE_SECONDS = 0.2  # the least length of a sample, which repeats shorter calls
CALLS_AHEAD = 16  # calls dispatched ahead, so that small programs are not timed with the waiting


def take_turns(
    contenders: Mapping[str, Callable[[int], None]],
    repeats: int,
    seconds: float | None = None,
    before: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Times one call of each contender in `repeats` samples, which are taken in turn.

    A contender is a function that makes n calls and returns when they have ended. A sample takes
    about `seconds` or more. `before` is called before each sample, and takes no part in it.
    """
    seconds = SAMPLE_SECONDS if seconds is None else seconds
    counts = {}
    for name, run in contenders.items():
        run(1)
        count = 1
        # One call may mostly time a pipeline's start, so the count is raised until it is enough.
        before()
        while (took := elapsed(run, count)) < seconds:
            count = max(count + 1, math.ceil(count * seconds / took))
            before()
        counts[name] = count
    times = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            before()
            times[name].append(elapsed(run, counts[name]) / counts[name])
    return times


def elapsed(run: Callable[[int], None], count: int) -> float:
    """Returns the seconds that `count` calls take."""
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start


def repeated(function: Callable, *args) -> Callable[[int], None]:
    """Returns a contender that calls a compiled function with the same arguments."""

    def run(count):
        ahead = Ahead(CALLS_AHEAD)
        for _ in range(count):
            ahead.add(function(*args))
        ahead.finish()

    return run


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Returns the median over the turns of their time divided by ours."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))


def ratios(theirs: list[float], ours: list[float]) -> dict:
    """Returns `ratio`, with the least and the greatest ratio in a turn."""
    each = [t / o for t, o in zip(theirs, ours, strict=True)]
    return {"ratio": ratio(theirs, ours), "ratio_min": min(each), "ratio_max": max(each)}


def spread(times: list[float], prefix: str = "") -> dict:
    """Returns the median, least and greatest of times in seconds."""
    values = {"": statistics.median(times), "_min": min(times), "_max": max(times)}
    return {f"{prefix}seconds{suffix}": value for suffix, value in values.items()}


def matmul_peak(dtype: str, repeats: int = 5) -> float:
    """Finds the most floating-point operations per second in products of square matrices.

    The sides are doubled from 512 until one product takes 50 ms, and the best sample counts.
    """
    best, side = 0.0, 512
    while True:
        x = jax.random.normal(jax.random.key(0), (side, side), dtype)
        least = min(take_turns({"": repeated(jax.jit(jnp.matmul), x, x)}, repeats)[""])
        best = max(best, 2 * side**3 / least)
        if least > 0.05:
            return best
        side *= 2


def median(contender: Callable[[int], None], repeats: int) -> float:
    """Returns the median seconds of one call of a single contender."""
    return statistics.median(take_turns({"": contender}, repeats)[""])
