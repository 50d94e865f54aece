"""Trains a four-layer net on CIFAR-10 to 25% training error, as in the paper's Figure 1.

    python -m alexnet_jax.main --config=configs/bench_cifar10.py

The paper does not specify its four-layer net. This one is cuda-convnet's 19pct (three convolutions
and a dense layer) without regularisation, as in Figure 1, and with stride 2 in conv1.
"""

from alexnet_jax.config import NEVER
from alexnet_jax.configs import base

STEPS_PER_EPOCH = 390  # 50,000 images in batches of 128


def get_config():
    """Returns a configuration without regularisation, with a constant learning rate."""
    config = base.get_config()
    config.num_epochs = 40
    config.log_every_steps = STEPS_PER_EPOCH // 3
    config.eval_every_steps = 1000 * STEPS_PER_EPOCH  # The claim is about the training error.
    config.checkpoint_every_steps = NEVER
    config.keep_checkpoints = 1

    config.data.name = "cifar10"
    config.data.eval_split = "test"
    config.data.image_size = 32
    config.data.resize_size = 32
    config.data.backend = "device"
    config.data.crop = False
    config.data.flip = False
    config.data.colour_noise = "none"
    config.data.scale = 1 / 64
    config.model.name = "cifar_19pct"
    config.model.kernel_init = "he"
    config.model.conv1_stride = 2

    config.optim.learning_rate = 0.03
    config.optim.weight_decay = 0.0
    config.optim.schedule = "constant"
    config.mesh.data = 1
    return config
