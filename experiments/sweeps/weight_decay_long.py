"""Weight decay (section 5) once more, on three times the bench's epochs, as dropout.py.

The longer a net is trained, the further weight decay pulls its weights. The paper gives no number;
by the spread of weight_decay.py, five seeds would show 1.5 points.
"""

from experiments.sweeps import dropout, weight_decay

CLAIM = 12
BASE = "configs/bench_imagenette.py"
OVERRIDES = dropout.OVERRIDES
VARIANTS = {
    "baseline": {},
    "no weight decay, 45 epochs": {"optim.weight_decay": 0.0},
}
SEEDS = 5
MEASURES = weight_decay.MEASURES
PAPER = {"no weight decay, 45 epochs": "higher"}
