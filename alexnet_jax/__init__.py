"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX and Flax."""


def __getattr__(name):
    if name == "load":  # imported when it is asked for: it takes seconds
        from alexnet_jax.trained.pretrained import load

        return load
    raise AttributeError(f"module 'alexnet_jax' has no attribute {name!r}")
