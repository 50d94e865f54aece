"""Trains a small AlexNet in two towers on Imagenette (ten ImageNet classes) at 64 pixels.

python -m alexnet_jax.main --config=configs/imagenette.py
"""

from alexnet_jax.configs import base


def get_config():
    """Returns a net of 1.4 million parameters with half the paper's maps."""
    config = base.get_config()
    config.batch_size = 64
    config.num_epochs = 40
    config.log_every_steps = 49

    config.data.name = "imagenette/160px-v2"
    config.data.image_size = 64
    config.data.backend = "device"
    config.data.colour_noise = "none"
    # configs/default.py explains the scale, the initialisation and the biases.
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
