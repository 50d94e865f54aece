"""The grid of dropout's rate and the pooling over six times the bench's epochs, on all images."""

from alexnet_jax.configs.bench_imagenette import STEPS_PER_EPOCH
from experiments.sweeps import dropout_pooling

CLAIM = 8
BASE = dropout_pooling.BASE
OVERRIDES = {
    "num_epochs": 90,
    "optim.drop_epochs": (60, 80),
    "eval_every_steps": 9 * STEPS_PER_EPOCH,
}
VARIANTS = dropout_pooling.VARIANTS
BASELINE = dropout_pooling.BASELINE
SEEDS = 3
FAMILY = True
MEASURES = ("top1_error", "train_top1_error", "gap", "loss")
