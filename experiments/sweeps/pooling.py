"""Overlapping pooling (section 3.4): 3x3 windows against 2x2, both every 2 pixels."""

CLAIM = 4
BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "2x2, no overlap": {"model.pool_window": 2},
}
SEEDS = 5
PAPER = {"2x2, no overlap": 0.4}  # section 3.4
