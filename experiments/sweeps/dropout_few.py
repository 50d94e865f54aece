"""Dropout (section 4.2) on a fifth of the images, so few that the bench's net can overfit.

The paper's net has 60 million parameters for 1.2 million images; the bench's, 280 thousand for
9,469.
"""

CLAIM = 7
BASE = "configs/bench_imagenette.py"
STEPS_PER_EPOCH = 29  # of 1,894 images in batches of 64
OVERRIDES = {
    "data.train_split": "train[:20%]",
    "num_epochs": 120,
    "optim.drop_epochs": (80, 104),
    "log_every_steps": STEPS_PER_EPOCH,
    "eval_every_steps": 4 * STEPS_PER_EPOCH,
}
VARIANTS = {
    "baseline": {},
    "no dropout, a fifth of the images": {"model.dropout": 0.0},
}
SEEDS = 3
MEASURES = ("top1_error", "train_top1_error", "loss", "rise", "best_epoch")
# As in dropout.py.
PAPER = {
    "no dropout, a fifth of the images": {
        "top1_error": "higher",
        "rise": "higher",
        "best_epoch": 0.5,
    }
}
