"""Taking one of the middle convolutions out (section 7): "a loss of about 2%" each."""

CLAIM = 11
BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "no conv3": {"model.skip": ("conv3",)},  # conv4 then joins the towers in its place
    "no conv4": {"model.skip": ("conv4",)},
    "no conv5": {"model.skip": ("conv5",)},
}
SEEDS = 3
FAMILY = True
PAPER = {"no conv3": 2.0, "no conv4": 2.0, "no conv5": 2.0}
