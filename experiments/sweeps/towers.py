"""Two towers (section 3.5) against one with half the kernels, and against one without groups.

The half net keeps the kernels of conv5, and here the hidden units too, as the source's 145-half.
The net without groups is not in the paper.
"""

CLAIM = 5
BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "one tower, half the kernels": {"model.name": "alexnet_half"},
    "one tower, no groups": {"model.name": "alexnet_one_tower"},
}
SEEDS = 3
PAPER = {"one tower, half the kernels": 1.7}  # section 3.5
