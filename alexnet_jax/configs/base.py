"""Every field with the values of the paper's text; the other configurations differ from this one.

The fields have a line each where they are declared:

    outside sections   Config in alexnet_jax/config.py
    data               DataSpec in alexnet_jax/data/spec.py, PreprocessSpec in preprocess.py
    model              AlexNet in alexnet_jax/models/alexnet.py; None: the preset `name`'s value
    optim              OptimSpec in alexnet_jax/optim.py
    mesh               MeshSpec in alexnet_jax/parallel.py
"""

from ml_collections import ConfigDict

from alexnet_jax.config import config_dict


def get_config() -> ConfigDict:
    """The common base: AlexNet as the paper's text has it, on ImageNet (ILSVRC-2012)."""
    return config_dict()
