"""Order and crops of an epoch: exact permutations and draws, keyed by seed and epoch alone."""

import numpy as np
import pytest

from alexnet_jax.data.plan import epoch_plan, views
from alexnet_jax.errors import UserError


def plan(seed=0, epoch=0, num_examples=20_000, margin=32, crop=True, flip=True):
    return epoch_plan(seed, epoch, num_examples, margin, crop=crop, flip=flip)


def test_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [plan(seed, epoch)[0] for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(20_000))
    assert len({order.tobytes() for order in orders}) == 4
    np.testing.assert_array_equal(orders[3], plan(1, 1)[0])


def test_offsets_cover_the_margin_evenly_to_its_last_pixel_and_half_are_flipped():
    crops = plan()[1]
    assert crops.shape == (20_000, 3)
    assert crops.dtype == np.int32
    for axis in (0, 1):
        counts = np.bincount(crops[:, axis], minlength=33)
        assert len(counts) == 33  # The paper's 224 of 256: offsets 0 to 32.
        # 606 expected for each offset, deviation 24.
        assert counts.min() > 480
        assert counts.max() < 730
    assert abs(crops[:, 2].mean() - 0.5) < 0.02
    assert abs(np.corrcoef(crops.T) - np.eye(3)).max() < 0.03


def test_switching_a_draw_off_leaves_the_others():
    order, crops = plan()
    for crop, flip in [(False, True), (True, False), (False, False)]:
        other_order, other = plan(crop=crop, flip=flip)
        np.testing.assert_array_equal(other_order, order)
        np.testing.assert_array_equal(other[:, :2], crops[:, :2] if crop else 16)
        np.testing.assert_array_equal(other[:, 2], crops[:, 2] if flip else 0)


def test_without_margin_there_is_no_offset():
    assert not plan(margin=0)[1][:, :2].any()


def test_the_draws_are_these():
    """A resumed run meets the same batches only while these numbers stand."""
    order, crops = epoch_plan(7, 3, 8, 32, crop=True, flip=True)
    assert order.tolist() == [3, 5, 0, 4, 2, 7, 1, 6]
    assert crops.tolist() == [
        [23, 17, 1],
        [8, 1, 1],
        [12, 26, 0],
        [16, 29, 0],
        [4, 29, 0],
        [20, 14, 0],
        [30, 7, 1],
        [12, 17, 1],
    ]


def test_views_are_those_of_the_papers_tests():
    assert views(1, 32) == ((16, 16, 0),)
    places = {(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)}
    assert set(views(10, 32)) == {(*place, flipped) for place in places for flipped in (0, 1)}
    assert set(views(9, 8)) == {(y, x, 0) for y in (0, 4, 8) for x in (0, 4, 8)}
    with pytest.raises(UserError, match="1, 9 or 10"):
        views(5, 32)
