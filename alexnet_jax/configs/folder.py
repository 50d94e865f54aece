"""Trains on your own pictures, PATH/CLASS/IMAGE or in splits, from the weights of `imagenette`.

    python -m alexnet_jax.main --config=configs/folder.py --config.data.name=folder:PATH

Without splits, a fifth of each class is held out. Batch size, length and logging are chosen to suit
the number of pictures, unless they are given.
"""

from alexnet_jax.configs import imagenette128


def get_config():
    """Returns the net of `configs/imagenette128.py`, with its weights as the initial ones."""
    config = imagenette128.get_config()
    config.batch_size = config.num_epochs = config.log_every_steps = None
    config.init_from = "imagenette"
    config.per_class = True

    config.data.name = "folder:PATH"
    config.data.eval_split = "validation"

    config.optim.learning_rate = 0.005
    # The rate drops in four parts of equal length, whatever the length of the run.
    config.optim.schedule = "dexp"
    config.optim.dexp_factor = 100.0
    config.mesh.data = 1
    return config
