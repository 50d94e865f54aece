"""Imagenette at 128 pixels: conv1's kernels have the paper's size, and can be looked at.

python -m alexnet_jax.main --config=configs/imagenette128.py
"""

from alexnet_jax.configs import imagenette


def get_config():
    """`configs/imagenette.py` with conv1 as in the paper, 11x11 pixels at stride 4."""
    config = imagenette.get_config()
    config.data.image_size = 128
    config.data.resize_size = 160
    config.model.conv1_kernel = 11
    config.model.conv1_stride = 4
    # Weight decay takes only some 2% of the initial noise away in such a run: He's whole deviation
    # would hide what conv1's kernels learn.
    config.model.layer_init_scales = (("conv1", 0.1),)
    return config
