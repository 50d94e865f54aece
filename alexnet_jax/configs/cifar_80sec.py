"""Trains cuda-convnet's quick net for 26% test error on CIFAR-10.

    python -m alexnet_jax.main --config=configs/cifar_80sec.py

The published error is 26% after 80 seconds on a GPU of 2011 (dnouri/cuda-convnet,
example-layers/layers-80sec.cfg). The rate drops after 8 of 10 epochs, as in Caffe's copy
(BVLC/caffe, cifar10_quick).
"""

from alexnet_jax.configs import cifar_18pct


def get_config():
    """Returns 18pct with another net, other weight decays of its dense layers, and fewer epochs."""
    config = cifar_18pct.get_config()
    config.num_epochs = 10
    config.model.name = "cifar_80sec"
    config.optim.layer_decays = (("fc64", 0.03), ("fc10", 0.03))
    config.optim.drop_epochs = (8,)
    return config
