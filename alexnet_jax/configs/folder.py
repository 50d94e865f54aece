"""Your own pictures, PATH/CLASS/IMAGE or in splits, from the weights of the net `imagenette`.

    python -m alexnet_jax.main --config=configs/folder.py --config.data.name=folder:PATH

Without splits a fifth of each class is held out. Batch size, length and logging suit the number of
pictures, unless they are given.
"""

from alexnet_jax.configs import imagenette128


def get_config():
    """The net of `configs/imagenette128.py`, trained on from its weights."""
    config = imagenette128.get_config()
    config.batch_size = config.num_epochs = config.log_every_steps = None
    config.init_from = "imagenette"
    config.per_class = True

    config.data.name = "folder:PATH"
    config.data.eval_split = "validation"

    config.optim.learning_rate = 0.005
    # Over the whole run, whatever its length: in four parts of equal length.
    config.optim.schedule = "dexp"
    config.optim.dexp_factor = 100.0
    config.mesh.data = 1
    return config
