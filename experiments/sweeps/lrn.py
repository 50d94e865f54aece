"""Local response normalisation (section 3.3): with it, without it, and in the source's form.

The source normalises conv1's linear output, before the ReLU, divides alpha by the window's size,
and adds a normalisation within maps after layer 2 [computerhistory/AlexNet-Source-Code,
layers-145.cfg]. "as written" takes the paper's 1e-4 on pixels of unit size.
"""

CLAIM = 2
BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "no LRN": {"model.lrn": False},
    "source's form": {
        "model.name": "net145",
        "model.lrn_alpha": 1e-4 / 5 * 64**2,
        "model.norm_alpha": 1e-3 / 25 * 64**2,
    },
    "as written": {"model.lrn_alpha": 1e-4},
}
SEEDS = 5
PAPER = {"no LRN": 1.4}  # section 3.3: top-1 error without, minus with
