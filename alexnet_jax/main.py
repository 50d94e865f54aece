"""Trains the net that a configuration describes.

python -m alexnet_jax.main --config=configs/default.py [--workdir=DIR] [--config.FIELD=VALUE …]
    [--profile=FIRST:LAST]
"""

from pathlib import Path

from absl import flags
from ml_collections.config_flags import get_config_filename

from alexnet_jax import cli, distributed
from alexnet_jax.records import profile
from alexnet_jax.train import train

_CONFIG = cli.define_config()
_WORKDIR = cli.define_path("workdir", None, "The run's directory; runs/<config name> if not given.")
_PROFILE = flags.DEFINE_string(
    "profile", None, "The first and the last step to trace with JAX's profiler, e.g. 10:20."
)
distributed.define_flags()


def main(_):
    """Trains the net; returns the exit status."""
    traced = profile.parse(_PROFILE.value)
    distributed.start()
    workdir = _WORKDIR.value
    if workdir is None:
        name = get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        workdir = Path("runs") / Path(name).stem
    return train(_CONFIG.value, workdir, traced=traced)


if __name__ == "__main__":
    cli.run(main)
