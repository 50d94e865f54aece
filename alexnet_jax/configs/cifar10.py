"""CIFAR-10 at its own 32 pixels: a small AlexNet in two towers.

python -m alexnet_jax.main --config=configs/cifar10.py
"""

from alexnet_jax.configs import base


def get_config():
    """A quarter of the paper's maps; its 28-pixel crops are to 32 as 224 is to 256."""
    config = base.get_config()
    config.num_epochs = 12
    config.log_every_steps = 130

    config.data.name = "cifar10"
    config.data.eval_split = "test"
    config.data.image_size = 28
    config.data.backend = "device"
    config.data.colour_noise = "none"
    # Inputs of about unit size and He's initial scale: see configs/default.py.
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
