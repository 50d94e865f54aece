"""Offers the one interface to data: `open_data`, then batches and the statistics."""

from alexnet_jax.data.batches import eval_batches, train_batches
from alexnet_jax.data.dataset import (
    Data,
    checked,
    open_data,
    open_for_evaluation,
    open_split,
    open_squares,
)
from alexnet_jax.data.opening import Opened
from alexnet_jax.data.plan import View, views
from alexnet_jax.data.sources import Progress
from alexnet_jax.data.spec import DataSpec
from alexnet_jax.data.stats import Statistics, statistics

__all__ = [
    "Data",
    "DataSpec",
    "Opened",
    "Progress",
    "Statistics",
    "View",
    "checked",
    "eval_batches",
    "open_data",
    "open_for_evaluation",
    "open_split",
    "open_squares",
    "statistics",
    "train_batches",
    "views",
]
