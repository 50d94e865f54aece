"""Contains the project's experiments: sweeps of runs, their records, and pages made of them."""

from alexnet_jax.runtime import process

process.begin_if_run_from(__name__)
