"""The learning rates of claim 9: each activation's is searched for, as the paper did.

The best is the one that gets to 25% training error in the fewest epochs, or else the nearest.
"""

BASE = "configs/bench_cifar10.py"
OVERRIDES = {"data.name": "cifar10_jpeg"}
RATES = {"relu": (0.003, 0.01, 0.03, 0.1), "tanh": (0.01, 0.03, 0.1), "sigmoid": (0.03, 0.1, 0.3)}
EPOCHS = {"relu": 20, "tanh": 40, "sigmoid": 40}
VARIANTS = {
    f"{kind}, rate {rate}": {
        "model.activation": kind,
        "optim.learning_rate": rate,
        "num_epochs": EPOCHS[kind],
    }
    for kind, rates in RATES.items()
    for rate in rates
}
BASELINE = "relu, rate 0.03"
SEEDS = 1
MEASURES = ("epochs_to_25", "train_top1_error")
