"""Dropout (section 4.2) on three times the bench's epochs: the curves of training and validation.

Without it the paper's net overfits substantially; with it, it needs about twice the iterations.
"""

CLAIM = 7
BASE = "configs/bench_imagenette.py"
OVERRIDES = {"num_epochs": 45, "optim.drop_epochs": (30, 39)}
VARIANTS = {
    "baseline": {},
    "no dropout": {"model.dropout": 0.0},
}
SEEDS = 3
MEASURES = ("top1_error", "train_top1_error", "loss", "rise", "best_epoch")
# Section 4.2: "substantial overfitting" without; with it "roughly twice" the iterations.
PAPER = {"no dropout": {"top1_error": "higher", "rise": "higher", "best_epoch": 0.5}}
