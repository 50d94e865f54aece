"""Trains a small AlexNet in two towers on CIFAR-10, at its own 32 pixels.

python -m alexnet_jax.main --config=configs/cifar10.py
"""

from alexnet_jax.configs import base


def get_config():
    """Returns a net with a quarter of the paper's maps, on 28-pixel crops of the 32 pixels."""
    config = base.get_config()
    config.num_epochs = 12
    config.log_every_steps = 130

    config.data.name = "cifar10"
    config.data.eval_split = "test"
    config.data.image_size = 28
    config.data.backend = "device"
    config.data.colour_noise = "none"
    # configs/default.py explains the scale, the initialisation and the biases.
    config.data.scale = 1 / 64
    config.model.kernel_init = "he"
    config.model.bias_one = 0.1

    config.model.width = 0.25
    config.model.hidden_units = 512
    config.model.conv1_kernel = 5
    config.model.conv1_stride = 1
    config.model.conv1_padding = (2, 2)

    config.optim.learning_rate = 0.02
    config.optim.schedule = "epochs"
    config.optim.drop_epochs = (8, 11)
    return config
