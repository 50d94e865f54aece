"""Trains the one-GPU net of "one weird trick" (Krizhevsky 2014) with its stepped schedule.

    python -m alexnet_jax.main --config=configs/imagenet2012_owt.py

The published errors on the validation set are top-1 42.55% and top-5 19.81% from the centre crop,
and 40.42% and 18.15% from ten views (akrizhevsky/cuda-convnet2, wiki). On several devices, add
--config.mesh.layout=hybrid --config.mesh.model=N as in that paper. The source is cuda-convnet2,
layers/layers-imagenet-1gpu.cfg and layer-params-imagenet-1gpu.cfg (formerly
layers-223-ce2-1gpu-crp.cfg and layer-params-223-ce2-1gpu.cfg).
"""

from alexnet_jax.configs import base


def get_config():
    """Returns the base with the net, mean, colour noise, biases and schedule of cuda-convnet2."""
    config = base.get_config()
    config.data.mean = "image_centre"
    config.data.colour_noise = "source"
    config.model.name = "alexnet_owt"
    config.optim.schedule = "dexp"
    config.optim.bias_rate = 2.0
    config.optim.bias_schedule = "epochs"
    config.optim.bias_drop_epochs = (45,)
    return config
