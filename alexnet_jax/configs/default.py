"""Trains a net that tells from which photograph a patch is cut; it needs no download.

python -m alexnet_jax.main --config=configs/default.py
"""

from alexnet_jax.configs import base


def get_config():
    """Returns a small AlexNet in two towers, on patches of scikit-image's photographs."""
    config = base.get_config()
    config.batch_size = 64
    config.num_epochs = 15
    config.log_every_steps = 20

    config.data.name = "photos"
    config.data.eval_split = "test"
    config.data.image_size = 64
    config.data.backend = "device"
    config.data.colour_noise = "none"
    # The inputs are scaled to about unit size, and the kernels are initialised as He's. At this
    # width, the paper's deviation of 0.01 on grey levels makes the first outputs so small that the
    # net learns nothing for hundreds of steps. The paper's biases of 1 are small compared with grey
    # levels, but not compared with these inputs.
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
