"""LRN (section 3.3) with each side's best of lrn_search.py: alpha and rate with it, rate without.

Seeds 0 and 1 are those of the search, which tried more with LRN: they can only favour it.
"""

CLAIM = 2
BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {"model.lrn_alpha": 1e-5 * 64**2, "optim.learning_rate": 0.04},
    "no LRN, both searched": {"model.lrn": False},
}
SEEDS = 5
PAPER = {"no LRN, both searched": 1.4}
