"""Trains a net on Imagenette at 128 pixels, with conv1 kernels of the paper's size to look at.

python -m alexnet_jax.main --config=configs/imagenette128.py
"""

from alexnet_jax.configs import imagenette


def get_config():
    """Returns `configs/imagenette.py` with the paper's conv1, 11x11 pixels at stride 4."""
    config = imagenette.get_config()
    config.data.image_size = 128
    config.data.resize_size = 160
    config.model.conv1_kernel = 11
    config.model.conv1_stride = 4
    # Weight decay removes only about 2% of the initial noise in such a run, so He's full deviation
    # would hide what the kernels of conv1 learn.
    config.model.layer_init_scales = (("conv1", 0.1),)
    return config
