"""The grid of dropout's rate and the pooling on a fifth of the images, where the net overfits.

The budget is that of dropout_few.py: the loss without dropout has turned long before its end.
"""

from experiments.sweeps import dropout_few, dropout_pooling

CLAIM = 8
BASE = dropout_pooling.BASE
OVERRIDES = dropout_few.OVERRIDES
VARIANTS = dropout_pooling.VARIANTS
BASELINE = dropout_pooling.BASELINE
SEEDS = 3
FAMILY = True
MEASURES = ("top1_error", "train_top1_error", "gap", "loss")
