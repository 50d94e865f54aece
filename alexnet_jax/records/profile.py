"""Traces some steps of a run with JAX's profiler."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from alexnet_jax import console
from alexnet_jax.errors import UserError


def parse(text: str | None) -> tuple[int, int] | None:
    """Returns the first and the last step of a text FIRST:LAST, counted from 1.

    Raises:
        UserError: the text does not have this form.
    """
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UserError(
            f"--profile={text}: write the first and the last step, e.g. --profile=10:20"
        )
    return int(first), int(last)


def check(steps: tuple[int, int] | None, *, done: int, total: int) -> None:
    """Checks that a run which has made `done` of `total` steps will make all of `steps`.

    Raises:
        UserError: it will not.
    """
    if steps and not done < steps[0] <= steps[1] <= total:
        raise UserError(
            f"--profile={steps[0]}:{steps[1]}: the run makes steps {done + 1} to {total} only"
        )


@contextlib.contextmanager
def tracing(steps: tuple[int, int] | None, folder: Path) -> Iterator[Callable[[int, dict], None]]:
    """Traces from the first to the last of `steps` into `folder`, or nothing without `steps`.

    Yields:
        A function to be called before the first step and after each step, with the number of steps
        started and the state. Where the trace begins or ends, it waits for the state.
    """
    active = False

    def stop() -> None:
        nonlocal active
        active = False
        jax.profiler.stop_trace()
        console.say(
            f"trace of steps {steps[0]} to {steps[1]}: {folder}, for TensorBoard's profiler"
        )

    def begun(step: int, state: dict) -> None:
        nonlocal active
        if steps and step in (steps[0] - 1, steps[1]):
            jax.block_until_ready(state)
            if active:
                stop()
            else:
                active = True
                jax.profiler.start_trace(folder)

    try:
        yield begun
    finally:
        if active:  # The run was stopped before the last step of the trace.
            stop()
