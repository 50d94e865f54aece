"""Defines the net: one Flax module that runs a table of layers, such as the paper's (section 3).

Between its layers, a net in two towers keeps one array of maps [B, H, W, C/2] per tower. Its
parameters are those of the whole net, with the towers side by side on the last axis: the kernel of
conv2 is [5, 5, 48, 256], of which tower t has [..., 128 t : 128 (t + 1)].
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
    """Runs a table of layers, with a field for every choice that the paper varies.

    `models.create` fills the fields from a preset and checks them.
    """

    layers: tuple[Conv | Dense, ...]
    num_classes: int = 1000  # outputs; None in a configuration: as many as the data has classes
    towers: int = 2  # the halves of the two GPUs; 1: no groups (section 3.5)
    width: float = 1.0  # factor on the maps and units of every layer
    hidden_units: int | None = None  # units of fc6 and fc7; None: those of the table times width
    skip: tuple[str, ...] = ()  # convolutions left out, without their pooling: ('conv4',) (sect. 7)
    activation: str = "relu"  # 'relu', 'tanh' or 'sigmoid' (section 3.1)

    pooling: str = "max"  # or 'avg'
    pool_window: int = 3  # side in pixels; 3 overlaps at stride 2 (section 3.4)
    pool_stride: int = 2  # pixels from one window to the next
    pool_overhang: bool = False  # the last window may run past the border

    lrn: bool = True  # response normalisation, across maps (section 3.3) and within them
    lrn_size: int = 5  # maps that normalisation across maps sums over
    lrn_alpha: float = 1e-4  # factor on the sum of squares across maps
    lrn_beta: float = 0.75  # exponent of normalisation across maps
    lrn_k: float = 2.0  # constant of normalisation across maps
    lrn_joins: bool = False  # whether the sum crosses the border of the towers, as Caffe's does
    norm_size: int = 5  # side of the window of normalisation within a map, which net 145 has
    norm_alpha: float = 1e-3 / 25  # factor on the sum of squares within a map (k 1, beta 0.75)

    conv1_kernel: int | None = None  # side of conv1's kernels in pixels; None: that of the table
    conv1_stride: int | None = None  # stride of conv1 in pixels; None: that of the table
    conv1_padding: int | tuple[int, int] | None = None  # (before, after) each axis, or one for both

    # As in section 4.2, training drops units and rescales nothing, and testing multiplies by
    # 1 - dropout. Inverted dropout divides by 1 - dropout in training, as Caffe and PyTorch do.
    dropout: float = 0.5  # rate at which units of fc6 and fc7 are dropped
    inverted_dropout: bool = False  # whether to rescale in training instead of in testing

    kernel_init: str = "gaussian"  # the standard deviations of the table; 'he': sqrt(2 / fan-in)
    init_scale: float = 1.0  # factor on the standard deviation of all initial kernels
    layer_init_scales: tuple[
        tuple[str, float], ...
    ] = ()  # (layer, a further factor) of single ones
    bias_one: float = 1.0  # the initial bias where the paper and the table have 1 (section 5)

    fused_kernel: bool = False  # ReLU, LRN and max pooling in one kernel on CUDA; not measured yet
    dtype: str = "float32"  # type that is computed in; parameters are float64 with it, else float32
    placement: Placement = Placement()

    @nn.compact
    def __call__(self, images, *, train: bool = False, example_index=None):
        """Computes the logits, and all activations by name.

        Args:
            images: Float [N, H, W, 3]; nothing is subtracted from them or scaled here.
            train: Whether to drop units, which needs a random key named "dropout".
            example_index: The position of each example in the global batch, int32 [M], from which
                its dropout masks are drawn. M is the batch of the dense layers: N, or in the hybrid
                layout the examples of all devices on the mesh axis `model`.

        Returns:
            The logits [M, classes], which are float64 if `dtype` is and float32 otherwise, and a
            dict of activations: conv1 (the linear output), act1, lrn1, norm1 and pool1 where the
            net has them, …, fc6 and fc7 (after dropout), and fc8 (the logits). Where the net is
            split, the maps are those of this device.

        Raises:
            UserError: The images are too small, or `dtype` is float64 without JAX's x64 mode.
        """
        self._check_input(images)
        table = operations(self, images.shape[1:])
        place = self.placement
        activations = {}

        maps, read = [images.astype(self.dtype)], {}
        stages = fused.stages(self, table) if self.fused_kernel else {}
        for op in table:
            if not op.dense:
                read[op.name] = maps, self._weights(op) if op.kernel else ()
                if stage := stages.get(op.name):
                    maps = self._on_maps(stage.conv, *read[stage.conv.name], stage)
                else:
                    maps = self._on_maps(op, *read[op.name])
                activations[op.name] = _side_by_side(maps)

        h = place.enter_dense(place.join(maps))
        h = h.reshape(h.shape[0], -1)  # len(h) fails in an export with any batch size
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

    def _on_maps(self, op: Operation, maps, weights, stage: fused.Stage | None = None):
        """Applies an operation to maps, or the whole stage that it begins.

        Args:
            op: The operation.
            maps: One array per tower of this device, or one array that all towers read.
            weights: This device's part of its kernel and bias, if it has them.
            stage: Its stage if that runs as one kernel.

        Returns:
            One array per tower of this device.
        """
        place = self.placement
        towers = place.local_towers(op.towers)
        if op.reads == "both":
            maps = [place.join(maps)]
        if stage:
            return fused.run(stage, maps, *weights, parts=towers)
        if op.kernel or op.reads == "own":
            return apply(op, maps, *weights, parts=towers)
        whole = apply(op, maps, parts=1)[0]
        return jnp.split(place.own_slice(whole, op.layer, op.output[-1]), towers, axis=-1)

    def _on_features(self, op: Operation, h):
        """Applies an operation to features; returns this device's part of the output."""
        place = self.placement
        if op.kernel:
            return apply(op, [h], *self._weights(op), parts=1)[0]
        if op.kind == "act":  # It changes each feature by itself, so a part is enough.
            return op.function(h)
        whole = op.function(place.gather_features(h, op.layer, op.input[-1]))
        return place.own_slice(whole, op.layer, op.output[-1])

    def _drop(self, op: Operation, h, key, example_index):
        """Drops features by a mask that is drawn from `key`; in testing `key` is None."""
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
        """Returns the dtype of the parameters."""
        return "float64" if self.dtype == "float64" else "float32"

    def _check_input(self, images):
        if images.ndim != 4:
            raise UserError(
                f"the net takes images [N, H, W, 3], not an array of shape {images.shape}"
            )
        if self.dtype == "float64" and not jax.config.jax_enable_x64:
            raise UserError("model.dtype float64 needs JAX's 64-bit mode: set JAX_ENABLE_X64=1")


class Weights(nn.Module):
    """Holds a layer's kernel, initially Gaussian with mean 0, and its bias, initially constant."""

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
    """Draws the features that each example keeps, bool [N, features], from (key, example) alone."""

    def draw(index):
        # The probability is float32 so that the draws do not depend on the net's precision.
        return jax.random.bernoulli(jax.random.fold_in(key, index), jnp.float32(keep), (features,))

    return jax.vmap(draw)(example_index)


def _side_by_side(maps):
    return jnp.concatenate(maps, axis=-1) if len(maps) > 1 else maps[0]
