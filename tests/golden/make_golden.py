"""Records what PyTorch computes, for tests/test_torch_parity.py.

    pip install torch==2.13.0 numpy && python tests/golden/make_golden.py

writes one .npz beside this file for each net in `NETS`: a net of reduced width with random weights
(PyTorch's names and axis order), images, and the logits; for "training" also the loss, every
gradient and every parameter after one step. The nets are written here in plain PyTorch from their
public definitions, and share nothing with the package that they are to check.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
CLASSES = 10
HIDDEN = 32
SIZE = 99  # pixels; every conv1 below gives 23 or 24, the pools 11, 5 and 2


def seeded(module, seed):
    """`module` in double precision, with weights that keep the images' scale of 0-255, where LRN
    matters, until the last layer brings the logits to a few units."""
    rng = np.random.default_rng(seed)
    module = module.double().eval()
    *hidden, last_kernel, last_bias = module.parameters()
    with torch.no_grad():
        for p in [*hidden, last_kernel, last_bias]:
            std = (2 / np.prod(p.shape[1:])) ** 0.5 if p.ndim > 1 else 5.0
            scale = 1 / 32 if p is last_kernel or p is last_bias else 1
            value = scale * rng.normal(0, std, size=p.shape)
            p.copy_(torch.from_numpy(value.astype(np.float32)))
    return module


def torchvision_layout(maps=(4, 12, 24, 16, 16)):
    """torchvision.models.alexnet: no groups, no LRN, dropout before the hidden layers."""
    pool = {"kernel_size": 3, "stride": 2}
    return nn.ModuleDict(
        {
            "features": nn.Sequential(
                nn.Conv2d(3, maps[0], 11, stride=4, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(**pool),
                nn.Conv2d(maps[0], maps[1], 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(**pool),
                nn.Conv2d(maps[1], maps[2], 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(maps[2], maps[3], 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(maps[3], maps[4], 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(**pool),
            ),
            "classifier": nn.Sequential(
                nn.Dropout(),
                nn.Linear(maps[4] * 4, HIDDEN),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(HIDDEN, HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, CLASSES),
            ),
        }
    )


def run_torchvision(net, images):
    return net["classifier"](net["features"](images).flatten(1))


def grouped(maps=(6, 16, 24, 24, 16)):
    """The parameters of the paper's net and of Caffe's two: convolutions in two groups."""
    a, b, c, d, e = maps
    return nn.ModuleDict(
        {
            "conv1": nn.Conv2d(3, a, 11, stride=4),
            "conv2": nn.Conv2d(a, b, 5, padding=2, groups=2),
            "conv3": nn.Conv2d(b, c, 3, padding=1),
            "conv4": nn.Conv2d(c, d, 3, padding=1, groups=2),
            "conv5": nn.Conv2d(d, e, 3, padding=1, groups=2),
            "fc6": nn.Linear(e * 4, HIDDEN),
            "fc7": nn.Linear(HIDDEN, HIDDEN),
            "fc8": nn.Linear(HIDDEN, CLASSES),
        }
    )


def caffe_pool(x):
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def caffe_lrn(x):
    return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)


def run_caffenet(net, images):
    """BVLC/caffe models/bvlc_reference_caffenet: pool, then norm over all maps."""
    h = caffe_lrn(caffe_pool(F.relu(net["conv1"](images))))
    h = caffe_lrn(caffe_pool(F.relu(net["conv2"](h))))
    return _rest(net, h, caffe_pool)


def run_bvlc_alexnet(net, images):
    """BVLC/caffe models/bvlc_alexnet: norm over all maps, then pool."""
    h = caffe_pool(caffe_lrn(F.relu(net["conv1"](images))))
    h = caffe_pool(caffe_lrn(F.relu(net["conv2"](h))))
    return _rest(net, h, caffe_pool)


def paper_pool(x):
    return F.max_pool2d(x, 3, 2)


def paper_lrn(x):
    """k 2 and alpha 1e-4 on the sum (PyTorch divides alpha by n), each tower by itself."""
    towers = x.chunk(2, dim=1)
    return torch.cat([F.local_response_norm(t, 5, alpha=5e-4, beta=0.75, k=2.0) for t in towers], 1)


def run_two_towers(net, images, keep=0.5):
    """The paper's text, on one device. Dropout in testing multiplies the outputs by `keep`."""
    h = paper_pool(paper_lrn(F.relu(net["conv1"](F.pad(images, (0, 3, 0, 3))))))
    h = paper_pool(paper_lrn(F.relu(net["conv2"](h))))
    return _rest(net, h, paper_pool, keep)


def run_without_dropout(net, images):
    return run_two_towers(net, images, keep=1.0)


def _rest(net, h, pool, keep=1.0):
    h = F.relu(net["conv4"](F.relu(net["conv3"](h))))
    h = pool(F.relu(net["conv5"](h))).flatten(1)
    h = keep * F.relu(net["fc6"](h))
    h = keep * F.relu(net["fc7"](h))
    return net["fc8"](h)


NETS = {
    "torchvision": (torchvision_layout, run_torchvision),
    "caffenet": (grouped, run_caffenet),
    "bvlc_alexnet": (grouped, run_bvlc_alexnet),
    "two_towers": (grouped, run_two_towers),
    "training": (grouped, run_without_dropout),
}
RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4


def record(name, seed):
    """Arrays by key: weights "w/NAME", "images" uint8 [N, H, W, 3], "logits", and for "training"
    "labels", "loss", gradients "g/NAME" and parameters after a step "new/NAME"."""
    make, run = NETS[name]
    net = seeded(make(), seed)
    rng = np.random.default_rng(seed + 1)
    images = rng.integers(0, 256, size=(3, SIZE, SIZE, 3), dtype=np.uint8)
    arrays = {f"w/{key}": value.numpy().copy() for key, value in net.state_dict().items()}
    arrays["images"] = images
    logits = run(net, torch.from_numpy(preprocessed(images).transpose(0, 3, 1, 2).copy()))
    arrays["logits"] = logits.detach().numpy()
    if name == "training":
        labels = rng.integers(0, CLASSES, size=len(images))
        loss = F.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()
        arrays |= {"labels": labels, "loss": loss.detach().numpy()}
        arrays |= {f"g/{key}": p.grad.numpy().copy() for key, p in net.named_parameters()}
        # On the first step PyTorch's SGD is the paper's rule, decay on kernels only.
        kernels = [p for p in net.parameters() if p.ndim > 1]
        biases = [p for p in net.parameters() if p.ndim == 1]
        groups = [{"params": kernels, "weight_decay": DECAY}, {"params": biases, "lr": 2 * RATE}]
        torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM).step()
        arrays |= {f"new/{k}": p.detach().numpy().copy() for k, p in net.named_parameters()}
    return arrays


def preprocessed(images):
    """What the nets read: float64 [N, H, W, 3]."""
    return images.astype(np.float64) - 128


def main():
    for seed, name in enumerate(NETS):
        arrays = record(name, seed)
        compact = {
            k: a.astype(np.float32) if a.dtype == np.float64 else a for k, a in arrays.items()
        }
        np.savez_compressed(HERE / f"{name}.npz", **compact)
        size = (HERE / f"{name}.npz").stat().st_size
        print(f"{name}: {size / 1e3:.0f} kB, logits {arrays['logits'][0, :3].round(3)}")


if __name__ == "__main__":
    main()
