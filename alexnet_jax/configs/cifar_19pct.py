"""Trains cuda-convnet's net for 19% test error on CIFAR-10, without normalisation.

    python -m alexnet_jax.main --config=configs/cifar_19pct.py

The published error is 19% (dnouri/cuda-convnet, example-layers/layers-19pct.cfg). Its schedule is
not published, so this configuration has that of 18pct.
"""

from alexnet_jax.configs import cifar_18pct


def get_config():
    """Returns 18pct with another net and another weight decay of the last layer."""
    config = cifar_18pct.get_config()
    config.model.name = "cifar_19pct"
    config.optim.layer_decays = (("fc10", 3.0),)
    return config
