"""Compiles the steps, and decides which of them the compilation cache keeps."""

from collections.abc import Callable

import jax

from alexnet_jax.runtime import jax_versions


class Program:
    """Compiles a function as `jax.jit` does, and caches it if XLA can write it into the cache.

    Whether it can is decided at the first call, and applies to calls with other shapes as well.
    """

    def __init__(self, function: Callable, **options):
        """Takes the arguments of `jax.jit`, and traces nothing yet."""
        self._jitted = jax.jit(function, **options)
        self._cached: bool | None = None

    def __call__(self, *arguments):
        """Runs the program, and compiles it first if these shapes are new."""
        if self._cached is None:
            self._cached = jax_versions.can_be_cached(self.lower(*arguments))
        if self._cached:
            return self._jitted(*arguments)
        with jax_versions.without_cache():
            return self._jitted(*arguments)

    def lower(self, *arguments) -> jax.stages.Lowered:
        """Traces and lowers the program for arguments like these, which may be shapes."""
        return self._jitted.lower(*arguments)

    def compile(self, *arguments) -> jax.stages.Compiled:
        """Compiles the program for arguments like these, without running it."""
        lowered = self.lower(*arguments)
        if jax_versions.can_be_cached(lowered):
            return lowered.compile()
        with jax_versions.without_cache():
            return lowered.compile()
