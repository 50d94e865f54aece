"""Trains and runs AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX and Flax.

net = alexnet_jax.load("imagenette")  # or a run of your own, "runs/mine"
logits, activations = net.model.apply({"params": net.params}, net.preprocess(image))
"""

import importlib

from alexnet_jax.runtime import process

__version__ = "0.1.0"

process.begin_if_run_from(__name__)

# {name: its module}, which is imported when the name is first used, because that takes seconds.
_PUBLIC = {
    "UserError": "alexnet_jax.errors",
    "create": "alexnet_jax.models",
    "load": "alexnet_jax.trained.pretrained",
    "open_pretrained": "alexnet_jax.trained.pretrained",
}
_MODULES = {
    "data": "alexnet_jax.data",
    "models": "alexnet_jax.models",
    "pretrained": "alexnet_jax.trained.pretrained",
}


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'alexnet_jax' has no attribute {name!r}")


def __dir__():
    return ["__version__", *_PUBLIC, *_MODULES]
