"""Crops and flips (section 4.1) once more, on three times the bench's epochs, as dropout.py."""

from experiments.sweeps import dropout

CLAIM = 13
BASE = "configs/bench_imagenette.py"
OVERRIDES = dropout.OVERRIDES
VARIANTS = {
    "baseline": {},
    "no crops or flips, 45 epochs": {"data.crop": False, "data.flip": False},
}
SEEDS = 3
MEASURES = ("top1_error", "train_top1_error", "loss", "rise")
PAPER = {"no crops or flips, 45 epochs": "higher"}
