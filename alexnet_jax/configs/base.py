"""Sets every field to the value of the paper's text; the other configurations start from this one.

Each field is described where it is declared:

    outside sections   Config in alexnet_jax/config.py
    data               DataSpec in alexnet_jax/data/spec.py, PreprocessSpec in preprocess.py
    model              AlexNet in alexnet_jax/models/alexnet.py, where None is the value of the
                       preset `name`; `module` is a Python module that adds this preset
    optim              OptimSpec in alexnet_jax/optim.py
    mesh               MeshSpec in alexnet_jax/parallel.py
"""

from ml_collections import ConfigDict

from alexnet_jax.config import config_dict


def get_config() -> ConfigDict:
    """Returns the common base: AlexNet as in the paper's text, on ImageNet (ILSVRC-2012)."""
    return config_dict()
