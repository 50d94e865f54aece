"""Times the step and forward passes in PyTorch, in turn with ours (`bench step --against=torch`).

Each net of torch_nets.py runs eagerly in both memory formats, and compiled if a compiler works; the
fastest variant is compared. The step does the same as ours, except for what costs no time: it has
no colour noise, counts no errors, and uses torch.optim.SGD (fused). Each comparison first checks
that the tuned net gives our logits.
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import torch
from torch.nn import functional as F

from alexnet_jax import console
from alexnet_jax.bench import timing
from alexnet_jax.bench.torch_nets import build
from alexnet_jax.errors import UserError
from alexnet_jax.models import operations
from alexnet_jax.runtime.compilation import Program

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SCREENING = 3  # turns of each variant, of which the fastest is then compared


class Contender:
    """Runs training steps and forward passes of one variant of the net."""

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
        self.scale = config.preprocess.scale
        rate, decay = config.optim.learning_rate, config.optim.weight_decay
        kernels = [p for p in self.net.parameters() if p.ndim > 1]
        biases = [p for p in self.net.parameters() if p.ndim == 1]
        groups = [{"params": kernels, "weight_decay": decay}, {"params": biases}]
        self.optimizer = torch.optim.SGD(
            groups, lr=rate, momentum=config.optim.momentum, fused=self.dtype == torch.float32
        )

    def train(self, count: int) -> None:
        """Runs `count` training steps on the batch."""
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
        """Returns a contender for the forward pass of `images` [N, S, S, 3], with their logits."""
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
        raise UserError("JAX uses a GPU here, but PyTorch cannot: install torch with CUDA")
    # JAX has the same default.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return "cuda"


def compare(
    run, params: Mapping, batch: Mapping, ours: Mapping[str, Callable], images: dict, repeats: int
) -> tuple[dict[str, list[float]], dict]:
    """Times our tasks ('step' and forward passes) in turn with PyTorch's best variants.

    Args:
        run: the run, whose model, dtype, image scale and fields of `optim` PyTorch takes over.
        params: the net's parameters, float32 arrays by layer and name.
        batch: a training batch, as `data.train_batches` gives it.
        ours: a contender for each task.
        images: those of each forward task, float [N, S, S, 3].
        repeats: turns that a median is taken over.

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
