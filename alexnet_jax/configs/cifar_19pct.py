"""CIFAR-10 to 19% test error, the code site's net without normalisation.

    python -m alexnet_jax.main --config=configs/cifar_19pct.py

Published: 19% (dnouri/cuda-convnet, example-layers/layers-19pct.cfg). Its schedule isn't in its
files; this is the one of 18pct.
"""

from alexnet_jax.configs import cifar_18pct


def get_config():
    """As 18pct, but for the net and the last layer's weight decay."""
    config = cifar_18pct.get_config()
    config.model.name = "cifar_19pct"
    config.optim.layer_decays = (("fc10", 3.0),)
    return config
