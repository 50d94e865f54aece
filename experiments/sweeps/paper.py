"""Tables 1 and 2, and the other claims, at the paper's scale: ImageNet, GPUs, weeks.

Not run here; --dry_run builds every net.
"""

CLAIM = 1
BASE = "configs/imagenet2012_net145.py"
VARIANTS = {
    "baseline": {},
    "text": {"data.mean": "image", "data.colour_noise": "text_unit", "model.name": "alexnet"},
    "no LRN": {"model.lrn": False},
    "2x2, no overlap": {"model.name": "net147"},
    "one tower, half the kernels": {"model.name": "net145_half"},
    "no colour noise": {"data.colour_noise": "none"},
    "no conv3": {"model.skip": ("conv3",)},
    "no conv4": {"model.skip": ("conv4",)},
    "no conv5": {"model.skip": ("conv5",)},
    "no weight decay": {"optim.weight_decay": 0.0},
    "no dropout": {"model.dropout": 0.0},
    "no crops or flips": {"data.crop": False, "data.flip": False},
    "sixth convolution": {"model.name": "alexnet_six_conv"},
}
SEEDS = 5
PAPER = {}
