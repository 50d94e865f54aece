"""Weight decay (section 5): "not merely a regularizer: it reduces the model's training error"."""

CLAIM = 12
BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "no weight decay": {"optim.weight_decay": 0.0},
}
SEEDS = 5
MEASURES = ("train_top1_error", "train_loss", "top1_error")
PAPER = {"no weight decay": "higher"}
