"""The compiled train step sends between devices what the plan says, to the byte, and no more.

The plan is section 9 of the fact sheet (shared/reference/original_alexnet.md), for 128 images in
float32: (a) data parallel, (b) two towers, (c) "one weird trick". Ours differs in three places:
fc8 is split by classes in all split layouts, as (c) has it, and not on one GPU as in (b); the
gradient of the logits, which each device has whole, is scattered back by the transpose of their
gathering; and scalars are summed: the step's sums (loss, top 1, top 5, count), and one for each
part of the update's norm that lies split.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import models, optim
from alexnet_jax.bench.collectives import Collective, collectives
from alexnet_jax.parallel import MeshSpec, make_layout
from alexnet_jax.preprocess import Preprocess
from alexnet_jax.step import init_state, make_train_step

BATCH, SIZE, FLOAT = 128, 224, 4
FACT_SHEET = {"a": 243_860_896, "b": 30_015_488, "c": 19_047_680}  # bytes sent per device

CONV3 = 13 * 13 * 128 * BATCH * FLOAT  # one tower's maps into conv3
FC6 = 6 * 6 * 128 * BATCH * FLOAT  # … and into fc6; in (c), all maps of half the images
FC7 = FC8 = 2048 * BATCH * FLOAT  # half of the features of fc6, of fc7
LOGITS = 500 * BATCH * FLOAT


def compiled(net: str, layout_name: str, data: int, model_axis: int) -> list[Collective]:
    """What the full-size train step sends on a mesh of data x model_axis devices."""
    model = models.create(net)
    spec = MeshSpec(layout_name, data, model_axis)
    layout = make_layout(spec, towers=model.towers, batch_size=BATCH)
    tx = optim.make_optimizer(optim.OptimSpec(), steps_per_epoch=10, total_steps=100)
    mean_image = np.zeros((256, 256, 3), np.float32)
    prep = Preprocess(mean_image, mean_under_crop=True, noise_axes=np.eye(3))
    state = jax.eval_shape(lambda: init_state(model, tx, 0, SIZE))
    batch = {
        "images": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
        "crops": jax.ShapeDtypeStruct((BATCH, 3), jnp.int32),
        "mask": jax.ShapeDtypeStruct((BATCH,), jnp.float32),
        "ids": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    state, batch = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding),
        (state, batch),
        (layout.state_shardings(state), layout.batch_shardings()),
    )
    step = jax.jit(make_train_step(model, tx, layout, prep), donate_argnums=0)
    # How well LLVM compiles the kernels changes nothing here but the time that it takes.
    fast = {"xla_backend_optimization_level": 0}
    return collectives(step.lower(state, batch).compile(fast).as_text())


def sent(found: list[Collective]) -> dict[tuple[str, int], list[int]]:
    """{(kind, devices): bytes of each}, without scalars, which must be few.

    All-reduces are added up: into how many operations XLA puts them is its choice.
    """
    parts, scalars = collections.defaultdict(list), 0
    for each in found:
        count = sum(shape == () for _, shape in each.arrays)
        scalar_bytes = 2 * count * FLOAT * (each.devices - 1) // each.devices
        scalars += scalar_bytes
        if len(each.arrays) > count:
            parts[each.kind, each.devices].append(each.bytes_sent - scalar_bytes)
    assert 0 < scalars < 200
    return {
        key: [sum(sizes)] if key[0] == "all-reduce" else sorted(sizes, reverse=True)
        for key, sizes in parts.items()
    }


def total(moved: dict) -> int:
    return sum(map(sum, moved.values()))


def test_data_parallel_sends_the_gradients_alone():
    assert sent(compiled("alexnet", "data", 2, 1)) == {("all-reduce", 2): [FACT_SHEET["a"]]}


def test_towers_talk_where_the_two_gpus_did():
    moved = sent(compiled("alexnet", "towers", 1, 2))
    talks = [CONV3, FC6, FC7, FC8, LOGITS]
    assert moved == {("all-gather", 2): talks, ("reduce-scatter", 2): talks}
    # With fc8 on one GPU, as in (b), a device only sends features there, or gets its gradient.
    assert total(moved) == FACT_SHEET["b"] + FC8 + 2 * LOGITS == 31_576_064


@pytest.mark.slow
def test_towers_in_four_pairs_also_sum_each_towers_gradients():
    """4 x 2 devices: a quarter of the images in each pair; four devices hold the same tower."""
    talks = [talk // 4 for talk in (CONV3, FC6, FC7, FC8, LOGITS)]
    tower = 60_965_224 // 2 * FLOAT
    assert sent(compiled("alexnet", "towers", 4, 2)) == {
        ("all-gather", 2): talks,
        ("reduce-scatter", 2): talks,
        ("all-reduce", 4): [2 * tower * 3 // 4],
    }


@pytest.mark.parametrize(
    ("net", "conv_params", "bytes_sent"),
    [
        ("alexnet_owt", 2_469_696, FACT_SHEET["c"] + LOGITS),
        pytest.param("alexnet", 2_334_080, 18_761_216, marks=pytest.mark.slow),
    ],
)
def test_hybrid_sums_convolutions_gradients_and_moves_dense_features(net, conv_params, bytes_sent):
    moved = sent(compiled(net, "hybrid", 1, 2))
    talks = [FC6, FC7, FC8, LOGITS]
    assert moved == {
        ("all-gather", 2): talks,
        ("reduce-scatter", 2): talks,
        ("all-reduce", 2): [conv_params * FLOAT],
    }
    assert total(moved) == bytes_sent


HLO = """\
HloModule jit_step, is_scheduled=true, num_partitions=8
  %a = f32[128,4096]{0,1} all-gather(%x), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={1}
  %b = ((f32[16]{0}), f32[4]{0}) reduce-scatter-start(%y), replica_groups=[2,4]<=[8], to_apply=%add
  %c = f32[4]{0} reduce-scatter-done(%b)
  %d = (f32[], bf16[3,5]{1,0}) all-reduce(%p, %q), replica_groups={}, to_apply=%add
  %e = (f32[2,8]{1,0}, f32[4,8]{1,0}) all-gather-start(%z), replica_groups=[4,2]<=[2,4]T(1,0)
  %f = (u8[6], u8[6], u32[], u32[]) collective-permute-start(%w), source_target_pairs={{0,1},{1,0}}
  %i = f32[7] all-reduce(%u), replica_groups=mesh['x'=1,'y'=2,'z'=4], device_ids=([4,2]T(1,0)) {'z'}
  %j = f32[5] all-gather(%t), replica_groups=mesh['x'=8] {'x':(2)4}, dimensions={0}
  %g = f32[1000]{0} all-reduce(%v), replica_groups={{0},{1}}, to_apply=%add
  %h = f32[9] add(%all-reduce.1, %all-gather.2), metadata={op_name="all_gather"}
"""


def test_every_form_in_which_backends_write_collectives():
    assert collectives(HLO) == [
        Collective("all-gather", (("f32", (128, 4096)),), 2, 128 * 4096 * 4 // 2),
        Collective("reduce-scatter", (("f32", (4,)),), 4, 16 * 4 * 3 // 4),
        Collective("all-reduce", (("f32", ()), ("bf16", (3, 5))), 8, 2 * (4 + 30) * 7 // 8),
        Collective("all-gather", (("f32", (4, 8)),), 2, 4 * 8 * 4 // 2),
        Collective("collective-permute", (("u8", (6,)),), 2, 6),
        Collective("all-reduce", (("f32", (7,)),), 4, 2 * 28 * 3 // 4),
        Collective("all-gather", (("f32", (5,)),), 4, 20 * 3 // 4),
    ]


def test_groups_in_an_unknown_form_are_an_error():
    with pytest.raises(ValueError, match="replica groups"):
        collectives("HloModule m\n  %a = f32[2] all-gather(%x), replica_groups=<x>")
