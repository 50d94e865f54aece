"""The learning rates of Figure 1's net (figure1.py), one seed each.

The best is the one that gets to 25% training error in the fewest epochs, or else the nearest.
"""

BASE = "configs/cifar_18pct.py"
EPOCH = 390  # steps
OVERRIDES = {
    "data.name": "cifar10_jpeg",
    "model.lrn": False,
    "optim.weight_decay": 0.0,
    "optim.layer_decays": (),
    "optim.schedule": "constant",
    "log_every_steps": EPOCH,
    "eval_every_steps": 7 * EPOCH,
    "checkpoint_every_steps": 7 * EPOCH,
    "keep_checkpoints": 1,
}
RATES = {
    "relu": (0.001, 0.003, 0.01),
    "tanh": (0.003, 0.01, 0.03),
    "sigmoid": (0.003, 0.01, 0.03),
}
EPOCHS = {"relu": 14, "tanh": 28, "sigmoid": 28}
VARIANTS = {
    f"{kind}, rate {rate}": {
        "model.activation": kind,
        "optim.learning_rate": rate,
        "num_epochs": EPOCHS[kind],
    }
    for kind, rates in RATES.items()
    for rate in rates
}
BASELINE = "relu, rate 0.003"
SEEDS = 1
MEASURES = ("epochs_to_25", "train_top1_error")
