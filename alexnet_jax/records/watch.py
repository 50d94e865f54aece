"""Computes what TensorBoard shows of the net itself.

TensorBoard shows how large the kernels of each layer are, how far they move in a step, and a
picture of the kernels of the first layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.models import AlexNet
from alexnet_jax.parallel import Layout

COLUMNS = 16  # kernels in a row, as in the paper's Figure 3
ENLARGED = 4  # pixels of the picture for one weight


@dataclass(frozen=True)
class Watch:
    """Holds compiled functions of a run's state, whose results every process has in full.

    Attributes:
        norms: the function from (params, opt_state) to {'weight_norm/LAYER', 'update_norm/LAYER':
            float scalar}, the Euclidean norms of each layer's kernel and of its velocity. The
            velocity is the last update of the kernel, before it was frozen if it is.
        kernels: the function from params to the kernel [H, W, 3, K] of the first layer.
    """

    norms: Callable
    kernels: Callable


def make_watch(model: AlexNet, layout: Layout) -> Watch:
    """Makes the functions for a net that lies on a mesh; all processes must call them together."""
    whole = layout.replicated()
    first = model.layers[0].name

    def norms(params, opt_state):
        velocity = optax.tree.get(opt_state, "trace")
        return {
            f"{name}/{layer}": jnp.sqrt(jnp.sum(leaves["kernel"] ** 2))
            for name, tree in (("weight_norm", params), ("update_norm", velocity))
            for layer, leaves in tree.items()
        }

    return Watch(
        norms=jax.jit(norms, out_shardings=whole),
        kernels=jax.jit(lambda params: params[first]["kernel"], out_shardings=whole),
    )


def kernel_grid(kernels: np.ndarray, towers: int) -> np.ndarray:
    """Draws the kernels of the first layer as one image, a block of rows for each tower.

    Args:
        kernels: float [H, W, 3, K], the towers side by side on the last axis.
        towers: the number of towers, 1 or 2.

    Returns:
        uint8 [Y, X, 3] on white. Grey is 0 and the largest weight of all has full colour, so that
        kernels whose weights have become 0 can be recognised.
    """
    height, width, channels = kernels.shape[:3]
    largest = np.abs(kernels).max() or 1.0
    tiles = np.moveaxis(0.5 + kernels / (2 * largest), -1, 0)  # [K, H, W, 3]
    blocks = []
    for tower in np.split(tiles, towers):
        columns = min(COLUMNS, len(tower))
        rows = -(-len(tower) // columns)
        # Each kernel has a white line below it and on its right.
        block = np.ones((rows * columns, height + 1, width + 1, channels))
        block[: len(tower), :-1, :-1] = tower
        block = block.reshape(rows, columns, *block.shape[1:]).swapaxes(1, 2)
        blocks.append(block.reshape(rows * (height + 1), columns * (width + 1), channels))
        blocks.append(np.ones((2, *blocks[-1].shape[1:])))  # between the towers
    image = np.concatenate(blocks[:-1])[:-1, :-1]
    image = image.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    return np.round(255 * image).astype(np.uint8)
