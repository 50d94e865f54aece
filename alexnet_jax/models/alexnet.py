"""The network: one Flax module that runs a table of layers, the paper's (its section 3) or another.

A net in two towers keeps, between its layers, one map [B, H, W, C/2] per tower. Its parameters are
those of the whole net, the towers side by side on the last axis: conv2's kernel is [5, 5, 48, 256],
of which tower t has [..., 128 t : 128 (t + 1)].
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from alexnet_jax.errors import UserError
from alexnet_jax.models import fused
from alexnet_jax.models.operations import Operation, apply, operations
from alexnet_jax.models.placement import Placement
from alexnet_jax.models.table import Conv, Dense


class AlexNet(nn.Module):
    """A table of layers and every choice that the paper varies.

    `create` in this package fills the fields from a preset, and checks them.
    """

    layers: tuple[Conv | Dense, ...]
    num_classes: int = 1000  # in a configuration None is as many as the data has
    towers: int = 2  # the two GPUs' halves; 1: no groups (section 3.5)
    width: float = 1.0  # factor on the maps and units of every layer
    hidden_units: int | None = None  # of fc6 and fc7; None: the table's times width
    skip: tuple[str, ...] = ()  # convolutions taken out, not their pooling: ('conv4',) (section 7)
    activation: str = "relu"  # 'relu', 'tanh' or 'sigmoid' (section 3.1)

    pooling: str = "max"  # or 'avg'
    pool_window: int = 3  # side in pixels; 3 overlaps at stride 2 (section 3.4)
    pool_stride: int = 2  # pixels from one window to the next
    pool_overhang: bool = False  # the last window may run past the border

    lrn: bool = True  # local response normalisation (section 3.3); False: none within maps either
    lrn_size: int = 5  # maps in its sum
    lrn_alpha: float = 1e-4  # factor on its sum of squares itself
    lrn_beta: float = 0.75  # its exponent
    lrn_k: float = 2.0  # its constant
    lrn_joins: bool = False  # it sums over the towers' border, as Caffe's, whose groups it ignores
    norm_size: int = 5  # side of the window of normalisation within a map: net 145's
    norm_alpha: float = 1e-3 / 25  # its factor on the sum of squares; k 1, beta 0.75 (the sources)

    conv1_kernel: int | None = None  # side of conv1's filters in pixels; None: the table's
    conv1_stride: int | None = None  # conv1's stride in pixels; None: the table's
    conv1_padding: int | tuple[int, int] | None = None  # (before, after) each axis, or on both

    # Section 4.2: training drops with this rate and rescales nothing, testing multiplies by
    # 1 - dropout. Inverted: training divides by it instead, as Caffe and PyTorch do.
    dropout: float = 0.5  # rate at which fc6 and fc7 drop units
    inverted_dropout: bool = False  # rescale in training, not in testing

    kernel_init: str = "gaussian"  # the table's deviations, or 'he': sqrt(2 / fan-in)
    init_scale: float = 1.0  # factor on the initial kernels' deviation
    layer_init_scales: tuple[tuple[str, float], ...] = ()  # (layer, factor), beside init_scale
    bias_one: float = 1.0  # initial bias where the paper and the table have 1 (section 5)

    fused_kernel: bool = False  # ReLU, LRN and max pooling as one kernel on CUDA: not measured yet
    dtype: str = "float32"  # of the computation; parameters are float32, or float64 with float64
    placement: Placement = Placement()

    @nn.compact
    def __call__(self, images, *, train: bool = False, example_index=None):
        """Returns the logits, and all activations by name.

        Args:
            images: Float [N, H, W, 3], already preprocessed: nothing is subtracted or scaled here.
            train: Whether to drop units; needs the "dropout" key.
            example_index: int32 [M], each example's place in the global batch, which keys its
                dropout masks; M is the dense layers' batch: N, or in the hybrid layout that of all
                the axis.

        Returns:
            Logits [M, classes], float32 (float64 if `dtype` is), and a dict of activations: conv1
            (the linear output), then act1, lrn1, norm1, pool1 as far as there, …, fc6 and fc7
            (after dropout), fc8 (the logits). In a split placement the maps are this device's.

        Raises:
            UserError: The images are too small, or `dtype` is float64 without JAX's x64 mode.
        """
        self._check_input(images)
        table = operations(self, images.shape[1:])
        place = self.placement
        activations = {}

        maps, read = [images.astype(self.dtype)], {}
        in_one = fused.chains(self, table) if self.fused_kernel else {}
        for op in table:
            if not op.dense:
                read[op.name] = maps
                if op.name in in_one:
                    first, constants = in_one[op.name]
                    with jax.named_scope(op.name):
                        maps = [fused.relu_lrn_max_pool(x, constants) for x in read[first]]
                else:
                    maps = self._on_maps(op, maps)
                activations[op.name] = _side_by_side(maps)

        h = place.enter_dense(place.join(maps))
        h = h.reshape(h.shape[0], -1)  # not len(h): export leaves the batch open
        if example_index is None:
            example_index = jnp.arange(h.shape[0])
        drop_key = self.make_rng("dropout") if train and self.dropout else None
        layers = itertools.groupby((op for op in table if op.dense), key=lambda op: op.layer)
        for number, (layer, ops) in enumerate(layers):
            for op in ops:
                if op.kind == "drop":
                    key = jax.random.fold_in(drop_key, number) if train else None
                    h = self._drop(op, h, key, example_index)
                else:
                    h = self._on_features(op, h)
            h = activations[layer] = place.gather_features(h, layer, op.output[-1])
        return h, activations

    def _on_maps(self, op: Operation, maps):
        """Returns one map per tower of this device, from one per tower, or one that all read."""
        place = self.placement
        towers = place.local_towers(op.towers)
        if op.reads == "both":
            maps = [place.join(maps)]
        if op.kernel:
            return apply(op, maps, *self._weights(op), parts=towers)
        if op.reads == "own":
            return apply(op, maps, parts=towers)
        whole = apply(op, maps, parts=1)[0]
        return jnp.split(place.own_slice(whole, op.layer, op.output[-1]), towers, axis=-1)

    def _on_features(self, op: Operation, h):
        """Returns this device's features, from all where the operation reads them, else its own."""
        place = self.placement
        if op.kernel:
            return apply(op, [h], *self._weights(op), parts=1)[0]
        if op.kind == "act":  # of each feature by itself
            return op.function(h)
        whole = op.function(place.gather_features(h, op.layer, op.input[-1]))
        return place.own_slice(whole, op.layer, op.output[-1])

    def _drop(self, op: Operation, h, key, example_index):
        """Drops by a mask that `key` draws in training; in testing there is no key."""
        keep = 1 - self.dropout
        if key is None:
            return h if self.inverted_dropout else h * keep
        mask = keep_masks(key, example_index, keep, op.output[-1])
        h = h * self.placement.own_slice(mask, op.layer, op.output[-1]).astype(h.dtype)
        return h / keep if self.inverted_dropout else h

    def _weights(self, op: Operation):
        """Returns this device's part of an operation's kernel and bias."""
        features = self.placement.local_features(op.layer, op.kernel[-1])
        kernel, bias = ((*shape[:-1], features) for shape in (op.kernel, op.bias))
        return Weights(kernel, bias, op.std, op.constant, self.param_dtype, name=op.layer)()

    @property
    def param_dtype(self) -> str:
        """The dtype of the parameters."""
        return "float64" if self.dtype == "float64" else "float32"

    def _check_input(self, images):
        if images.ndim != 4:
            raise UserError(
                f"the net takes images [N, H, W, 3], not an array of shape {images.shape}"
            )
        if self.dtype == "float64" and not jax.config.jax_enable_x64:
            raise UserError("model.dtype float64 needs JAX's 64-bit mode: set JAX_ENABLE_X64=1")


class Weights(nn.Module):
    """Owns a layer's kernel, Gaussian with mean 0, and its constant bias."""

    shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    std: float
    bias: float
    dtype: str

    @nn.compact
    def __call__(self):
        """Returns the kernel and the bias."""
        kernel = self.param("kernel", nn.initializers.normal(self.std, self.dtype), self.shape)
        bias = self.param("bias", nn.initializers.constant(self.bias, self.dtype), self.bias_shape)
        return kernel, bias


def keep_masks(key, example_index, keep: float, features: int):
    """Returns which features each example keeps, by (key, example) alone: bool [N, features]."""

    def draw(index):
        # A float32 probability: the same draws whatever the precision of the net.
        return jax.random.bernoulli(jax.random.fold_in(key, index), jnp.float32(keep), (features,))

    return jax.vmap(draw)(example_index)


def _side_by_side(maps):
    return jnp.concatenate(maps, axis=-1) if len(maps) > 1 else maps[0]
