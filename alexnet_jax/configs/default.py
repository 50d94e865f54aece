"""Photos: which photograph is a patch cut from? Needs no download.

python -m alexnet_jax.main --config=configs/default.py
"""

from alexnet_jax.configs import base


def get_config():
    """A small AlexNet in two towers, on patches of photographs that ship with scikit-image."""
    config = base.get_config()
    config.batch_size = 64
    config.num_epochs = 15
    config.log_every_steps = 20

    config.data.name = "photos"
    config.data.eval_split = "test"
    config.data.image_size = 64
    config.data.backend = "device"
    config.data.colour_noise = "none"
    # Inputs of about unit size and He's initial scale: at this width, the paper's 0.01 on grey
    # levels starts the net so small that it learns nothing for hundreds of steps. The paper's
    # biases of 1 are small beside grey levels, but not beside these inputs.
    config.data.scale = 1 / 64
    config.model.kernel_init = "he"
    config.model.bias_one = 0.1

    config.model.width = 0.125
    config.model.conv1_kernel = 5
    config.model.conv1_stride = 2
    config.model.conv1_padding = (2, 2)

    config.optim.schedule = "epochs"
    config.optim.drop_epochs = (12,)
    return config
