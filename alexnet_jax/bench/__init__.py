"""How fast: the step, its layers, the input, the loop, and what the devices say to each other.

`python -m alexnet_jax.bench MODE` has a module for each mode: its `measure(config, options)`
returns what goes into a record, and its `tables(result)` lays a record out for reading. Nothing
else formats or prints a measurement.
"""

from alexnet_jax.bench.common import batches, synthetic_run

__all__ = ["batches", "synthetic_run"]
