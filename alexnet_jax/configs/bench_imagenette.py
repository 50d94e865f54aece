"""Trains a small AlexNet on Imagenette at 32 pixels, on which the paper's claims are tested.

    python -m alexnet_jax.main --config=configs/bench_imagenette.py

A run takes about a minute of one CPU core, so a hundred runs take about an hour on two cores. The
variants are in experiments/sweeps/, and the results in experiments/ledger.md.
"""

from alexnet_jax.config import NEVER
from alexnet_jax.configs import base

STEPS_PER_EPOCH = 147  # 9,469 images in batches of 64


def get_config():
    """Returns a net with a quarter of the paper's maps, of 16, 8 and 4 pixels, and 2x2 into fc6."""
    config = base.get_config()
    config.batch_size = 64
    config.num_epochs = 15
    config.log_every_steps = STEPS_PER_EPOCH // 3
    config.eval_every_steps = 3 * STEPS_PER_EPOCH
    # Only the end is saved, because a save after each epoch would take a tenth of the run.
    config.checkpoint_every_steps = NEVER
    config.keep_checkpoints = 1

    config.data.name = "imagenette/160px-v2"
    config.data.image_size = 32
    config.data.backend = "device"
    config.data.colour_noise = "none"
    # configs/default.py explains the scale, the initialisation and the biases.
    config.data.scale = 1 / 64
    config.model.kernel_init = "he"
    config.model.bias_one = 0.1

    config.model.width = 0.25
    config.model.hidden_units = 256
    config.model.conv1_kernel = 5
    config.model.conv1_stride = 2
    config.model.conv1_padding = (2, 2)
    # With overhang, 2x2 and 3x3 windows give maps of the same size, as at the paper's 224 pixels.
    config.model.pool_overhang = True
    # The paper's 1e-4 is for grey levels. On pixels divided by 64 it would almost switch the
    # normalisation off; this value gives the same formula for them.
    config.model.lrn_alpha = 1e-4 * 64**2

    config.optim.learning_rate = 0.02
    config.optim.schedule = "epochs"
    config.optim.drop_epochs = (10, 13)
    config.mesh.data = 1
    return config
