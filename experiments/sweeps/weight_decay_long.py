"""Weight decay (section 5) once more, on three times the bench's epochs, as dropout.py.

The longer a net is trained, the further weight decay pulls its weights. The paper gives no number;
by the spread of weight_decay.py, five seeds would show 1.5 points.
"""

CLAIM = 12
BASE = "configs/bench_imagenette.py"
OVERRIDES = {"num_epochs": 45, "optim.drop_epochs": (30, 39)}
VARIANTS = {
    "baseline": {},
    "no weight decay, 45 epochs": {"optim.weight_decay": 0.0},
}
SEEDS = 5
MEASURES = ("train_top1_error", "train_loss", "top1_error")
PAPER = {"no weight decay, 45 epochs": "higher"}
