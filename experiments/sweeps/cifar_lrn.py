"""CIFAR-10 (section 3.3): 13% without LRN, 11% with it.

The code site's 11pct net, with its two normalisations and without. Two of its 520 epochs, 0.4% of
the schedule, at its first learning rate.
"""

CLAIM = 3
BASE = "configs/cifar_11pct.py"
OVERRIDES = {
    "data.name": "cifar10_jpeg",
    "num_epochs": 2,
    "optim.schedule": "constant",
    "optim.bias_schedule": "weights",  # at a constant rate it decides nothing
    "log_every_steps": 130,
    "checkpoint_every_steps": 10**6,
    "keep_checkpoints": 1,
    "mesh.data": 1,
}
VARIANTS = {
    "baseline": {},
    "no LRN": {"model.lrn": False},
}
SEEDS = 3
PAPER = {"no LRN": 2.0}  # 13 - 11
