"""CIFAR-10 to 13% test error: two convolutions, two untied layers, 24-pixel crops.

    python -m alexnet_jax.main --config=configs/cifar_13pct.py

Published: 13% in 25 minutes of a 2011 GPU (dnouri/cuda-convnet, layers-conv-local-13pct.cfg); the
paper's number without normalisation (section 3.3). Evaluate with --views=9. The published run saw
four fifths of the training set in its first 100 epochs, this one all of it: 13% more updates.
"""

from alexnet_jax.configs import cifar_18pct


def get_config():
    """As 18pct, but on crops and flips, with the net's own weight decays and length."""
    config = cifar_18pct.get_config()
    config.num_epochs = 160
    config.data.image_size = 24
    config.data.crop = True
    config.data.flip = True
    config.model.name = "cifar_13pct"
    config.optim.layer_decays = (("conv1", 0.0), ("conv2", 0.0))
    config.optim.drop_epochs = (140, 150)
    # Only the kernels' rate drops (layer-params-conv-local-13pct.cfg at c027ce3, the last stage).
    config.optim.bias_schedule = "epochs"
    return config
