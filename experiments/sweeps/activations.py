"""ReLU against tanh, and sigmoid (section 3.1, Figure 1): epochs to 25% training error.

Each with its best learning rate out of activations_search.py.
"""

CLAIM = 9
BASE = "configs/bench_cifar10.py"
OVERRIDES = {"data.name": "cifar10_jpeg"}
BEST_RATES = {"relu": 0.03, "tanh": 0.03, "sigmoid": 0.1}
EPOCHS = {"relu": 20, "tanh": 40, "sigmoid": 40}
VARIANTS = {
    kind: {
        "model.activation": kind,
        "optim.learning_rate": rate,
        "num_epochs": EPOCHS[kind],
    }
    for kind, rate in BEST_RATES.items()
}
BASELINE = "relu"
SEEDS = 3
MEASURES = ("epochs_to_25", "train_top1_error")
# Section 3.1 and Figure 1: six times; of sigmoid it says nothing.
PAPER = {"tanh": 6.0}
