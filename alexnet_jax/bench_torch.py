"""The same nets, steps and input in PyTorch, for `bench --against=torch`; nothing else imports it.

Two normalisations: `stock` is nn.LocalResponseNorm as PyTorch's users write it, over the maps of
both towers; `tuned` is written by hand, exactly ours: window sums over maps as a banded 1x1
convolution, square roots for the power 3/4, and the gradient in closed form. Each runs eagerly in
both memory formats, and compiled where a compiler works; the best of these is compared. The step is
ours but for what costs nothing: no colour noise, no counts of errors, and torch.optim.SGD (fused).
Each run first checks that the tuned net gives our logits.
"""

import io
import statistics
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax import console, data
from alexnet_jax.bench import timing
from alexnet_jax.compilation import Program
from alexnet_jax.data import decode
from alexnet_jax.data.plan import epoch_plan
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UserError
from alexnet_jax.models import AlexNet, Operation, operations

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as error:
    raise UserError(f"--against=torch needs PyTorch ({error}): pip install torch") from None

ACTIVATIONS = {"relu": lambda: nn.ReLU(inplace=True), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
POOLS = {"max_pool": nn.MaxPool2d, "avg_pool": nn.AvgPool2d}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SCREENING = 3  # turns of each variant, of which the best goes on


# The net


def build(model: AlexNet, params: Mapping, image_size: int, *, tuned: bool) -> nn.Sequential:
    """Translates `model` with the weights `params`: float [B, 3, S, S] to logits [B, classes].

    Raises:
        UserError: The net has an operation that PyTorch, or this file, has not.
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
        # Padding that no window reads is left out.
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
    if maps:  # ours reads [H, W, C], PyTorch's [C, H, W]
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
        alpha = model.lrn_alpha * model.lrn_size  # which PyTorch divides by the size
        return nn.LocalResponseNorm(model.lrn_size, alpha, model.lrn_beta, model.lrn_k)
    if op.kind == "lrn":
        towers = 1 if op.reads == "both" else op.towers
        window = _AcrossMaps(model.lrn_size, op.output[-1], towers)
        return _TunedNorm(window, model.lrn_alpha, model.lrn_beta, model.lrn_k)
    if op.kind in POOLS:
        return POOLS[op.kind](op.window, op.stride, ceil_mode=model.pool_overhang)
    kinds = {"local": "an untied layer", "act": f"the activation '{model.activation}'"}
    what = kinds.get(op.kind, "an operation of the table's own")
    raise UserError(f"--against=torch: PyTorch's net cannot have {op.name}, {what}")


class _Dropout(nn.Dropout):
    """The paper's rule in testing: outputs times the share that training keeps."""

    def forward(self, x):
        return super().forward(x) if self.training else x * (1 - self.p)


class _AcrossMaps(nn.Module):
    """Sums over `size` maps, each tower by itself: a banded matrix, as a 1x1 convolution."""

    def __init__(self, size, maps, towers):
        super().__init__()
        place = torch.arange(maps // towers)
        offset = place[None, :] - place[:, None]  # from the map that sums to one that is summed
        band = ((offset >= -(size // 2)) & (offset < size - size // 2)).float()
        self.towers = towers
        self.register_buffer("band", band.repeat(towers, 1)[:, :, None, None])
        self.register_buffer("mirrored", band.T.repeat(towers, 1)[:, :, None, None])

    def forward(self, x, scale, shift=None, mirrored=False):
        """scale times the sum, plus shift; for a gradient over the mirrored window."""
        band = scale * (self.mirrored if mirrored else self.band).to(x.dtype)
        bias = None if shift is None else band.new_full((len(band),), shift)
        return F.conv2d(x, band, bias, groups=self.towers)


class _WithinMap(nn.Module):
    """The same over a square of odd side within a map."""

    def __init__(self, size):
        super().__init__()
        if size % 2 == 0:
            raise UserError(f"--against=torch: model.norm_size={size} must be odd")
        self.size = size

    def forward(self, x, scale, shift=None, mirrored=False):
        """As `_AcrossMaps`; the mirrored window is the same."""
        mean = F.avg_pool2d(x, self.size, 1, self.size // 2)
        total = mean * (scale * self.size**2)
        return total if shift is None else total + shift


class _StockNorm(nn.Module):
    """As one writes it down."""

    def __init__(self, window, alpha, beta, k):
        super().__init__()
        self.window, self.alpha, self.beta, self.k = window, alpha, beta, k

    def forward(self, x):
        return x * self.window(x * x, self.alpha, self.k) ** -self.beta


class _TunedNorm(_StockNorm):
    """The same by square roots, with a gradient of its own; computed in float32 at least."""

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


# The step


class Contender:
    """A variant of the net with its optimizer: training steps and forward passes."""

    def __init__(self, run, params, batch, *, tuned: bool, layout: str, compiled: bool):
        config, self.device = run.config, _device()
        self.format = FORMATS[layout]
        self.net = build(run.model, params, config.data.image_size, tuned=tuned)
        if run.model.dtype == "float64":
            self.net = self.net.double()
        self.net = self.net.to(self.device, memory_format=self.format)
        self.run = torch.compile(self.net, dynamic=False) if compiled else self.net
        self.half = run.model.dtype == "bfloat16"
        self.dtype = torch.float64 if run.model.dtype == "float64" else torch.float32
        images = torch.from_numpy(np.array(batch["images"])).permute(0, 3, 1, 2)
        self.images = images.to(self.device).contiguous(memory_format=self.format)
        self.labels = torch.from_numpy(np.array(batch["labels"])).long().to(self.device)
        self.mean = torch.full((3, 1, 1), 120.0, device=self.device, dtype=self.dtype)
        self.scale = config.data.scale
        rate, decay = config.optim.learning_rate, config.optim.weight_decay
        kernels = [p for p in self.net.parameters() if p.ndim > 1]
        biases = [p for p in self.net.parameters() if p.ndim == 1]
        groups = [{"params": kernels, "weight_decay": decay}, {"params": biases}]
        self.optimizer = torch.optim.SGD(
            groups, lr=rate, momentum=config.optim.momentum, fused=self.dtype == torch.float32
        )

    def train(self, count: int) -> None:
        """Runs that many training steps on the batch."""
        self.net.train()
        for _ in range(count):
            images = (self.images.to(self.dtype) - self.mean) * self.scale
            self.optimizer.zero_grad()
            with self._precision():
                logits = self.run(images)
            F.cross_entropy(logits.to(self.dtype), self.labels).backward()
            self.optimizer.step()
        self._wait()

    def forward(self, images: jax.Array) -> Callable[[int], torch.Tensor]:
        """A contender for the timing of `images` [N, S, S, 3] forward; returns the logits."""
        x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(self.device)
        x = x.contiguous(memory_format=self.format)

        def run(count):
            self.net.eval()
            with torch.inference_mode(), self._precision():
                for _ in range(count):
                    logits = self.run(x)
            self._wait()
            return logits

        return run

    def _precision(self):
        return torch.autocast(self.device, torch.bfloat16, enabled=self.half)

    def _wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def _device() -> str:
    if jax.default_backend() == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError("JAX computes on a GPU here and PyTorch has none: install torch with CUDA")
    # As JAX does by default.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return "cuda"


def compare(
    run,
    params: Mapping,
    batch: Mapping,
    ours: Mapping[str, Callable],
    images: Mapping,
    repeats: int,
) -> tuple[dict[str, list[float]], dict]:
    """Times our tasks ('step' and forward passes) in turn with PyTorch's best variants.

    Args:
        ours: a contender for each task.
        images: those of each forward task, float [N, S, S, 3].

    Returns:
        Our times by task, and for each task and normalisation the best variant, its times, and
        `ratio`: how many times as fast ours is.
    """
    table = operations(run.model, run.config.data.image_size)
    normalised = any(op.kind in ("lrn", "norm") for op in table)
    # At its limit of programs the compiler would fall back to eager execution without a word.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    best, screened = {}, {}
    for tuned, layout, compiled in _variants(normalised):
        kind = "tuned" if tuned else "stock"
        name = f"{kind} {layout}{' compiled' if compiled else ''}"
        contender = Contender(run, params, batch, tuned=tuned, layout=layout, compiled=compiled)
        tasks = {task: contender.forward(each) for task, each in images.items()}
        try:
            if not compiled and (tuned or not normalised):
                _check_same(run, params, images, tasks)
            tasks["step"] = contender.train
            times = timing.take_turns(tasks, SCREENING)
        except Exception as error:
            if not compiled:
                raise
            console.say(f"{name} left out: {_line(error)}")
            continue
        screened[name] = {task: min(values) for task, values in times.items()}
        for task, values in times.items():
            if (task, kind) not in best or min(values) < best[task, kind][0]:
                best[task, kind] = (min(values), name, tasks[task])
    our_times, result = {}, {"version": torch.__version__, "screened": screened}
    for task, contender in ours.items():
        theirs = {kind: best[task, kind] for kind in ("stock", "tuned") if (task, kind) in best}
        turns = {"ours": contender} | {kind: each[2] for kind, each in theirs.items()}
        times = timing.take_turns(turns, repeats)
        our_times[task] = times["ours"]
        result[task] = {
            kind: {
                "variant": name,
                **timing.spread(times[kind]),
                **timing.ratios(times[kind], times["ours"]),
            }
            for kind, (_, name, _) in theirs.items()
        }
    return our_times, result


def _variants(normalised: bool) -> Iterator[tuple[bool, str, bool]]:
    for tuned in (False, True) if normalised else (False,):
        for compiled in (False, True):
            for layout in FORMATS:
                yield tuned, layout, compiled


def _check_same(run, params, images: Mapping, tasks: Mapping) -> None:
    """Raises RuntimeError unless both nets give the same logits."""
    task = next(iter(images))
    ours, _ = Program(run.model.apply)({"params": params}, images[task])
    ours = np.asarray(ours, np.float64)
    theirs = tasks[task](1).double().cpu().numpy()
    difference = abs(ours - theirs).max() / abs(ours).max()
    limit = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1}[run.model.dtype]
    if not difference < limit:
        raise RuntimeError(f"PyTorch's net gives other logits: {difference:.1e} of the largest")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# The input


class Photographs(torch.utils.data.Dataset):
    """As torchvision's users train: Pillow decodes, Resize, RandomCrop, flip; uint8 [S, S, 3]."""

    def __init__(self, name: str, data_dir: str, split: str, resize_size: int, image_size: int):
        self.opening = (name, data_dir, split)
        self.resize_size, self.image_size = resize_size, image_size
        self.source = None

    def __getitem__(self, i):
        """The image and its label."""
        if self.source is None:  # in each worker
            self.source = open_source(*self.opening)
        encoded, label = self.source.read(int(i))
        image = resized(encoded, self.resize_size)
        size = self.image_size
        x, y = (int(torch.randint(0, n - size + 1, ())) for n in image.size)
        image = image.crop((x, y, x + size, y + size))
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)), label


def resized(encoded: bytes, size: int) -> Image.Image:
    """pytorch/vision's Resize(size) of an image: the shorter side, bilinear with antialiasing."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    short = min(image.size)
    if short == size:
        return image
    return image.resize(tuple(int(size * n / short) for n in image.size), Image.Resampling.BILINEAR)


def loader(config: ConfigDict, dataset: data.Data, workers: int) -> Callable[[int], None]:
    """A contender: batches of a DataLoader."""
    spec = dataset.spec
    photographs = Photographs(
        spec.name, spec.data_dir, spec.train_split, dataset.resize_size, spec.image_size
    )
    order, _ = epoch_plan(config.seed, 0, dataset.num_train, 0, crop=False, flip=False)
    ids = []
    batches = torch.utils.data.DataLoader(
        photographs,
        batch_size=config.batch_size,
        sampler=ids,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="forkserver",  # a fork would copy JAX's locks
    )

    def run(count):
        ids[:] = np.resize(order, count * config.batch_size).tolist()
        for _ in batches:
            pass

    return run


def pixel_difference(config: ConfigDict, dataset: data.Data, count: int = 64) -> float:
    """Mean difference in grey levels between our squares and torchvision's Resize, CenterCrop."""
    spec, size = dataset.spec, dataset.resize_size
    source = open_source(spec.name, spec.data_dir, spec.train_split)
    differences = []
    for i in range(min(count, source.num_examples)):
        encoded, _ = source.read(i)
        image = resized(encoded, size)
        left, top = (round((n - size) / 2) for n in image.size)
        theirs = np.asarray(image.crop((left, top, left + size, top + size)), float)
        differences.append(np.abs(decode.square(encoded, size) - theirs).mean())
    return statistics.fmean(differences)
