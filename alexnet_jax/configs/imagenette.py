"""Imagenette (ten ImageNet classes) at 64 pixels: a small AlexNet in two towers.

python -m alexnet_jax.main --config=configs/imagenette.py
"""

from alexnet_jax.configs import base


def get_config():
    """Half the paper's maps on a quarter of its pixels; 1.4 million parameters."""
    config = base.get_config()
    config.batch_size = 64
    config.num_epochs = 40
    config.log_every_steps = 49

    config.data.name = "imagenette/160px-v2"
    config.data.image_size = 64
    config.data.backend = "device"
    config.data.colour_noise = "none"
    # Inputs of about unit size and He's initial scale: see configs/default.py.
    config.data.scale = 1 / 64
    config.model.kernel_init = "he"
    config.model.bias_one = 0.1

    config.model.width = 0.5
    config.model.hidden_units = 512
    config.model.conv1_kernel = 5
    config.model.conv1_stride = 2
    config.model.conv1_padding = (2, 2)

    config.optim.learning_rate = 0.02
    config.optim.schedule = "epochs"
    config.optim.drop_epochs = (26, 35)
    return config
