"""The code site's CIFAR-10 net over all of its 140 epochs, with and without its normalisation.

Published for the net with normalisation: 18% test error (dnouri/cuda-convnet,
example-layers/layers-18pct.cfg), on the original pixels. cifar_18pct.py compares them after the
first epochs.
"""

CLAIM = 3
BASE = "configs/cifar_18pct.py"
OVERRIDES = {"data.name": "cifar10_jpeg"}
VARIANTS = {"baseline": {}, "no normalisation": {"model.lrn": False}}
SEEDS = 1
PUBLISHED = {"baseline": 18.0}
