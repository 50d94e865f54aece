"""What JPEG costs the 18% net: the copy of CIFAR-10, and that copy encoded once more.

`python -m experiments.reencode` writes both, and says why the second encoding stands for the first.
12 of the 140 epochs, with drops of the rate before their end.
"""

BASE = "configs/cifar_18pct.py"
OVERRIDES = {"num_epochs": 12, "optim.drop_epochs": (9, 11)}
VARIANTS = {
    "the copy": {"data.name": "cifar10_jpeg"},
    "encoded once more": {"data.name": "cifar10_jpeg_twice"},
}
SEEDS = 2
