"""The paper's net and recipe on ImageNet (ILSVRC-2012), as its text has them.

    python -m alexnet_jax.main --config=configs/imagenet2012.py

The paper's errors of one such net on the validation set (its Table 2, ten views): top-1 40.7%,
top-5 18.2%. It trained for five to six days on two GTX 580. Needs TFDS's `imagenet2012`, whose
archives are downloaded by hand: see docs/data.md.
"""

from alexnet_jax.configs import base


def get_config():
    """The common base as it stands."""
    return base.get_config()
