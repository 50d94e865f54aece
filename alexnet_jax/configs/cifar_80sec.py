"""CIFAR-10 to 26% test error, the code site's quick net.

    python -m alexnet_jax.main --config=configs/cifar_80sec.py

Published: 26% in 80 seconds of a 2011 GPU (dnouri/cuda-convnet, example-layers/layers-80sec.cfg).
The rate drops after 8 epochs; 10 in all, as in Caffe's copy (BVLC/caffe, cifar10_quick).
"""

from alexnet_jax.configs import cifar_18pct


def get_config():
    """As 18pct, but for the net, the weight decay of its dense layers, and its length."""
    config = cifar_18pct.get_config()
    config.num_epochs = 10
    config.model.name = "cifar_80sec"
    config.optim.layer_decays = (("fc64", 0.03), ("fc10", 0.03))
    config.optim.drop_epochs = (8,)
    return config
