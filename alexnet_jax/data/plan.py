"""The order of every epoch and the crop of every example: pure functions of (seed, epoch)."""

import numpy as np

from alexnet_jax.errors import UserError

# Each draw has a stream of its own, so that switching one off leaves the others as they were.
_ORDER, _OFFSET, _FLIP = 0, 1, 2

View = tuple[int, int, int]  # y, x, flipped


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    # PCG64 by name: default_rng may choose another generator in a later NumPy.
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
