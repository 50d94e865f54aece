"""The code site's CIFAR-10 net over 44 of its 140 epochs, with the drops of the rate in proportion.

Published for all 140 epochs: 18% test error (dnouri/cuda-convnet, example-layers/layers-18pct.cfg),
on the original pixels. cifar_18pct_long.py has the whole schedule.
"""

CLAIM = 3
BASE = "configs/cifar_18pct.py"
OVERRIDES = {"data.name": "cifar10_jpeg", "num_epochs": 44, "optim.drop_epochs": (36, 40)}
VARIANTS = {"baseline": {}}
SEEDS = 1
PUBLISHED = {"baseline": 18.0}
