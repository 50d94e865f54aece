"""Trains cuda-convnet's net for 18% test error on CIFAR-10, with normalisation within maps.

    python -m alexnet_jax.main --config=configs/cifar_18pct.py

The published error is 18% after 20 minutes on a GPU of 2011 (dnouri/cuda-convnet,
example-layers/layers-18pct.cfg and layer-params-18pct.cfg), with 120 epochs, 10 at a tenth of the
rate and 10 at a hundredth.

All CIFAR-10 configurations differ from the runs of cuda-convnet in the order of the images. Those
read the five files of 10,000 images always in the same order, each in 79 batches of which the last
has 16 images, so that an epoch has 395 updates. Here an epoch is a new permutation in 390 full
batches, which leaves out 80 images.
"""

from alexnet_jax.configs import base


def get_config():
    """Returns a configuration with whole 32-pixel images in grey levels, without augmentation."""
    config = base.get_config()
    config.num_epochs = 140

    config.data.name = "cifar10"
    config.data.eval_split = "test"
    config.data.image_size = 32
    config.data.resize_size = 32
    config.data.backend = "device"
    config.data.crop = False
    config.data.flip = False
    config.data.mean = "image_centre"
    config.data.colour_noise = "none"
    config.model.name = "cifar_18pct"

    config.optim.learning_rate = 0.001
    config.optim.bias_rate = 2.0
    config.optim.weight_decay = 0.004
    config.optim.layer_decays = (("fc10", 1.0),)
    config.optim.schedule = "epochs"
    config.optim.drop_epochs = (120, 130)
    return config
