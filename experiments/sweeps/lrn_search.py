"""Local response normalisation's alpha and k, and the rates, of claim 2: each side's is searched.

The baseline's alpha is the paper's for grey levels, taken over to the bench's pixels. With LRN, six
settings were tried; without, three. LRN's best rate is the highest that was tried.
"""

BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "alpha / 10": {"model.lrn_alpha": 1e-5 * 64**2},
    "alpha / 100": {"model.lrn_alpha": 1e-6 * 64**2},
    "k 1": {"model.lrn_k": 1.0},
    "alpha / 10, k 1": {"model.lrn_alpha": 1e-5 * 64**2, "model.lrn_k": 1.0},
    "alpha / 10, rate 0.04": {"model.lrn_alpha": 1e-5 * 64**2, "optim.learning_rate": 0.04},
    "no LRN": {"model.lrn": False},
    "no LRN, rate 0.01": {"model.lrn": False, "optim.learning_rate": 0.01},
    "no LRN, rate 0.04": {"model.lrn": False, "optim.learning_rate": 0.04},
}
SEEDS = 2
