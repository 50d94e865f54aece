"""One weird trick's one-GPU net (Krizhevsky 2014) with its stepped exponential schedule.

    python -m alexnet_jax.main --config=configs/imagenet2012_owt.py

Published: top-1 42.55%, top-5 19.81% on the validation set from the centre crop, 40.42% and 18.15%
from ten views (akrizhevsky/cuda-convnet2, wiki). Over several devices, as the paper has it:
--config.mesh.layout=hybrid --config.mesh.model=N. Source: cuda-convnet2,
layers/layers-imagenet-1gpu.cfg and layer-params-imagenet-1gpu.cfg (once
layers-223-ce2-1gpu-crp.cfg and layer-params-223-ce2-1gpu.cfg).
"""

from alexnet_jax.configs import base


def get_config():
    """The base with cuda-convnet2's net, mean, colour noise, biases and schedule."""
    config = base.get_config()
    config.data.mean = "image_centre"
    config.data.colour_noise = "source"
    config.model.name = "alexnet_owt"
    config.optim.schedule = "dexp"
    config.optim.bias_rate = 2.0
    config.optim.bias_schedule = "epochs"
    config.optim.bias_drop_epochs = (45,)
    return config
