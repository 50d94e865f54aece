"""CIFAR-10 to 18% test error, the code site's net with normalisation within maps.

    python -m alexnet_jax.main --config=configs/cifar_18pct.py

Published: 18% in 20 minutes of a 2011 GPU (dnouri/cuda-convnet, example-layers/layers-18pct.cfg and
layer-params-18pct.cfg): 120 epochs, 10 at a tenth of the rate and 10 at a hundredth.

All CIFAR-10 configurations differ from the code site's runs in this: those took the five files of
10,000 images in turn, always in one order, each in 79 batches of which the last has 16 images (395
updates an epoch); here an epoch is a fresh permutation in 390 whole batches, and 80 images wait for
the next.
"""

from alexnet_jax.configs import base


def get_config():
    """Whole 32-pixel images, no augmentation, grey levels as they are."""
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
