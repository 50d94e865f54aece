"""Net #145, whose logged errors are the paper's: the 2012 source's net, data and schedule.

    python -m alexnet_jax.main --config=configs/imagenet2012_net145.py

Reproduces Table 2, "1 CNN": top-1 40.7%, top-5 18.2% on the validation set, from ten views. Logged
are 40.66 and 18.21 (layer-params-145.cfg:182, which doesn't say from how many views). Sources:
computerhistory/AlexNet-Source-Code, layers/layers-145.cfg, layers/layer-params-145*.cfg,
convdata.py. Where it differs from the paper's text: see docs/paper.md.
"""

from alexnet_jax.configs import base
from alexnet_jax.models.logged_runs import LOGGED_RUNS


def get_config():
    """The text's run with the source's net, biases, rates, mean and colour noise."""
    config = base.get_config()
    logged = LOGGED_RUNS["145"]
    config.num_epochs = logged["num_epochs"]
    config.data.mean = "image_centre"
    config.data.colour_noise = "source"
    config.data.colour_noise_until_epoch = float(logged["noise_until_epoch"])
    config.model.name = "net145"
    config.optim.update(logged["optim"])
    return config
