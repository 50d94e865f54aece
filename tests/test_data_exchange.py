"""Squares split over eight devices: the same batches as whole, and no more bytes than planned."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from alexnet_jax.data import device, exchange, plan
from alexnet_jax.data.decoded import Squares
from alexnet_jax.data.plan import epoch_plan, views
from alexnet_jax.errors import UserError
from tests.test_data import assert_equal, make_shardings, take

COUNT, SIDE, SIZE = 50, 10, 8


@pytest.fixture(scope="module")
def squares():
    random = np.random.default_rng(0)
    return Squares(
        name="made up",
        split="train",
        fingerprint="",
        stamp="",
        class_names=("ant", "bee"),
        squares=random.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8),
        labels=random.integers(0, 2, COUNT, np.int32),
        mask=(np.arange(COUNT) != 7).astype(np.float32),
        bad={7: "made up"},
    )


def placed(squares, shardings, monkeypatch, *, room):
    monkeypatch.setattr(device, "room", lambda devices: room)
    # Another object, as one lies where it was put first.
    return device.placed(dataclasses.replace(squares), shardings)


def training(batch_size, start_step=0):
    return plan.training(
        COUNT,
        seed=3,
        batch_size=batch_size,
        start_step=start_step,
        margin=SIDE - SIZE,
        crop=True,
        flip=True,
    )


@pytest.mark.parametrize(("mesh_shape", "images"), [((8,), None), ((4, 2), ("data", "model"))])
def test_split_squares_give_the_same_batches(squares, monkeypatch, mesh_shape, images):
    shardings = make_shardings(*mesh_shape, images=images)
    whole = placed(squares, shardings, monkeypatch, room=squares.squares.nbytes)
    split = placed(squares, shardings, monkeypatch, room=squares.squares.nbytes // 7)
    assert whole.squares.is_fully_replicated
    assert {len(shard.data) for shard in split.squares.addressable_shards} == {7}
    # Three steps an epoch; a pair of devices has up to six images to exchange, in two rounds.
    batches = training(48 if images is None else 16, start_step=1)
    expected = take(device.stream(whole, batches, SIZE, shardings), 5)
    assert_equal(take(device.stream(split, batches, SIZE, shardings), 5), expected)
    batches = plan.evaluation(COUNT, batch_size=16, views=views(10, SIDE - SIZE))
    expected = take(device.stream(whole, batches, SIZE, shardings), None)
    assert_equal(take(device.stream(split, batches, SIZE, shardings), None), expected)


def test_nothing_is_sent_from_the_host_between_steps_of_split_squares(squares, monkeypatch):
    shardings = make_shardings(8)
    split = placed(squares, shardings, monkeypatch, room=squares.squares.nbytes // 7)
    stream = device.stream(split, training(8), SIZE, shardings)
    next(stream)
    with jax.transfer_guard("disallow_explicit"):
        for _ in range(4):
            jax.block_until_ready(next(stream))


def test_the_bytes_exchanged_are_those_planned(squares, monkeypatch):
    """The compiled step has one all-to-all, of SLOTS crops for each device, in a loop."""
    shardings = make_shardings(8)
    split = placed(squares, shardings, monkeypatch, room=squares.squares.nbytes // 7)
    ids, crops = np.arange(16, dtype=np.int32), np.zeros((16, 3), np.int32)
    mesh = shardings["ids"].mesh
    exchanged = jax.jit(exchange.exchanged, static_argnums=(3, 4))
    text = exchanged.lower(split.squares, ids, crops, SIZE, mesh).compile().as_text()
    (shapes,) = re.findall(r"= \(?(.*?)\)? all-to-all\(", text)
    shapes = re.findall(r"u8\[([\d,]+)\]", shapes)  # One for each of the devices.
    sent = sum(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert sent == 8 * exchange.SLOTS * SIZE**2 * 3


def test_imagenet_on_eight_devices_sends_at_most_40_mb_a_step():
    order, _ = epoch_plan(0, 0, 1_281_167, 0, crop=False, flip=False)
    sent = exchange.bytes_sent(order, 1024, 1_281_167, 8, 224)
    assert len(sent) == 1251
    assert sent.max() <= 40e6
    assert 25e6 < sent.mean() < 32e6


def test_a_set_too_large_for_all_devices_is_refused_with_what_would_do(squares, monkeypatch):
    with pytest.raises(UserError, match=r"8 devices.*'mapped' or 'tfdata', or data.resize_size to"):
        placed(squares, make_shardings(8), monkeypatch, room=squares.squares.nbytes // 9)


def test_parts_larger_than_a_chunk_are_filled_piece_by_piece(squares, monkeypatch):
    monkeypatch.setattr(device, "_CHUNK", 3 * SIDE**2 * 3)
    split = placed(squares, make_shardings(8), monkeypatch, room=squares.squares.nbytes // 7)
    whole = np.asarray(split.squares)
    np.testing.assert_array_equal(whole[:COUNT], squares.squares)
    assert not whole[COUNT:].any()


class Numbered:
    """Squares that are made when they are asked for: the first four bytes are their number."""

    def __init__(self, count, side):
        self.num_examples, self.resize_size = count, side
        self.labels, self.mask = np.zeros(count, np.int32), np.ones(count, np.float32)

    def rows(self, lo, hi):
        numbers = np.arange(lo, hi, dtype=np.int32)
        rows = np.empty((hi - lo, self.resize_size**2 * 3), np.uint8)
        rows[:] = (numbers % 251)[:, None]
        rows[:, :4] = numbers.view(np.uint8).reshape(-1, 4)
        return rows.reshape(hi - lo, self.resize_size, self.resize_size, 3)


@pytest.mark.slow
def test_more_bytes_than_an_int32_counts_on_one_device():
    side = 64
    split = Numbered(2**31 // (side**2 * 3) + 2000, side)
    shardings = make_shardings(1)
    squares = device.placed(split, shardings).squares
    assert squares.nbytes > 2**31
    mesh = shardings["ids"].mesh
    ids = np.array([0, 5, 87_380, 87_381, 174_762, 174_763, split.num_examples - 1], np.int32)
    crops = np.zeros((len(ids), 3), np.int32)
    for taking in (
        jax.jit(lambda all_squares: exchange.cut(all_squares, ids, crops, side)),
        jax.jit(lambda all_squares: exchange.exchanged(all_squares, ids, crops, side, mesh)),
    ):
        images = np.asarray(taking(squares)).reshape(len(ids), -1)
        assert images[:, :4].copy().view(np.int32)[:, 0].tolist() == ids.tolist()
        assert (images[:, 4:] == (ids % 251)[:, None]).all()
