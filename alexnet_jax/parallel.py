"""Divides the batch and the net among the devices of a mesh.

There are three layouts of the same parameters on a mesh with the axes `data` and `model`:

data    The parameters are replicated, and the batch is split over all devices (both axes).
towers  The towers of the net are split over `model` and the batch over `data`, as on the two GPUs
        of 2012.
hybrid  The convolutions are laid out as in `data`. The fully connected layers are split over
        `model`, and each device applies its part to the images of its whole `model` group ("one
        weird trick", Krizhevsky 2014).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.errors import UserError, choose
from alexnet_jax.models.placement import LAYOUTS, Placement

REDUCE_DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class MeshSpec:
    """Configures how the batch and the net lie on the devices: the section `mesh`."""

    layout: str = "data"  # 'data', 'towers' or 'hybrid': see above
    data: int = -1  # devices over which the batch is split; -1: all that `model` leaves
    model: int = 1  # devices over which the net is split
    shard_dense: bool = False  # each device of `data` keeps and updates a part of the dense layers
    reduce_dtype: str | None = None  # of the gradients' sums: 'bfloat16'; None: the parameters'


@dataclass(frozen=True)
class Layout:
    """Holds a mesh, and describes how the batch and the net lie on it."""

    name: str
    mesh: Mesh
    shard_dense: bool = False
    reduce_dtype: str | None = None

    @property
    def placement(self) -> Placement:
        """Returns the placement of the net: the part of it that one device computes."""
        if self.name == "data" or self.mesh.shape["model"] == 1:
            return Placement()
        return Placement(layout=self.name, axis="model", shards=self.mesh.shape["model"])

    @property
    def images_spec(self) -> P:
        """Returns how images are split: over all devices that run convolutions on their own."""
        return P("data") if self.name == "towers" else P(("data", "model"))

    @property
    def labels_spec(self) -> P:
        """Returns how labels are split: as the logits are, in `hybrid` by whole `model` groups."""
        return P(("data", "model")) if self.name == "data" else P("data")

    @property
    def sum_axes(self) -> tuple[str, ...]:
        """Returns the axes over which the devices compute the loss of different examples."""
        return ("data", "model") if self.name == "data" else ("data",)

    @property
    def same_axes(self) -> tuple[str, ...]:
        """Returns the axes over which all devices have the same logits."""
        return () if self.name == "data" else ("model",)

    def batch_shardings(self) -> dict[str, NamedSharding]:
        """Returns a sharding for each key of a batch."""
        images = NamedSharding(self.mesh, self.images_spec)
        labels = NamedSharding(self.mesh, self.labels_spec)
        return dict(images=images, crops=images, labels=labels, mask=labels, ids=labels)

    def replicated(self) -> NamedSharding:
        """Returns the sharding of arrays that every device holds in full."""
        return NamedSharding(self.mesh, P())

    def param_specs(self, params: Mapping) -> dict:
        """Returns a PartitionSpec for each parameter, which splits its last axis or nothing."""
        return {
            layer: {name: self._leaf_spec(layer, leaf) for name, leaf in leaves.items()}
            for layer, leaves in params.items()
        }

    def state_shardings(self, state):
        """Returns a sharding for each array of a training state.

        A parameter or its velocity is recognised by the end of its path, ('conv1', 'kernel'), and
        lies as the parameter does; everything else is replicated.
        """

        def sharding(path, leaf):
            names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
            belongs = len(names) >= 2 and names[-1] in ("kernel", "bias")
            return NamedSharding(self.mesh, self._leaf_spec(names[-2], leaf) if belongs else P())

        return jax.tree_util.tree_map_with_path(sharding, state)

    def _leaf_spec(self, layer: str, leaf) -> P:
        axes = [None] * len(leaf.shape)
        if self.placement.splits(layer, leaf.shape[-1]):
            axes[-1] = "model"
        dense = len(leaf.shape) == 2
        if self.shard_dense and dense and leaf.shape[0] % self.mesh.shape["data"] == 0:
            axes[0] = "data"
        return P(*axes) if any(axes) else P()

    def missing_axes(self, spec: P) -> tuple[str, ...]:
        """Returns the axes of the mesh that a spec does not name."""
        named = jax.tree.leaves(tuple(spec))  # an entry is an axis, several axes, or None
        return tuple(axis for axis in self.mesh.axis_names if axis not in named)

    def as_computed(self, params: Mapping, specs: Mapping, dtypes: Mapping[str, str]) -> dict:
        """Returns the parameters that this device's program reads, inside a shard_map.

        Parts over `data` are gathered, and the result may differ on every device. The transpose of
        this function is where the devices' gradients are summed, in `reduce_dtype`.

        Args:
            params: the parameters, or the part of them that this device holds.
            specs: how they lie on the mesh (see `param_specs`).
            dtypes: the dtype in which each layer computes.
        """

        def computed(path, x, spec):
            layer, others = path[-2].key, self.missing_axes(spec)
            with jax.named_scope(layer):
                in_parts = spec[:1] == ("data",)
                return _as_computed(x, in_parts, others, dtypes[layer], self.reduce_dtype)

        return jax.tree_util.tree_map_with_path(computed, params, specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _as_computed(x, in_parts, others, dtype, reduce_dtype):
    """Casts to `dtype`, gathers parts over `data`, and varies over the other axes."""
    x = x.astype(dtype)
    if in_parts:
        x = lax.all_gather(x, "data", tiled=True)
    return lax.pcast(x, others, to="varying") if others else x


def _as_computed_fwd(x, *static):
    return _as_computed(x, *static), jnp.zeros((), x.dtype)


def _as_computed_bwd(in_parts, others, dtype, reduce_dtype, own, g):
    g = g.astype(reduce_dtype or own.dtype)
    if in_parts:
        g = lax.psum_scatter(g, "data", tiled=True)
    if others:
        g = lax.psum(g, others)
    return (g.astype(own.dtype),)


_as_computed.defvjp(_as_computed_fwd, _as_computed_bwd)


def make_layout(
    spec: MeshSpec,
    *,
    towers: int,
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """Makes the mesh, and checks that it fits the net and the batch.

    Args:
        spec: the layout, and the number of devices on each axis.
        towers: the number of towers of the net, 1 or 2.
        batch_size: the number of images in a batch of all devices together.
        devices: the devices of the mesh; None takes all that are available.

    Raises:
        UserError: the mesh does not fit the devices, the net or the batch.
    """
    name, data, model = choose(spec.layout, LAYOUTS, "mesh.layout"), spec.data, spec.model
    if spec.reduce_dtype is not None:
        choose(spec.reduce_dtype, REDUCE_DTYPES, "mesh.reduce_dtype")
    devices = list(devices or jax.devices())
    if model < 1 or (data < 1 and data != -1):
        raise UserError(f"mesh.data={data}, mesh.model={model}: give positive sizes, or data=-1")
    data = max(len(devices) // model, 1) if data == -1 else data
    if data * model > len(devices):
        raise UserError(
            f"mesh.data={data} x mesh.model={model} needs {data * model} devices and "
            f"{len(devices)} are here; lower them, or set mesh.data=-1 to take all there are"
        )
    if data * model < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"mesh.data={data} x mesh.model={model} leaves some of {len(devices)} devices idle: "
            "over several processes every device must be in the mesh; set mesh.data=-1"
        )
    if name == "towers" and model not in (1, 2):
        raise UserError(f"mesh.model={model}: the layout 'towers' splits two towers over 1 or 2")
    if name == "towers" and towers != 2:
        raise UserError("mesh.layout 'towers' needs model.towers=2: this net has one tower")
    mesh = jax.make_mesh(
        (data, model),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: data * model],
    )
    layout = Layout(name, mesh, spec.shard_dense, spec.reduce_dtype)
    shares = data if name == "towers" else data * model
    if batch_size % shares:
        raise UserError(
            f"batch_size={batch_size} cannot be divided over {shares} devices of the mesh; "
            f"take a multiple of {shares}"
        )
    return layout
