"""Limits how far the host runs ahead of its devices, in every loop that dispatches programs.

JAX returns from a compiled function before its program has run, so a loop that never waits holds
the batches of all its steps in memory at once. On several devices of one CPU process it may even
hang: XLA's client accepts 32 programs per device, and if more are dispatched the devices wait for
each other's collectives in different orders.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import jax

PROGRAMS_AHEAD = 8  # enough for one batch of an evaluation, while the host prepares the next

Result = TypeVar("Result")


class Ahead(Generic[Result]):
    """Holds the results of at most `limit` programs that may still be running, the oldest first."""

    def __init__(self, limit: int = PROGRAMS_AHEAD):
        self._limit = limit
        self._running: collections.deque[Result] = collections.deque()

    def add(self, result: Result) -> list[Result]:
        """Adds the result of a program that has just been dispatched.

        Args:
            result: a tree of arrays that are not donated to a later program.

        Returns:
            The results that this call waited for, so that `limit` remain, the oldest first.
        """
        self._running.append(result)
        return self._wait(self._limit)

    def finish(self) -> list[Result]:
        """Waits for all remaining results, and returns them."""
        return self._wait(0)

    def each(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yields `results`, whose iterator dispatches a program for each of them."""
        for result in results:
            self.add(result)
            yield result

    def _wait(self, limit: int) -> list[Result]:
        done = []
        while len(self._running) > limit:
            done.append(jax.block_until_ready(self._running.popleft()))
        return done
