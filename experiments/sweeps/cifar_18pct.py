"""The code site's 18pct net on CIFAR-10: two of its 140 epochs, 1.4% of the schedule.

With and without its normalisation within maps.
"""

CLAIM = 3
BASE = "configs/cifar_18pct.py"
OVERRIDES = {
    "data.name": "cifar10_jpeg",
    "num_epochs": 2,
    "optim.schedule": "constant",
    "log_every_steps": 130,
    "checkpoint_every_steps": 10**6,
    "keep_checkpoints": 1,
    "mesh.data": 1,
}
VARIANTS = {
    "baseline": {},
    "no normalisation": {"model.lrn": False},
}
SEEDS = 3
