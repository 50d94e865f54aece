"""ReLU against tanh (section 3.1, Figure 1), from the small initial deviations of 2012.

The paper does not name the net of its Figure 1, but says that it has four layers and is trained on
CIFAR-10 without regularisation. This is the code site's net with four weight layers, without
normalisation and weight decay, with its initial deviations (1e-4 in conv1, 0.01), on grey levels
as they are. Each activation has one rate, chosen by trials that are not recorded (figure1_search.py
searches it). A net that is not at 25% training error after eight times ReLU's epochs counts as a
lower bound. activations.py compares the same activations from He's initial scale.
"""

CLAIM = 9
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
VARIANTS = {
    "relu": {"optim.learning_rate": 0.003, "num_epochs": 14},
    "tanh": {"model.activation": "tanh", "optim.learning_rate": 0.01, "num_epochs": 56},
}
BASELINE = "relu"
SEEDS = 3
MEASURES = ("epochs_to_25", "train_top1_error")
PAPER = {"tanh": 6.0}
