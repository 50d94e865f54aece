"""Divides one net over the devices of a mesh axis, and defines what the devices exchange.

The net calls the methods of `Placement` at the points where the paper's two GPUs exchanged data. If
the net is whole on every device, each method returns its input.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax

from alexnet_jax.errors import UserError

LAYOUTS = ("data", "towers", "hybrid")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Describes how a net is divided over the mesh axis `axis`, which has `shards` devices.

    data    Every device has the whole net.
    towers  Each device has one tower and its block of every layer's features, as in the paper
            (section 3.5). The devices exchange maps or features before conv3, fc6, fc7 and fc8, and
            gather the logits.
    hybrid  Every device has all convolutions and applies them to its own images. The dense layers
            are split by features and applied to the images of all devices of the axis ("one weird
            trick", akrizhevsky/cuda-convnet2).

    In towers or hybrid with shards > 1, the net must run inside a shard_map over `axis`, where each
    device gets its own block of the last axis of those parameters for which `splits` is true.

    Raises:
        UserError: The layout is unknown, the axis is missing, or towers is not on 1 or 2 devices.
    """

    layout: str = "data"
    axis: str | None = None
    shards: int = 1

    def __post_init__(self):
        if self.layout not in LAYOUTS:
            raise UserError(f"mesh layout {self.layout!r}: choose one of {', '.join(LAYOUTS)}")
        if self.layout == "towers" and self.shards not in (1, 2):
            raise UserError(
                f"layout 'towers' over {self.shards} devices: the net has two towers, "
                "so its axis takes 1 or 2"
            )
        if self.layout != "data" and self.shards > 1 and self.axis is None:
            raise UserError(f"layout {self.layout!r} over {self.shards} devices needs a mesh axis")

    def splits(self, layer: str, features: int) -> bool:
        """Returns whether the parameters of a layer are split on their last dimension.

        Args:
            layer: The name of the layer (conv1 … fc8).
            features: The number of its outputs in the whole net.
        """
        if self.shards == 1 or self.layout == "data" or features % self.shards:
            return False
        return self.layout == "towers" or layer.startswith("fc")

    def local_features(self, layer: str, features: int) -> int:
        """Returns how many of the layer's features this device computes."""
        return features // self.shards if self.splits(layer, features) else features

    def local_towers(self, towers: int) -> int:
        """Returns how many of the net's towers this device holds."""
        if self.layout != "towers" or self.shards == 1:
            return towers
        if towers != self.shards:
            raise UserError(
                f"layout 'towers' over {self.shards} devices, but the net has {towers} tower(s): "
                "take a two-tower net, or the layout 'data' or 'hybrid'"
            )
        return 1

    def join(self, maps: list) -> jnp.ndarray:
        """Concatenates the maps of all towers, of which this device has `maps`: [B, H, W, C]."""
        h = jnp.concatenate(maps, axis=-1) if len(maps) > 1 else maps[0]
        return self._gather(h, axis=-1) if self.layout == "towers" else h

    def enter_dense(self, h):
        """Returns the examples that the dense layers read on this device: [B, ...] → [B', ...].

        In the hybrid layout these are the examples of all devices of the axis, in their order.
        """
        return self._gather(h, axis=0) if self.layout == "hybrid" else h

    def gather_features(self, h, layer: str, features: int):
        """Gathers a layer's features from all devices: [B, local features] → [B, features]."""
        return self._gather(h, axis=-1) if self.splits(layer, features) else h

    def own_slice(self, whole, layer: str, features: int):
        """Returns this device's block of an array [..., features] of all features of a layer."""
        if not self.splits(layer, features):
            return whole
        size = features // self.shards
        start = lax.axis_index(self.axis) * size
        return lax.dynamic_slice_in_dim(whole, start, size, axis=-1)

    def _gather(self, h, axis):
        if self.shards == 1:
            return h
        return lax.all_gather(h, self.axis, axis=axis % h.ndim, tiled=True)
