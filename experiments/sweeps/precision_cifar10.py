"""Computing in bfloat16 on CIFAR-10, with parameters in float32, against float32 throughout.

The net and its rate are those of activations.py with ReLU, so that its runs are the baseline here.
"""

from experiments.sweeps import activations

BASE = activations.BASE
OVERRIDES = activations.OVERRIDES | activations.VARIANTS["relu"]
VARIANTS = {"baseline": {}, "bfloat16": {"model.dtype": "bfloat16"}}
SEEDS = 3
MEASURES = ("top1_error", "train_top1_error", "loss")
