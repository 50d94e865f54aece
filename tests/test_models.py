"""The nets: sizes, counts, fields, dropout, and the same numbers in every layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.errors import UserError
from alexnet_jax.models import PRESETS, Placement, create
from tests import tiny

P = jax.P

PARAMETERS = {
    "alexnet": 60_965_224,
    "alexnet_one_tower": 62_378_344,
    "alexnet_half": 59_798_312,
    "net145_half": 59_798_312,
    "net145": 60_965_224,
    "net147": 60_965_224,
    "alexnet_owt": 61_100_840,
    "torchvision": 61_100_840,
    "caffenet": 60_965_224,
    "bvlc_alexnet": 60_965_224,
    "alexnet_six_conv": 61_555_304,
    "cifar_80sec": 145_578,
    "cifar_19pct": 89_578,
    "cifar_18pct": 89_578,
    "cifar_13pct": 1_116_490,
    "cifar_11pct": 2_112_970,
}
IMAGE_SIZE = {"caffenet": 227, "bvlc_alexnet": 227, "cifar_13pct": 24, "cifar_11pct": 24}


def image_size(name):
    return IMAGE_SIZE.get(name, 32 if name.startswith("cifar") else 224)


def shapes(model, size, batch=1):
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    logits, activations = jax.eval_shape(model.apply, variables, images)
    return variables["params"], logits, activations


def count(params):
    return sum(p.size for p in jax.tree.leaves(params))


def test_every_preset_is_counted():
    assert set(PARAMETERS) == set(PRESETS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    params, logits, _ = shapes(create(name), image_size(name))
    assert count(params) == PARAMETERS[name]
    assert logits.shape == (1, 10 if name.startswith("cifar") else 1000)


def test_the_papers_sizes_and_parameter_shapes():
    params, _, activations = shapes(create("alexnet"), 224)
    sizes = {name: a.shape[1:] for name, a in activations.items()}
    assert sizes["conv1"] == sizes["act1"] == sizes["lrn1"] == (55, 55, 96)
    assert sizes["pool1"] == (27, 27, 96)
    assert sizes["conv2"] == sizes["lrn2"] == (27, 27, 256)
    assert sizes["pool2"] == (13, 13, 256)
    assert sizes["conv3"] == sizes["conv4"] == (13, 13, 384)
    assert sizes["conv5"] == (13, 13, 256)
    assert sizes["pool5"] == (6, 6, 256)
    assert sizes["fc6"] == sizes["fc7"] == (4096,)
    assert sizes["fc8"] == (1000,)

    kernels = {name: layer["kernel"].shape for name, layer in params.items()}
    assert kernels == {
        "conv1": (11, 11, 3, 96),
        "conv2": (5, 5, 48, 256),
        "conv3": (3, 3, 256, 384),
        "conv4": (3, 3, 192, 384),
        "conv5": (3, 3, 192, 256),
        "fc6": (9216, 4096),
        "fc7": (4096, 4096),
        "fc8": (4096, 1000),
    }


@pytest.mark.parametrize("name", ["alexnet", "net145", "bvlc_alexnet", "caffenet", "alexnet_owt"])
def test_imagenet_nets_have_the_papers_sizes(name):
    _, _, activations = shapes(create(name), image_size(name))
    sizes = [activations[key].shape[1] for key in ("conv1", "conv2", "conv3", "conv4", "conv5")]
    assert [*sizes, activations["pool5"].shape[1]] == [55, 27, 13, 13, 13, 6]


def test_cifar_pools_hang_over():
    _, _, activations = shapes(create("cifar_80sec"), 32)
    assert [activations[f"pool{n}"].shape[1] for n in (1, 2, 3)] == [16, 8, 4]


SMALL = dict(width=1 / 16, hidden_units=32, num_classes=8, kernel_init="he", bias_one=0.1)
SIZE = 67  # 11x11/4 gives 15, the pools 7, 3 and 1: the paper's geometry on a small image


def small(name="alexnet", **fields):
    return create(name, **{**SMALL, **fields})


def small_batch(batch=16, size=SIZE, dtype=np.float32):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, size, size, 3)).astype(dtype)
    return images, rng.integers(0, 8, size=batch)


def weights(model, size=SIZE):
    return {"params": tiny.he_weights(shapes(model, size)[0])}


def initial(model, size, what):
    """What `what` takes of the net's own initial parameters; only that is compiled."""
    images = jnp.zeros((1, size, size, 3))
    return tiny.jit(lambda key: what(model.init(key, images)["params"]))(jax.random.key(0))


def all_biases(params):
    return {name: layer["bias"] for name, layer in params.items()}


def kernels(*names):
    return lambda params: {name: params[name]["kernel"] for name in names}


@functools.partial(tiny.jit, static_argnums=0)
def apply(model, variables, images):
    return model.apply(variables, images)


def test_initial_kernels():
    stds = {"conv2": 0.01, "conv3": 0.03, "conv5": 0.03, "fc6": 0.01}
    model = create("net145", width=1 / 4, hidden_units=256)
    for name, kernel in initial(model, 99, kernels(*stds)).items():
        assert float(kernel.std()) == pytest.approx(stds[name], rel=0.03)
        assert abs(float(kernel.mean())) < 5 * stds[name] / kernel.size**0.5


def test_initial_biases():
    biases = initial(create("alexnet"), 224, all_biases)
    ones = {name for name, bias in biases.items() if (bias == 1).all()}
    zeros = {name for name, bias in biases.items() if (bias == 0).all()}
    assert ones == {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert zeros == {"conv1", "conv3", "fc8"}

    caffe = initial(create("bvlc_alexnet"), 227, all_biases)
    assert (caffe["conv2"] == np.float32(0.1)).all()
    assert (caffe["conv3"] == 0).all()
    assert (initial(create("alexnet_owt"), 224, all_biases)["fc8"] == -7).all()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("alexnet", dict(lrn_size=5, lrn_alpha=1e-4, lrn_k=2.0, inverted_dropout=False)),
        ("net145", dict(lrn_size=5, lrn_alpha=2e-5, lrn_k=2.0, norm_size=5, norm_alpha=4e-5)),
        ("alexnet_six_conv", dict(lrn_alpha=2e-5, lrn_k=2.0, norm_alpha=4e-5)),
        ("alexnet_owt", dict(lrn_size=5, lrn_alpha=2e-5, lrn_k=2.0, towers=1)),
        ("caffenet", dict(lrn_alpha=2e-5, lrn_k=1.0, inverted_dropout=True)),
        ("bvlc_alexnet", dict(lrn_alpha=2e-5, lrn_k=1.0, inverted_dropout=True)),
        ("cifar_18pct", dict(norm_size=3, norm_alpha=5e-5 / 9, dropout=0.0)),
        ("cifar_11pct", dict(lrn_size=9, lrn_alpha=1e-3 / 9, lrn_k=1.0, dropout=0.0)),
    ],
)
def test_constants_of_the_fact_sheet(name, fields):
    net = create(name)
    assert {field: getattr(net, field) for field in fields} == pytest.approx(fields)
    assert net.lrn_beta == 0.75


def test_he_init_follows_the_fan_in_and_scale():
    fields = dict(width=1 / 4, hidden_units=64, kernel_init="he")
    kernel = initial(create("alexnet", **fields), SIZE, kernels("conv2"))["conv2"]
    fan_in = 5 * 5 * 12
    assert float(kernel.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
    half = initial(create("alexnet", **fields, init_scale=0.5), SIZE, kernels("conv2"))["conv2"]
    np.testing.assert_allclose(half, kernel / 2, rtol=1e-6)


def test_layers_may_have_an_initial_scale_of_their_own():
    fields = dict(width=1 / 4, hidden_units=64, kernel_init="he")
    names = kernels("conv1", "conv2")
    whole = initial(create("alexnet", **fields), SIZE, names)
    tenth = initial(create("alexnet", **fields, layer_init_scales=[["conv1", 0.1]]), SIZE, names)
    np.testing.assert_allclose(tenth["conv1"], whole["conv1"] / 10, rtol=1e-6)
    np.testing.assert_array_equal(tenth["conv2"], whole["conv2"])
    for wrong in ((("conf1", 0.1),), (("conv1", 0),), ("conv1", 0.1), (("conv1",),)):
        with pytest.raises(UserError, match="layer_init_scales"):
            create("alexnet", layer_init_scales=wrong)


def test_towers_meet_only_where_the_paper_says():
    """A change in tower 1's conv1 reaches tower 0 first in conv3."""
    model = small()
    variables = weights(model)
    images, _ = small_batch(1)
    kernel = variables["params"]["conv1"]["kernel"]
    changed = jax.tree.map(lambda p: p, variables)
    changed["params"]["conv1"]["kernel"] = kernel.at[..., kernel.shape[-1] // 2 :].multiply(-1)
    _, before = apply(model, variables, images)
    _, after = apply(model, changed, images)
    for name in ("conv1", "lrn1", "pool1", "conv2", "lrn2", "pool2"):
        half = before[name].shape[-1] // 2
        assert (before[name][..., :half] == after[name][..., :half]).all(), name
        assert (before[name][..., half:] != after[name][..., half:]).any(), name
    half = before["conv3"].shape[-1] // 2
    assert (before["conv3"][..., :half] != after["conv3"][..., :half]).any()


def test_fc6_reads_the_joined_map_row_by_row():
    model = small("alexnet", dropout=0.0)
    variables = weights(model, 99)
    images, _ = small_batch(2, 99)
    _, a = apply(model, variables, images)
    assert a["pool5"].shape[1:3] == (2, 2)
    fc6 = variables["params"]["fc6"]
    expected = a["pool5"].reshape(2, -1) @ fc6["kernel"] + fc6["bias"]
    np.testing.assert_allclose(a["fc6"], jnp.maximum(expected, 0), rtol=1e-5, atol=1e-6)


def test_net145_normalises_before_the_relu_and_pools_before_it():
    model = small("net145", lrn_alpha=0.1, norm_alpha=0.1)
    images, _ = small_batch(2)
    _, a = apply(model, weights(model), images)
    assert (a["lrn1"] < 0).any()
    np.testing.assert_array_equal(a["act1"], jnp.maximum(a["pool1"], 0))
    assert (a["act2"] >= 0).all()
    assert a["act2"].shape == a["norm2"].shape
    np.testing.assert_array_equal(a["act5"], jnp.maximum(a["pool5"], 0))
    # The negative values count in the sum: normalising after the ReLU is another net.
    text = small("alexnet", lrn_alpha=0.1)
    _, b = apply(text, weights(model), images)
    assert not np.allclose(a["act1"], b["pool1"])


def test_caffenet_pools_before_it_normalises():
    _, a = apply(m := small("caffenet"), weights(m, 71), small_batch(1, 71)[0])
    assert a["lrn1"].shape == a["pool1"].shape
    _, b = apply(m := small("bvlc_alexnet"), weights(m, 71), small_batch(1, 71)[0])
    assert b["lrn1"].shape == b["act1"].shape != b["pool1"].shape


def test_caffe_normalises_over_the_border_of_its_groups():
    model = small("caffenet", lrn_alpha=0.1)
    variables = weights(model, 71)
    images, _ = small_batch(1, 71)
    _, joined = apply(model, variables, images)
    _, apart = apply(small("caffenet", lrn_alpha=0.1, lrn_joins=False), variables, images)
    differs = (np.asarray(joined["lrn1"]) != np.asarray(apart["lrn1"])).any(axis=(0, 1, 2))
    np.testing.assert_array_equal(differs, [False, True, True, True, True, False])


def test_fields_change_the_net():
    images, _ = small_batch(2)
    variables = weights(small())

    def act1(**fields):
        return apply(small(**fields), variables, images)[1]["act1"]

    linear = apply(small(), variables, images)[1]["conv1"]
    np.testing.assert_allclose(act1(activation="tanh"), jnp.tanh(linear), rtol=1e-6)
    np.testing.assert_allclose(act1(activation="sigmoid"), 1 / (1 + jnp.exp(-linear)), rtol=1e-5)

    _, without = apply(small(lrn=False), variables, images)
    assert "lrn1" not in without
    _, none = apply(small("net145", lrn=False), variables, images)
    assert not {"lrn1", "lrn2", "norm2"} & set(none)

    _, average = apply(small(pooling="avg", lrn=False), variables, images)
    first = average["act1"][:, :3, :3].mean((1, 2))
    np.testing.assert_allclose(average["pool1"][:, 0, 0], first, rtol=1e-5)


def test_pooling_without_overlap_keeps_the_sizes():
    """The paper's comparison (section 3.4): 2x2 pools of stride 2 give 27, 13 and 6 as well."""
    params, _, activations = shapes(create("alexnet", pool_window=2), 224)
    assert [activations[f"pool{n}"].shape[1] for n in (1, 2, 5)] == [27, 13, 6]
    assert count(params) == PARAMETERS["alexnet"]


def test_one_tower_is_the_same_table():
    assert create("alexnet", towers=1) == create("alexnet_one_tower")


def test_width_keeps_towers_whole():
    params, _, _ = shapes(create("alexnet", width=0.13, hidden_units=100), 224)
    widths = [params[f"conv{n}"]["kernel"].shape[-1] for n in range(1, 6)]
    assert widths == [12, 34, 50, 50, 34]
    assert params["fc7"]["kernel"].shape == (100, 100)
    params, _, _ = shapes(create("alexnet", width=0.25), 224)
    assert params["fc7"]["kernel"].shape == (1024, 1024)


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        (64, dict(conv1_kernel=5, conv1_stride=2, conv1_padding=2)),
        (32, dict(conv1_kernel=3, conv1_stride=1, conv1_padding=1)),
    ],
)
def test_small_images_keep_all_eight_layers(size, fields):
    params, _, activations = shapes(create("alexnet", width=1 / 8, hidden_units=64, **fields), size)
    assert len(params) == 8
    assert [activations[f"pool{n}"].shape[1] for n in (1, 2, 5)] == [15, 7, 3]


@pytest.mark.parametrize("layer", ["conv2", "conv3", "conv4", "conv5"])
def test_a_middle_layer_can_be_taken_out(layer):
    params, _, activations = shapes(create("alexnet", skip=(layer,)), 224)
    assert layer not in params
    assert layer not in activations
    assert activations["pool5"].shape[1] == 6
    # The towers still meet once: in conv3, or where conv3 was, in conv4.
    meets = "conv4" if layer == "conv3" else "conv3"
    before = {"conv2": 96, "conv3": 256, "conv4": 256, "conv5": 256}[layer]
    assert params[meets]["kernel"].shape[2] == before


def test_image_too_small():
    with pytest.raises(UserError, match="pool5: its 3x3 window does not fit its 2x2 input"):
        shapes(create("alexnet"), 64 - 13)
    with pytest.raises(UserError, match="conv1"):
        shapes(create("alexnet"), 7)
    with pytest.raises(UserError, match="shape"):
        create("alexnet").init(jax.random.key(0), jnp.zeros((224, 224, 3)))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("alexnt", {}, "did you mean 'alexnet'"),
        ("alexnet", {"drop_out": 0.1}, "model.drop_out: no such field; did you mean 'dropout'"),
        ("alexnet", {"activation": "gelu"}, "model.activation='gelu'.*relu, tanh, sigmoid"),
        ("alexnet", {"towers": 3}, "model.towers=3"),
        ("alexnet", {"pooling": "sum"}, "max, avg"),
        ("alexnet", {"pool_stride": 4}, "at most pool_window"),
        ("alexnet", {"pool_window": 0}, "whole number from 1"),
        ("alexnet", {"dropout": 1.0}, "model.dropout=1.0"),
        ("alexnet", {"dropout": "half"}, "model.dropout='half'"),
        ("alexnet", {"width": 0}, "model.width=0"),
        ("alexnet", {"width": float("nan")}, "model.width=nan"),
        ("alexnet", {"num_classes": 2.5}, "model.num_classes=2.5"),
        ("alexnet", {"dtype": "float16"}, "float32, bfloat16, float64"),
        ("alexnet", {"skip": ("conv9",)}, "conv2, conv3, conv4, conv5"),
        ("alexnet", {"skip": ("conv1",)}, "conv2, conv3, conv4, conv5"),
        ("alexnet", {"conv1_padding": (1, 2, 3)}, "model.conv1_padding"),
        ("alexnet", {"kernel_init": "zeros"}, "gaussian, he"),
    ],
)
def test_bad_fields_are_named(name, fields, message):
    with pytest.raises(UserError, match=message):
        create(name, **fields)


def test_lists_from_a_configuration_become_tuples():
    assert create("alexnet", skip=["conv3"], conv1_padding=[0, 3]).skip == ("conv3",)


def test_precisions():
    images, _ = small_batch(2)
    variables = weights(small())
    exact, _ = apply(small(), variables, images)
    assert exact.dtype == jnp.float32
    half, activations = apply(small(dtype="bfloat16"), variables, images)
    assert half.dtype == jnp.float32
    assert activations["pool5"].dtype == jnp.bfloat16
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(weights(small(dtype="bfloat16"))))
    np.testing.assert_allclose(half, exact, atol=0.03 * float(abs(exact).max()))

    with pytest.raises(UserError, match="64-bit"):
        apply(small(dtype="float64"), variables, images)
    with jax.enable_x64(True):
        model = small(dtype="float64")
        wide = weights(model)
        assert all(p.dtype == jnp.float64 for p in jax.tree.leaves(wide))
        assert apply(model, wide, images)[0].dtype == jnp.float64


# Dropout


def dropped(model, images, key=0, **kwargs):
    variables = weights(model, images.shape[1])
    rngs = {"dropout": jax.random.key(key)}
    run = tiny.jit(functools.partial(model.apply, train=True))
    return run(variables, images, rngs=rngs, **kwargs)[1]


def test_dropout_rescales_at_test_time_as_the_paper():
    images, _ = small_batch(8)
    model = small(dropout=0.25)
    _, test = apply(model, weights(model), images)
    _, whole = apply(small(dropout=0.0), weights(model), images)
    np.testing.assert_allclose(test["fc6"], whole["fc6"] * 0.75, rtol=1e-5)
    train = dropped(model, images)["fc6"]
    kept = np.asarray(train != 0)
    np.testing.assert_allclose(train[kept], whole["fc6"][kept], rtol=1e-5)
    alive = np.asarray(whole["fc6"] != 0)
    assert kept[alive].mean() == pytest.approx(0.75, abs=0.1)


def test_inverted_dropout_rescales_in_training():
    images, _ = small_batch(8)
    model = small("caffenet", dropout=0.25)
    variables = weights(model, 71)
    images, _ = small_batch(8, 71)
    _, test = apply(model, variables, images)
    _, whole = apply(small("caffenet", dropout=0.0), variables, images)
    np.testing.assert_array_equal(test["fc6"], whole["fc6"])
    train = dropped(model, images)["fc6"]
    kept = np.asarray(train != 0)
    np.testing.assert_allclose(train[kept], whole["fc6"][kept] / 0.75, rtol=1e-5)


def test_dropout_is_keyed_on_step_layer_and_example():
    image = small_batch(1)[0]
    images = np.repeat(image, 4, axis=0)
    model = small()
    a = dropped(model, images, example_index=jnp.array([5, 6, 7, 5]))
    masks = np.asarray(a["fc6"] != 0)
    assert (masks[0] == masks[3]).all()
    assert (masks[0] != masks[1]).any()
    alone = dropped(model, image, example_index=jnp.array([7]))
    np.testing.assert_array_equal(alone["fc6"] != 0, masks[2:3])
    other_step = dropped(model, images, key=1, example_index=jnp.array([5, 6, 7, 5]))
    assert (np.asarray(other_step["fc6"] != 0) != masks).any()
    same = dropped(model, images)["fc6"] != 0
    default = dropped(model, images, example_index=jnp.arange(4))["fc6"] != 0
    np.testing.assert_array_equal(same, default)


def test_dropout_masks_of_two_layers_differ():
    images, _ = small_batch(4)
    model = small()
    ones = {"bias": jnp.ones(32)}  # every feature is 1 before it is dropped
    params = weights(model)["params"]
    for name in ("fc6", "fc7"):
        params[name] = ones | {"kernel": jnp.zeros_like(params[name]["kernel"])}
    rngs = {"dropout": jax.random.key(0)}
    run = tiny.jit(functools.partial(model.apply, train=True))
    _, a = run({"params": params}, images, rngs=rngs)
    assert set(np.unique(a["fc6"])) == set(np.unique(a["fc7"])) == {0, 1}
    assert (a["fc6"] != a["fc7"]).any()


# Layouts


def layer_specs(params, placement):
    """The PartitionSpec of each parameter: its last axis over the model axis, or none."""

    def spec(path, leaf):
        layer = path[0].key
        split = placement.splits(layer, leaf.shape[-1])
        return P(*[None] * (leaf.ndim - 1), placement.axis) if split else P()

    return jax.tree_util.tree_map_with_path(spec, params)


def loss_and_gradients(model, params, images, labels, key, mesh_shape=None, layout="data"):
    """On one device, or over a (data, model) mesh in a shard_map. Gradients are whole arrays."""
    index = np.arange(len(images), dtype=np.int32)
    if mesh_shape is None:
        whole = functools.partial(_loss, model)
        return tiny.jit(jax.value_and_grad(whole))(params, images, labels, index, key)
    devices = np.array(jax.devices()[: np.prod(mesh_shape)]).reshape(mesh_shape)
    mesh = jax.sharding.Mesh(devices, ("data", "model"))
    placement = Placement(layout, "model", mesh_shape[1])
    model = model.clone(placement=placement)
    specs = layer_specs(params, placement)
    both = P(("data", "model"))
    image_spec = P("data") if layout == "towers" else both
    label_spec = both if layout == "data" else P("data")

    def local(params, images, labels, index, key):
        def vary(leaf, spec):  # so that the gradient's sum over the mesh is explicit
            return lax.pcast(leaf, tuple(a for a in mesh.axis_names if a not in spec), to="varying")

        params = jax.tree.map(vary, params, specs)
        return lax.pmean(_loss(model, params, images, labels, index, key), ("data", "model"))

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, image_spec, label_spec, label_spec, P()),
        out_specs=P(),
        check_vma=True,
    )
    return tiny.jit(jax.value_and_grad(sharded))(params, images, labels, index, key)


def _loss(model, params, images, labels, index, key):
    logits, _ = model.apply(
        {"params": params}, images, train=True, example_index=index, rngs={"dropout": key}
    )
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)
    return -chosen.mean()


@functools.cache
def one_device_f64():
    """Net 145 has every kind of operation. In double precision, layouts agree to rounding."""
    with jax.enable_x64(True):
        model = small("net145", dtype="float64", lrn_alpha=1e-2, norm_alpha=1e-2)
        params = weights(model)["params"]
        images, labels = small_batch(dtype=np.float64)
        arguments = (model, params, images, labels, jax.random.key(3))
        return arguments, loss_and_gradients(*arguments)


@pytest.mark.parametrize(
    ("layout", "mesh_shape"),
    [
        ("data", (2, 2)),
        ("towers", (4, 2)),
        ("hybrid", (2, 2)),
        ("hybrid", (1, 4)),
    ],
)
def test_layouts_agree_with_one_device(layout, mesh_shape):
    arguments, (loss, gradients) = one_device_f64()
    with jax.enable_x64(True):
        loss2, gradients2 = loss_and_gradients(*arguments, mesh_shape, layout)
    np.testing.assert_allclose(loss2, loss, rtol=1e-10)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(gradients2), strict=True
    ):
        largest = float(abs(np.asarray(a)).max())
        assert largest > 0, path
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-10 * largest, err_msg=str(path))


def test_a_norm_that_joins_the_towers_agrees_too():
    with jax.enable_x64(True):
        model = small("caffenet", dtype="float64", lrn_alpha=0.1)
        params = weights(model, 71)["params"]
        images, labels = small_batch(4, 71, np.float64)
        arguments = (model, params, images, labels, jax.random.key(3))
        loss, gradients = loss_and_gradients(*arguments)
        loss2, gradients2 = loss_and_gradients(*arguments, (1, 2), "towers")
    np.testing.assert_allclose(loss2, loss, rtol=1e-10)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients2), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-10 * abs(np.asarray(a)).max())


def test_bfloat16_in_towers():
    model = small(dtype="bfloat16")
    params = weights(model)["params"]
    images, labels = small_batch(4)
    key = jax.random.key(3)
    loss, _ = loss_and_gradients(model, params, images, labels, key)
    other, _ = loss_and_gradients(model, params, images, labels, key, (1, 2), "towers")
    np.testing.assert_allclose(other, loss, rtol=2e-2)


def test_placement_refuses_what_cannot_be():
    with pytest.raises(UserError, match="choose one of data, towers, hybrid"):
        Placement("tower")
    with pytest.raises(UserError, match="over 4 devices"):
        Placement("towers", "model", 4)
    with pytest.raises(UserError, match="needs a mesh axis"):
        Placement("hybrid", shards=2)
    model = small("alexnet_one_tower")
    params = weights(model)["params"]
    images, labels = small_batch(4)
    with pytest.raises(UserError, match="the net has 1 tower"):
        loss_and_gradients(model, params, images, labels, jax.random.key(0), (1, 2), "towers")


def test_which_parameters_are_split():
    towers = Placement("towers", "model", 2)
    hybrid = Placement("hybrid", "model", 4)
    assert towers.splits("conv1", 96)
    assert towers.splits("fc8", 1000)
    assert not towers.splits("fc8", 7)
    assert not hybrid.splits("conv1", 96)
    assert hybrid.splits("fc6", 4096)
    assert not hybrid.splits("fc8", 10)
    assert not Placement().splits("fc6", 4096)
    assert not Placement("data", "model", 8).splits("fc6", 4096)
