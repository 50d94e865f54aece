"""How far the host runs ahead of its devices: every loop that dispatches programs bounds it here.

JAX returns from a compiled function before its program has run, so a loop that never waits holds
the batches of all its steps at once. On several devices of one CPU process it may even stop for
good: XLA's client takes 32 programs for each device, and where more are dispatched the devices
begin to wait for each other's collectives in different orders.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import jax

PROGRAMS_AHEAD = 8  # the net's on one batch, while the host prepares the few of the next

Result = TypeVar("Result")


class Ahead(Generic[Result]):
    """The results of programs that may still be running, the oldest first, `limit` at most."""

    def __init__(self, limit: int = PROGRAMS_AHEAD):
        self._limit = limit
        self._running: collections.deque[Result] = collections.deque()

    def add(self, result: Result) -> list[Result]:
        """Notes what a program has just been dispatched for.

        Args:
            result: a tree with arrays that are not donated to a later program.

        Returns:
            The results that were waited for so that `limit` remain, the oldest first.
        """
        self._running.append(result)
        return self._wait(self._limit)

    def finish(self) -> list[Result]:
        """Waits for all that is left, and returns it."""
        return self._wait(0)

    def each(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yields `results`, for each of which its iterator dispatches a program."""
        for result in results:
            self.add(result)
            yield result

    def _wait(self, limit: int) -> list[Result]:
        done = []
        while len(self._running) > limit:
            done.append(jax.block_until_ready(self._running.popleft()))
        return done
