"""The middle convolutions (section 7) once more, on three times the bench's epochs, as dropout.py.

A deeper net is slower to train: on few epochs that alone can favour the shallower one. By
the spread of three seeds, six would show 1.9 points, and 2.4 after Holm's correction.
"""

from experiments.sweeps import dropout

CLAIM = 11
BASE = "configs/bench_imagenette.py"
OVERRIDES = dropout.OVERRIDES
VARIANTS = {
    "baseline": {},
    "no conv3, 45 epochs": {"model.skip": ("conv3",)},  # conv4 then joins the towers in its place
    "no conv4, 45 epochs": {"model.skip": ("conv4",)},
    "no conv5, 45 epochs": {"model.skip": ("conv5",)},
}
SEEDS = 6
FAMILY = True
PAPER = {"no conv3, 45 epochs": 2.0, "no conv4, 45 epochs": 2.0, "no conv5, 45 epochs": 2.0}
