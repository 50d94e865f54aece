"""Lists the published nets: their tables of layers, and the fields that differ from the paper's.

[S] marks what was read in the source that is named; everything else is from the paper's text. The
sources are CHM (computerhistory/AlexNet-Source-Code), CC1 (dnouri/cuda-convnet), CC2
(akrizhevsky/cuda-convnet2), CAF (BVLC/caffe) and TV (pytorch/vision).
"""

import dataclasses

from alexnet_jax.models.table import Conv, Dense


@dataclasses.dataclass(frozen=True)
class Preset:
    """Holds a line about a net and its source, and the fields of `AlexNet` that make the net."""

    about: str
    fields: dict


def _table(maps, orders, *, std=0.01, hidden_std=0.01, padding=(0, 3), last_bias=0.0, pads=(2, 1)):
    """Makes the table of Figure 2: five convolutions and three dense layers.

    Args:
        maps: The maps of the convolutions.
        orders: The operations after layers 1, 2 and 5.
        std: The standard deviation of the kernels of conv3, conv4 and conv5.
        hidden_std: The standard deviation of the kernels of fc6 and fc7.
        padding: The padding of conv1.
        last_bias: The bias of fc8.
        pads: The padding of conv2 and of conv5.
    """
    first, second, fifth = orders
    return (
        # 224 pixels give 55 places, as the last window overhangs by 3 [S: CHM layers-145.cfg].
        Conv("conv1", maps[0], kernel=11, stride=4, padding=padding, then=first),
        Conv("conv2", maps[1], kernel=5, padding=pads[0], bias=1, then=second),
        Conv("conv3", maps[2], kernel=3, padding=1, joins=True, std=std),
        Conv("conv4", maps[3], kernel=3, padding=1, std=std, bias=1),
        Conv("conv5", maps[4], kernel=3, padding=pads[1], std=std, bias=1, then=fifth),
        Dense("fc6", 4096, std=hidden_std, bias=1, then=("act", "drop")),
        Dense("fc7", 4096, std=hidden_std, bias=1, then=("act", "drop")),
        Dense("fc8", bias=last_bias),
    )


PAPER_MAPS = (96, 256, 384, 384, 256)
PAPER_ORDER = (("act", "lrn", "pool"), ("act", "lrn", "pool"), ("act", "pool"))
# A ReLU after a max pool equals one before it. A normalisation before the ReLU is another net.
NET145_ORDER = (("lrn", "pool", "act"), ("act", "lrn", "norm", "pool"), ("pool", "act"))
OWT_ORDER = (("lrn", "pool", "act"), ("act", "lrn", "pool"), ("pool", "act"))
CAFFENET_ORDER = (("act", "pool", "lrn"), ("act", "pool", "lrn"), ("act", "pool"))

PAPER = _table(PAPER_MAPS, PAPER_ORDER)
NET145 = _table(PAPER_MAPS, NET145_ORDER, std=0.03)
# Maps of 55, 28, 26, 13, 11 and 6 pixels: the padding makes up for the smaller windows.
NET147 = _table(PAPER_MAPS, NET145_ORDER, std=0.03, pads=(1, 0))
# The sixth layer over the last pooling layer [S: CHM layers-146-2011.cfg:258-286]. There, for
# 21,843 classes, a linear layer of 2048 stands before the classes; without it this is 146-2009.
SIX_CONV = (
    *NET145[:5],
    Conv("conv6", 256, kernel=3, padding=1, joins=True, std=0.03, bias=1),
    *NET145[5:],
)
# conv1 has 2 pixels of padding, as in torchvision, while the source's last window overhangs by 3.
# The weights of either then see the pixels on which they were trained, up to a shift.
OWT = _table((64, 192, 384, 256, 256), OWT_ORDER, std=0.03, padding=2, last_bias=-7.0)

SOURCE_LRN = {"lrn_alpha": 1e-4 / 5}  # The code divides its scale by the size.
CAFFE = {"lrn_alpha": 1e-4 / 5, "lrn_k": 1.0, "lrn_joins": True, "inverted_dropout": True}


def _cifar(convs, *dense, **fields):
    """Makes the fields of a CIFAR net: pools overhang, no dropout [S: CC1 example-layers/]."""
    common = {"num_classes": 10, "towers": 1, "pool_overhang": True, "dropout": 0.0}
    return {"layers": (*convs, *dense), **common, **fields}


def _cifar_small(*between):
    """Makes the convolutions of 80sec, 19pct and 18pct; `between` follows layers 1 and 2."""
    return (
        # The deviation is 1e-4 because pixels are between 0 and 255.
        Conv("conv1", 32, kernel=5, padding=2, std=1e-4, then=("pool", "act", *between)),
        Conv("conv2", 32, kernel=5, padding=2, then=("act", "avg_pool", *between)),
        Conv("conv3", 64, kernel=5, padding=2, then=("act", "avg_pool")),
    )


def _cifar_local(local_maps, first, second):
    """Makes the two convolutions and the two untied layers of 13pct and 11pct."""
    return (
        Conv("conv1", 64, kernel=5, padding=2, std=1e-4, then=first),
        Conv("conv2", 64, kernel=5, padding=2, then=second),
        Conv("local3", local_maps, kernel=3, padding=1, std=0.04, local=True),
        Conv("local4", 32, kernel=3, padding=1, std=0.04, local=True),
    )


PRESETS = {
    "alexnet": Preset("the paper's text: two towers", {"layers": PAPER}),
    "alexnet_one_tower": Preset(
        "the paper's layer widths without the split", {"layers": PAPER, "towers": 1}
    ),
    "alexnet_half": Preset(
        "the paper's one-GPU comparison, half the kernels in conv1-4 [S: CHM, net 145-half]",
        {"layers": _table((48, 128, 192, 192, 256), PAPER_ORDER), "towers": 1},
    ),
    "net145": Preset(
        "the net that gave the published numbers [S: CHM layers-145.cfg]",
        {"layers": NET145, **SOURCE_LRN},
    ),
    "net145_half": Preset(
        "one tower of net145, but for conv5 and the dense layers [S: CHM layers-145-half.cfg]",
        {
            "layers": _table((48, 128, 192, 192, 256), NET145_ORDER, std=0.03),
            "towers": 1,
            **SOURCE_LRN,
        },
    ),
    "net147": Preset(
        "net145 with pooling windows that don't overlap [S: CHM layers-147.cfg]",
        {"layers": NET147, "pool_window": 2, "pool_overhang": True, **SOURCE_LRN},
    ),
    "alexnet_six_conv": Preset(
        "net 146, for pre-training: net145 and a sixth convolution over the last pool [S: CHM]",
        {"layers": SIX_CONV, **SOURCE_LRN},
    ),
    "alexnet_owt": Preset(
        # Its file was renamed to layers-imagenet-1gpu.cfg. Its dropout2 drops in training and
        # halves in testing (cudaconvnet/src/layer.cu:1374-1383), as the paper's text does.
        "one weird trick's net [S: CC2 layers-223-ce2-1gpu-crp.cfg]",
        {"layers": OWT, "towers": 1, **SOURCE_LRN},
    ),
    "torchvision": Preset(
        "torchvision's alexnet: one weird trick's without LRN, its dropout inverted [TV]",
        {"layers": OWT, "towers": 1, "lrn": False, "inverted_dropout": True},
    ),
    "caffenet": Preset(
        "Caffe's CaffeNet: pool before LRN [S: CAF bvlc_reference_caffenet]; takes 227 pixels",
        {"layers": _table(PAPER_MAPS, CAFFENET_ORDER, hidden_std=0.005, padding=0), **CAFFE},
    ),
    "bvlc_alexnet": Preset(
        "Caffe's AlexNet: biases 0.1 for 1 [S: CAF bvlc_alexnet]; takes 227 pixels",
        {
            "layers": _table(PAPER_MAPS, PAPER_ORDER, hidden_std=0.005, padding=0),
            "bias_one": 0.1,
            **CAFFE,
        },
    ),
    "cifar_80sec": Preset(
        "CIFAR-10 to 26% error in 80 seconds of 2012 [S: CC1 layers-80sec.cfg]",
        _cifar(_cifar_small(), Dense("fc64", 64, std=0.1, then=("act",)), Dense("fc10", std=0.1)),
    ),
    "cifar_19pct": Preset(
        "CIFAR-10 to 19% error [S: CC1 layers-19pct.cfg]",
        _cifar(_cifar_small(), Dense("fc10")),
    ),
    "cifar_18pct": Preset(
        "CIFAR-10 to 18% error: 19pct with response norms within maps [S: CC1 layers-18pct.cfg]",
        _cifar(_cifar_small("norm"), Dense("fc10"), norm_size=3, norm_alpha=5e-5 / 9),
    ),
    "cifar_13pct": Preset(
        "CIFAR-10 to 13% error on 24-pixel crops [S: CC1 layers-conv-local-13pct.cfg]",
        _cifar(_cifar_local(32, ("pool", "act"), ("pool", "act")), Dense("fc10")),
    ),
    "cifar_11pct": Preset(
        "CIFAR-10 to 11% error: LRN and more local maps [S: CC1 layers-conv-local-11pct.cfg]",
        _cifar(
            _cifar_local(64, ("pool", "act", "lrn"), ("act", "lrn", "pool")),
            Dense("fc10"),
            lrn_size=9,
            lrn_alpha=1e-3 / 9,
            lrn_k=1.0,
        ),
    ),
}
