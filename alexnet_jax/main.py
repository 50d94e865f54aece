"""Trains the net that a configuration describes.

python -m alexnet_jax.main --config=configs/default.py [--workdir=DIR] [--config.FIELD=VALUE …]
"""

from pathlib import Path

from absl import flags
from ml_collections.config_flags import get_config_filename

from alexnet_jax import cli, distributed
from alexnet_jax.train import train

_CONFIG = cli.define_config()
_WORKDIR = cli.define_path(
    "workdir", None, "Where the run is kept, and goes on from; runs/<config name> if not given."
)
distributed.define_flags()


def main(_):
    """Trains; returns the exit status."""
    distributed.start()
    workdir = _WORKDIR.value
    if workdir is None:
        name = get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        workdir = Path("runs") / Path(name).stem
    return train(_CONFIG.value, workdir)


if __name__ == "__main__":
    cli.run(main)
