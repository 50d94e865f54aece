"""Translates nets into PyTorch, for `bench --against=torch`.

There are two normalisations. `stock` is nn.LocalResponseNorm as users of PyTorch write it, over the
maps of both towers. `tuned` is written by hand and equals ours: it has window sums over maps as a
banded 1x1 convolution, square roots for the power 3/4, and a closed-form gradient.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from alexnet_jax.errors import UserError
from alexnet_jax.models import AlexNet, Operation, operations

ACTIVATIONS = {"relu": lambda: nn.ReLU(inplace=True), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
POOLS = {"max_pool": nn.MaxPool2d, "avg_pool": nn.AvgPool2d}


def build(model: AlexNet, params: Mapping, image_size: int, *, tuned: bool) -> nn.Sequential:
    """Translates `model` with the weights `params`: float [B, 3, S, S] to logits [B, classes].

    Raises:
        UserError: The net has an operation that PyTorch or this module does not have.
    """
    stages, maps = [], None
    for op in operations(model, image_size):
        weights = [np.asarray(array) for array in _weights(params, op)]
        if op.kind == "conv":
            stages += _convolution(op, *weights)
        elif op.kind == "dense":
            if maps:
                stages.append(nn.Flatten())
            stages.append(_linear(maps, *weights))
        else:
            stages.append(_operation(op, model, tuned))
        maps = None if op.dense else op.output
    return nn.Sequential(*stages)


def _weights(params: Mapping, op: Operation) -> tuple:
    return (params[op.name]["kernel"], params[op.name]["bias"]) if op.kernel else ()


def _convolution(op: Operation, kernel: np.ndarray, bias: np.ndarray) -> list[nn.Module]:
    height, width = (
        # Padding that no window reads is left out, as in ours.
        max(0, (out - 1) * op.stride + op.window - op.padding[0] - size)
        for size, out in zip(op.input[:2], op.output[:2], strict=True)
    )
    before = op.padding[0]
    stages, padding = [], before
    if (height, width) != (before, before):
        stages, padding = [nn.ZeroPad2d((before, width, before, height))], 0
    groups = op.input[-1] // op.kernel[2]
    sizes = dict(stride=op.stride, padding=padding, groups=groups)
    conv = nn.Conv2d(op.input[-1], op.output[-1], op.window, **sizes)
    return [*stages, _filled(conv, kernel.transpose(3, 2, 0, 1), bias)]


def _linear(maps: tuple[int, ...] | None, kernel: np.ndarray, bias: np.ndarray) -> nn.Module:
    if maps:  # Ours reads [H, W, C], PyTorch's [C, H, W].
        kernel = kernel.reshape(*maps, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    return _filled(nn.Linear(*kernel.shape), kernel.T, bias)


def _filled(layer: nn.Module, weight: np.ndarray, bias: np.ndarray) -> nn.Module:
    layer = layer.to(torch.tensor(bias).dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def _operation(op: Operation, model: AlexNet, tuned: bool) -> nn.Module:
    if op.kind == "act" and model.activation in ACTIVATIONS:
        return ACTIVATIONS[model.activation]()
    if op.kind == "drop":
        return nn.Dropout(model.dropout) if model.inverted_dropout else _Dropout(model.dropout)
    if op.kind == "norm":
        norm = _TunedNorm if tuned else _StockNorm
        return norm(_WithinMap(model.norm_size), model.norm_alpha, 0.75, 1.0)
    if op.kind == "lrn" and not tuned:
        alpha = model.lrn_alpha * model.lrn_size  # PyTorch divides it by the size.
        return nn.LocalResponseNorm(model.lrn_size, alpha, model.lrn_beta, model.lrn_k)
    if op.kind == "lrn":
        towers = 1 if op.reads == "both" else op.towers
        window = _AcrossMaps(model.lrn_size, op.output[-1], towers)
        return _TunedNorm(window, model.lrn_alpha, model.lrn_beta, model.lrn_k)
    if op.kind in POOLS:
        return POOLS[op.kind](op.window, op.stride, ceil_mode=model.pool_overhang)
    kinds = {"local": "an untied layer", "act": f"the activation '{model.activation}'"}
    what = kinds.get(op.kind, "an operation with its own function")
    raise UserError(f"--against=torch: PyTorch's net cannot have {op.name}, {what}")


class _Dropout(nn.Dropout):
    """Drops as the paper does: in testing, outputs are multiplied by the share that was kept."""

    def forward(self, x):
        return super().forward(x) if self.training else x * (1 - self.p)


class _AcrossMaps(nn.Module):
    """Sums over `size` maps of each tower, by a 1x1 convolution with a banded matrix."""

    def __init__(self, size, maps, towers):
        super().__init__()
        place = torch.arange(maps // towers)
        offset = place[None, :] - place[:, None]  # from the map of a sum to a map that it adds
        band = ((offset >= -(size // 2)) & (offset < size - size // 2)).float()
        self.towers = towers
        self.register_buffer("band", band.repeat(towers, 1)[:, :, None, None])
        self.register_buffer("mirrored", band.T.repeat(towers, 1)[:, :, None, None])

    def forward(self, x, scale, shift=None, mirrored=False):
        """Returns `scale` times the sum, plus `shift`; a gradient needs the mirrored window."""
        band = scale * (self.mirrored if mirrored else self.band).to(x.dtype)
        bias = None if shift is None else band.new_full((len(band),), shift)
        return F.conv2d(x, band, bias, groups=self.towers)


class _WithinMap(nn.Module):
    """Sums over a square of `size` x `size` pixels within a map; `size` is odd."""

    def __init__(self, size):
        super().__init__()
        if size % 2 == 0:
            raise UserError(f"--against=torch: model.norm_size={size} must be odd")
        self.size = size

    def forward(self, x, scale, shift=None, mirrored=False):
        """Returns `scale` times the sum, plus `shift`; the mirrored window is the same."""
        mean = F.avg_pool2d(x, self.size, 1, self.size // 2)
        total = mean * (scale * self.size**2)
        return total if shift is None else total + shift


class _StockNorm(nn.Module):
    """Normalises as the formula says, with a general power."""

    def __init__(self, window, alpha, beta, k):
        super().__init__()
        self.window, self.alpha, self.beta, self.k = window, alpha, beta, k

    def forward(self, x):
        return x * self.window(x * x, self.alpha, self.k) ** -self.beta


class _TunedNorm(_StockNorm):
    """Normalises with square roots and its own gradient, in float32 or wider."""

    def forward(self, x):
        return _Normalise.apply(x, self.window, self.alpha, self.beta, self.k)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, window, alpha, beta, k):
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            d = window(wide * wide, alpha, k)
            if beta == 0.75:
                root = d.rsqrt()
                inverse = root * root.sqrt()
            else:
                inverse = d**-beta
            ctx.save_for_backward(wide, d, inverse)
            ctx.window, ctx.factor, ctx.dtype = window, -2 * alpha * beta, x.dtype
            return (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        x, d, inverse = ctx.saved_tensors
        scaled = g.to(x.dtype) * inverse
        total = ctx.window(scaled * x / d, ctx.factor, mirrored=True)
        return torch.addcmul(scaled, x, total).to(ctx.dtype), None, None, None, None
