"""Plans each epoch's order and each example's crop, as pure functions of (seed, epoch)."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from alexnet_jax.errors import UserError

# Each draw has a stream of its own, so that switching one off leaves the others as they were.
_ORDER, _OFFSET, _FLIP = 0, 1, 2
_NO_END = 2**40  # No run makes so many steps.

PADDING = -1  # The id of a row that is no example.
View = tuple[int, int, int]  # It is (y, x, flipped).


@dataclass(frozen=True)
class Epoch:
    """Steps [first, end) of a stream.

    order: int32 [(end - first) * batch_size], the examples of their batches' rows one after the
        other; PADDING where a row has none.
    crops: int32 [C, *views, 3], the (y, x, flipped) of example i at i modulo C.
    """

    first: int
    end: int
    order: np.ndarray
    crops: np.ndarray


@dataclass(frozen=True)
class Batches:
    """Says what the batches of a stream hold.

    steps: those that the stream has.
    batch_size: rows of a batch over all processes.
    views: () in training; (V,) where each image is cut into V views.
    epoch: the epoch that a step is in.
    """

    steps: range
    batch_size: int
    views: tuple[int, ...]
    epoch: Callable[[int], Epoch]

    def rows(self, step: int, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int32 [n] and crops int32 [n, *views, 3] of the rows [lo, hi) of a batch."""
        epoch = self.epoch(step)
        start = (step - epoch.first) * self.batch_size
        ids = epoch.order[start + lo : start + hi]
        return ids, epoch.crops[ids % len(epoch.crops)]


def training(
    num_examples: int,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    num_steps: int | None = None,
    margin: int,
    crop: bool,
    flip: bool,
) -> Batches:
    """Returns `num_steps` training batches from `start_step` on; None: without end.

    Step k of an epoch takes the examples [kB, (k+1)B) of `epoch_plan`; what is left of an epoch is
    dropped.
    """
    length = num_examples // batch_size

    @functools.lru_cache(maxsize=2)  # Threads are in two epochs at most.
    def planned(number: int) -> Epoch:
        order, crops = epoch_plan(seed, number, num_examples, margin, crop=crop, flip=flip)
        order = order[: length * batch_size]
        return Epoch(number * length, (number + 1) * length, order, crops)

    steps = range(start_step, _NO_END if num_steps is None else start_step + num_steps)
    return Batches(steps, batch_size, (), lambda step: planned(step // length))


def evaluation(num_examples: int, *, batch_size: int, views: Sequence[View]) -> Batches:
    """Returns batches with every example once, in order, the last one filled up with padding."""
    length = math.ceil(num_examples / batch_size)
    order = np.arange(length * batch_size, dtype=np.int32)
    order[num_examples:] = PADDING
    whole = Epoch(0, length, order, np.array(views, np.int32)[None])
    return Batches(range(length), batch_size, (len(views),), lambda step: whole)


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    # PCG64 is named, as default_rng may choose another generator in a later NumPy.
    return np.random.Generator(np.random.PCG64([seed, epoch, purpose]))


def epoch_plan(
    seed: int, epoch: int, num_examples: int, margin: int, *, crop: bool, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (order int32 [N], crops int32 [N, 3]) of one epoch.

    `order` is a permutation of the example ids. `crops` is indexed by example id; its columns are
    (y, x, flipped). `margin` is the resized side less the crop's side, in pixels. Offsets are
    uniform over 0..margin inclusive and flips have probability one half, both drawn for each image
    (the paper's section 4.1; the 2012 code drew once for 32 consecutive images). Without `crop` the
    offset is the centre, without `flip` nothing is mirrored. `seed` and `epoch` are not negative.
    """
    order = _generator(seed, epoch, _ORDER).permutation(num_examples).astype(np.int32)
    crops = np.zeros((num_examples, 3), np.int32)
    crops[:, :2] = margin // 2
    if crop:
        offsets = _generator(seed, epoch, _OFFSET)
        crops[:, :2] = offsets.integers(0, margin, (num_examples, 2), endpoint=True)
    if flip:
        crops[:, 2] = _generator(seed, epoch, _FLIP).integers(0, 2, num_examples)
    return order, crops


def views(count: int, margin: int) -> tuple[View, ...]:
    """Returns the crops averaged at test time, as (y, x, flipped).

    1: the centre. 10: corners, centre and their mirrors (the paper, section 4.1). 9: the 3x3 grid
    of offsets, without mirrors (CIFAR-10 in akrizhevsky/cuda-convnet2).
    """
    centre = margin // 2
    if count == 1:
        return ((centre, centre, 0),)
    if count == 9:
        grid = (0, centre, margin)
        return tuple((y, x, 0) for y in grid for x in grid)
    if count == 10:
        corners = ((0, 0), (0, margin), (centre, centre), (margin, 0), (margin, margin))
        return tuple((y, x, flipped) for flipped in (0, 1) for y, x in corners)
    raise UserError(f"views is {count}: choose 1, 9 or 10")
