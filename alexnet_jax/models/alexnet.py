"""The network: one Flax module that runs a table of layers, the paper's (its section 3) or another.

A table is a tuple of `Conv` rows, then `Dense` rows; `presets.py` has the tables. A net in two
towers keeps, between its layers, one map [B, H, W, C/2] per tower. Its parameters are those of the
whole net, the towers side by side on the last axis: conv2's kernel is [5, 5, 48, 256], of which
tower t has [..., 128 t : 128 (t + 1)].
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from alexnet_jax.errors import UserError
from alexnet_jax.models import ops
from alexnet_jax.models.placement import Placement


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution and the operations after it, in order, each once per tower.

    then: "act", "lrn" (across maps), "norm" (within each map), "pool" (as the net's fields say) or
    "avg_pool" (average, whatever they say).
    """

    name: str
    maps: int
    kernel: int
    stride: int = 1
    padding: int | tuple[int, int] = 0  # on both axes: on each side, or (before, after)
    joins: bool = False  # each tower reads the maps of both, not only its own
    std: float = 0.01
    bias: float = 0.0
    then: tuple[str, ...] = ("act",)
    local: bool = False  # untied: a kernel and a bias for every output position

    @property
    def number(self) -> str:
        """ "1" of conv1: what the operations after it are numbered by."""
        return self.name.lstrip("abcdefghijklmnopqrstuvwxyz")


@dataclasses.dataclass(frozen=True)
class Dense:
    """A fully connected layer; it reads the features of both towers. then: "act", "drop"."""

    name: str
    units: int | None = None  # None: one per class
    std: float = 0.01
    bias: float = 0.0
    then: tuple[str, ...] = ()


class AlexNet(nn.Module):
    """A table of layers and every choice that the paper varies.

    `create` in this package fills the fields from a preset, and checks them.
    """

    layers: tuple[Conv | Dense, ...]
    num_classes: int = 1000
    towers: int = 2
    width: float = 1.0  # multiplies the maps and hidden units of every layer
    hidden_units: int | None = None  # of each hidden dense layer, instead of the table's x width
    skip: tuple[str, ...] = ()  # convolutions taken out (section 6); their pooling stays
    activation: str = "relu"

    pooling: str = "max"
    pool_window: int = 3  # overlapping pooling, section 3.4
    pool_stride: int = 2
    pool_overhang: bool = False  # the last window may run past the border

    lrn: bool = True  # normalisation, within maps too; False leaves all of it out
    lrn_size: int = 5  # these four: section 3.3
    lrn_alpha: float = 1e-4  # multiplies the sum of squares itself
    lrn_beta: float = 0.75
    lrn_k: float = 2.0
    lrn_joins: bool = False  # it sums over the towers' border, as Caffe's, whose groups it ignores
    norm_size: int = 5  # within maps: net 145's, as the sources' k 1 and beta 0.75
    norm_alpha: float = 1e-3 / 25

    conv1_kernel: int | None = None  # these three, for small images: None is the table's
    conv1_stride: int | None = None
    conv1_padding: int | tuple[int, int] | None = None

    # Section 4.2: training drops with this rate and rescales nothing, testing multiplies by
    # 1 - dropout. Inverted: training divides by it instead, as Caffe and PyTorch do.
    dropout: float = 0.5
    inverted_dropout: bool = False

    kernel_init: str = "gaussian"  # "gaussian": the table's std; "he": sqrt(2 / fan-in)
    init_scale: float = 1.0  # multiplies either
    layer_init_scales: tuple[tuple[str, float], ...] = ()  # (layer, factor), beside init_scale
    bias_one: float = 1.0  # what a 1 in the table's biases stands for

    dtype: str = "float32"  # of the computation; parameters are float32, or float64 with float64
    placement: Placement = Placement()

    @nn.compact
    def __call__(self, images, *, train: bool = False, example_index=None):
        """Logits, and all activations by name.

        Args:
          images: float [N, H, W, 3], already preprocessed: nothing is subtracted or scaled here.
          train: whether to drop units; needs the "dropout" key.
          example_index: int32 [M], each example's place in the global batch, which keys its dropout
            masks; M is the dense layers' batch: N, or in the hybrid layout that of all the axis.

        Returns:
          logits [M, classes], float32 (float64 if `dtype` is), and a dict of activations: conv1
          (the linear output), then act1, lrn1, norm1, pool1 as far as there, …, fc6 and fc7 (after
          dropout), fc8 (the logits). In a split placement the maps are this device's.

        Raises UserError if the images are too small, or `dtype` is float64 without JAX's x64 mode.
        """
        self._check_input(images)
        place = self.placement
        convs = [row for row in self.layers if isinstance(row, Conv)]
        dense = [row for row in self.layers if isinstance(row, Dense)]
        activations = {}

        maps = [images.astype(self.dtype)]
        joins = False
        for row in convs:
            joins = joins or row.joins
            then = row.then
            if row.name in self.skip:  # if it joins the towers, the next layer does
                then = [op for op in then if op.endswith("pool")]
            else:
                maps = self._convolve(row, [place.join(maps)] if joins else maps)
                activations[row.name] = _side_by_side(maps)
                joins = False
            for op in then:
                if self.lrn or op not in ("lrn", "norm"):
                    maps = self._apply(op, row, maps)
                    activations[op.removeprefix("avg_") + row.number] = _side_by_side(maps)

        h = place.enter_dense(place.join(maps))
        h = h.reshape(h.shape[0], -1)  # not len(h): export leaves the batch open
        if example_index is None:
            example_index = jnp.arange(h.shape[0])
        drop_key = self.make_rng("dropout") if train and self.dropout else None
        for number, row in enumerate(dense):
            units = self._units(row)
            h = self._connect(row, h, units)
            if "act" in row.then:
                h = ops.ACTIVATIONS[self.activation](h)
            if "drop" in row.then and self.dropout:
                mask = None
                if train:
                    key = jax.random.fold_in(drop_key, number)
                    mask = keep_masks(key, example_index, 1 - self.dropout, units)
                    mask = place.own_slice(mask, row.name, units)
                h = self._drop(h, mask)
            h = place.gather_features(h, row.name, units)
            activations[row.name] = h
        return h, activations

    def _convolve(self, row, inputs):
        """One map per tower of this device, from one input per tower, or one that all read."""
        towers = self.placement.local_towers(self.towers)
        features = self.placement.local_features(row.name, self._scaled(row.maps))
        size, stride, padding = self.geometry(row)
        out = [ops.conv_size(n, size, stride, padding) for n in inputs[0].shape[1:3]]
        self._check_size(row.name, inputs[0], out, f"{size}x{size} kernel")

        shape = (size, size, inputs[0].shape[-1], features)
        bias_shape = (features,)
        if row.local:
            shape, bias_shape = (*out, *shape), (*out, features)
        kernel, bias = self._weights(row, shape, bias_shape, math.prod(shape[-4:-1]))

        kernels = jnp.split(kernel.astype(self.dtype), len(inputs), axis=-1)
        biases = jnp.split(bias.astype(self.dtype), len(inputs), axis=-1)
        maps = []
        for x, kernel, bias in zip(inputs, kernels, biases, strict=True):
            if row.local:
                maps.append(ops.local_conv(x, kernel, padding=padding) + bias)
            else:
                conv = ops.first_conv if row is self.layers[0] else ops.conv
                maps.append(conv(x, kernel, stride=stride, padding=padding) + bias)
        return maps if len(maps) == towers else jnp.split(maps[0], towers, axis=-1)

    def _connect(self, row, h, units):
        """The dense layer's features on this device. Logits are computed in float32, or wider."""
        local = self.placement.local_features(row.name, units)
        kernel, bias = self._weights(row, (h.shape[-1], local), (local,), h.shape[-1])
        dtype = self._param_dtype if row is self.layers[-1] else self.dtype
        return h.astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype)

    def _drop(self, h, mask):
        """Drops by the mask in training; in testing there is none."""
        keep = 1 - self.dropout
        if mask is None:
            return h if self.inverted_dropout else h * keep
        h = h * mask.astype(h.dtype)
        return h / keep if self.inverted_dropout else h

    def _weights(self, row, shape, bias_shape, fan_in):
        std = math.sqrt(2 / fan_in) if self.kernel_init == "he" else row.std
        bias = self.bias_one if row.bias == 1 else row.bias
        std *= self.init_scale * dict(self.layer_init_scales).get(row.name, 1.0)
        return Weights(shape, bias_shape, std, bias, self._param_dtype, name=row.name)()

    def _apply(self, op, row, maps):
        if op == "lrn" and self.lrn_joins:
            whole = self._apply_to(self.placement.join(maps), op, row)
            own = self.placement.own_slice(whole, row.name, whole.shape[-1])
            return jnp.split(own, len(maps), axis=-1)
        return [self._apply_to(x, op, row) for x in maps]

    def _apply_to(self, x, op, row):
        if op == "act":
            return ops.ACTIVATIONS[self.activation](x)
        if op == "lrn":
            return ops.local_response_norm(
                x, size=self.lrn_size, alpha=self.lrn_alpha, beta=self.lrn_beta, k=self.lrn_k
            )
        if op == "norm":
            return ops.within_map_norm(x, size=self.norm_size, alpha=self.norm_alpha, beta=0.75)
        pooling = dict(
            window=self.pool_window, stride=self.pool_stride, overhang=self.pool_overhang
        )
        out = [ops.pool_size(n, **pooling) for n in x.shape[1:3]]
        self._check_size(
            f"pool{row.number}", x, out, f"{self.pool_window}x{self.pool_window} window"
        )
        average = op == "avg_pool" or self.pooling == "avg"
        return (ops.avg_pool if average else ops.max_pool)(x, **pooling)

    def geometry(self, row):
        """Kernel size, stride and (before, after) padding of a convolution."""
        size, stride, padding = row.kernel, row.stride, row.padding
        if row is self.layers[0]:
            size = size if self.conv1_kernel is None else self.conv1_kernel
            stride = stride if self.conv1_stride is None else self.conv1_stride
            padding = padding if self.conv1_padding is None else self.conv1_padding
        return size, stride, (padding, padding) if isinstance(padding, int) else tuple(padding)

    def _units(self, row):
        if row.units is None:
            return self.num_classes
        return self._scaled(row.units) if self.hidden_units is None else self.hidden_units

    def _scaled(self, features):
        """`width` times as many, rounded to a multiple of the towers."""
        return max(1, round(features * self.width / self.towers)) * self.towers

    @property
    def _param_dtype(self):
        return "float64" if self.dtype == "float64" else "float32"

    def _check_input(self, images):
        if images.ndim != 4:
            raise UserError(
                f"the net takes images [N, H, W, 3], not an array of shape {images.shape}"
            )
        if self.dtype == "float64" and not jax.config.jax_enable_x64:
            raise UserError("model.dtype float64 needs JAX's 64-bit mode: set JAX_ENABLE_X64=1")

    def _check_size(self, name, x, out, window):
        if min(out) < 1:
            raise UserError(
                f"{name}: its {window} doesn't fit its {x.shape[1]}x{x.shape[2]} input: the images "
                "are too small for this net; take larger ones, or a smaller conv1_kernel and "
                "conv1_stride, or more conv1_padding"
            )


class Weights(nn.Module):
    """Owns a layer's kernel, Gaussian with mean 0, and its constant bias."""

    shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    std: float
    bias: float
    dtype: str

    @nn.compact
    def __call__(self):
        """Kernel and bias."""
        kernel = self.param("kernel", nn.initializers.normal(self.std, self.dtype), self.shape)
        bias = self.param("bias", nn.initializers.constant(self.bias, self.dtype), self.bias_shape)
        return kernel, bias


def keep_masks(key, example_index, keep: float, features: int):
    """Which features each example keeps: bool [N, features], drawn from (key, example) alone."""

    def draw(index):
        # A float32 probability: the same draws whatever the precision of the net.
        return jax.random.bernoulli(jax.random.fold_in(key, index), jnp.float32(keep), (features,))

    return jax.vmap(draw)(example_index)


def _side_by_side(maps):
    return jnp.concatenate(maps, axis=-1) if len(maps) > 1 else maps[0]
