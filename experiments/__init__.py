"""The project's experiments: its sweeps of runs, their records, and the pages made of them."""

from alexnet_jax.runtime import process

process.begin_if_run_from(__name__)
