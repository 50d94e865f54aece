"""Trains net #145, whose logged errors are the paper's, with the settings of the 2012 source.

    python -m alexnet_jax.main --config=configs/imagenet2012_net145.py

It is to reproduce the row "1 CNN" of Table 2: top-1 40.7% and top-5 18.2% on the validation set,
from ten views. The logged errors are 40.66 and 18.21 (layer-params-145.cfg:182, which does not say
from how many views). The sources are computerhistory/AlexNet-Source-Code, layers/layers-145.cfg,
layers/layer-params-145*.cfg and convdata.py. docs/paper.md lists the differences from the text.
"""

from alexnet_jax.configs import base
from alexnet_jax.models.logged_runs import LOGGED_RUNS


def get_config():
    """Returns the base with the net, biases, rates, mean and colour noise of the source."""
    config = base.get_config()
    logged = LOGGED_RUNS["145"]
    config.num_epochs = logged["num_epochs"]
    config.data.mean = "image_centre"
    config.data.colour_noise = "source"
    config.data.colour_noise_until_epoch = float(logged["noise_until_epoch"])
    config.model.name = "net145"
    config.optim.update(logged["optim"])
    return config
