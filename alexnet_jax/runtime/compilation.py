"""Compiles the steps, and decides where it does which of them the compilation cache keeps."""

from collections.abc import Callable

import jax

from alexnet_jax.runtime import jax_versions


class Program:
    """A function compiled as by `jax.jit`, kept in the compilation cache if XLA can write it there.

    It is looked at when it is first called; the programs that it becomes for other shapes are
    taken to be like the first.
    """

    def __init__(self, function: Callable, **options):
        """Takes what `jax.jit` takes; nothing is traced yet."""
        self._jitted = jax.jit(function, **options)
        self._cached: bool | None = None

    def __call__(self, *arguments):
        """Runs the program, and compiles it where it hasn't been for these shapes."""
        if self._cached is None:
            self._cached = jax_versions.can_be_cached(self.lower(*arguments))
        if self._cached:
            return self._jitted(*arguments)
        with jax_versions.without_cache():
            return self._jitted(*arguments)

    def lower(self, *arguments) -> jax.stages.Lowered:
        """Traces and lowers the program for such arguments, which may be shapes alone."""
        return self._jitted.lower(*arguments)

    def compile(self, *arguments) -> jax.stages.Compiled:
        """Compiles the program for such arguments, without running it."""
        lowered = self.lower(*arguments)
        if jax_versions.can_be_cached(lowered):
            return lowered.compile()
        with jax_versions.without_cache():
            return lowered.compile()
