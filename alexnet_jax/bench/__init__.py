"""Measures the speed of the step, its layers, the input and the loop, and counts collectives.

`python -m alexnet_jax.bench MODE` has a module for each mode. Its `measure(config, options)`
returns the result as a record, and its `tables(result)` makes tables of a record. No other function
formats or prints a measurement.
"""

from alexnet_jax.bench.common import batches, synthetic_run

__all__ = ["batches", "synthetic_run"]
