"""The learning rate of the bench: the baseline that every other sweep is compared with.

The search is over the baseline alone; its rate is then everyone's.
"""

BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "rate 0.005": {"optim.learning_rate": 0.005},
    "rate 0.01": {"optim.learning_rate": 0.01},
    "rate 0.04": {"optim.learning_rate": 0.04},
}
SEEDS = 1
