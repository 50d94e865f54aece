"""How one net is laid over the devices of a mesh axis: what lives where, and where they talk.

The net calls these methods at the places where the paper's two GPUs exchanged data. Whole on one
device, each is the identity.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax

from alexnet_jax.errors import UserError

LAYOUTS = ("data", "towers", "hybrid")


@dataclasses.dataclass(frozen=True)
class Placement:
    """The net's layout over the mesh axis `axis`, which has `shards` devices.

    data    The whole net on every device.
    towers  The paper's split (section 3.5): each device holds one tower, and its block of every
            layer's features. They talk into conv3, fc6, fc7 and fc8, and to gather the logits.
    hybrid  "One weird trick" (akrizhevsky/cuda-convnet2): the convolutions whole on every device,
            each on its own images; the dense layers split by features, on all the axis' images.

    With shards > 1 in towers or hybrid the net must run inside a shard_map over `axis`, and each
    device is given its own block of the last axis of those parameters that `splits` names.
    Raises UserError for an unknown layout, a missing axis, or towers on other than 1 or 2 devices.
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
        """Tells whether the parameters of a layer are split over the axis on their last dimension.

        `layer` is its name (conv1 … fc8), `features` the number of its outputs in the whole net.
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
        """Puts the maps of all towers side by side, from those of this device: [B, H, W, C]."""
        h = jnp.concatenate(maps, axis=-1) if len(maps) > 1 else maps[0]
        return self._gather(h, axis=-1) if self.layout == "towers" else h

    def enter_dense(self, h):
        """Returns the examples that the dense layers see on this device: [B, ...] → [B', ...].

        In the hybrid layout they are those of the whole axis, in the order of its devices.
        """
        return self._gather(h, axis=0) if self.layout == "hybrid" else h

    def gather_features(self, h, layer: str, features: int):
        """Gathers a layer's features from all devices: [B, local features] → [B, features]."""
        return self._gather(h, axis=-1) if self.splits(layer, features) else h

    def own_slice(self, whole, layer: str, features: int):
        """Cuts this device's block out of an array [..., features] of all the layer's features."""
        if not self.splits(layer, features):
            return whole
        size = features // self.shards
        start = lax.axis_index(self.axis) * size
        return lax.dynamic_slice_in_dim(whole, start, size, axis=-1)

    def _gather(self, h, axis):
        if self.shards == 1:
            return h
        return lax.all_gather(h, self.axis, axis=axis % h.ndim, tiled=True)
