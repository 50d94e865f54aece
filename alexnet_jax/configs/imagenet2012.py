"""Trains the paper's net on ImageNet (ILSVRC-2012), with all settings of the paper's text.

    python -m alexnet_jax.main --config=configs/imagenet2012.py

The paper's errors of one such net on the validation set are top-1 40.7% and top-5 18.2% (its
Table 2, ten views). It trained for five to six days on two GTX 580. The data set is TFDS's
`imagenet2012`, whose archives must be downloaded by hand (see docs/data.md).
"""

from alexnet_jax.configs import base


def get_config():
    """Returns the common base without a change."""
    return base.get_config()
