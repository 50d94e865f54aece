"""Finds what each half of a net in two towers adds to an answer, by silencing the other."""

import jax
import numpy as np

from alexnet_jax.models import Operation
from alexnet_jax.trained.pretrained import Pretrained


def probabilities(net: Pretrained, image: np.ndarray, table: list[Operation]) -> np.ndarray:
    """Returns the probabilities of the classes if only one half reaches the dense layers.

    Args:
        net: a net in two towers, whose first dense layer reads the maps of both.
        image: its input, float [1, S, S, 3].
        table: its operations.

    Returns:
        Float [2, classes], with the first half alone and with the second half alone.
    """
    first = next(op for op in table if op.dense and op.kernel)
    maps = [op for op in table if not op.dense][-1].output[-1]
    kernel = net.params[first.layer]["kernel"]
    by_map = np.asarray(kernel).reshape(-1, maps, kernel.shape[-1])
    found = []
    for half in np.split(np.arange(maps), 2):
        heard = np.zeros_like(by_map)
        heard[:, half] = by_map[:, half]
        layer = net.params[first.layer] | {"kernel": heard.reshape(kernel.shape)}
        logits, _ = net.model.apply({"params": net.params | {first.layer: layer}}, image)
        found.append(np.asarray(jax.nn.softmax(logits))[0])
    return np.stack(found)
