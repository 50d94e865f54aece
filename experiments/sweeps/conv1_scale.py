"""A tenth of He's initial deviation in conv1, on the bench, as kernels.py has it at 128 pixels.

There it keeps the initial noise out of the kernels. The baseline's runs are those of lrn.py.
"""

BASE = "configs/bench_imagenette.py"
VARIANTS = {
    "baseline": {},
    "conv1 from a tenth": {"model.layer_init_scales": (("conv1", 0.1),)},
}
SEEDS = 5
