"""The array operators: the fact sheet's examples, and each fast form against its plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.models import conv, forms, fused, norms, onednn, onednn_trial, pools
from alexnet_jax.models.windows import output_size as size
from tests import tiny

P = jax.P

# Section 2 of the fact sheet: name, (size, alpha, k), outputs at x = 1..5 and at x = 100..500.
LRN_EXAMPLES = {
    "paper": (
        (5, 1e-4, 2.0),
        (0.594292, 1.187871, 1.780140, 2.373609, 2.967456),
        (12.500000, 14.865089, 14.461559, 19.539749, 25.820669),
    ),
    "2012 code": (
        (5, 1e-4 / 5, 2.0),
        (0.594541, 1.188940, 1.783075, 2.377451, 2.971903),
        (30.836784, 42.044821, 43.819129, 59.108851, 77.550405),
    ),
    "Caffe and PyTorch": (
        (5, 1e-4 / 5, 1.0),
        (0.999790, 1.999100, 2.997527, 3.996763, 4.996253),
        (36.741959, 46.473616, 46.530243, 62.827313, 82.780013),
    ),
    "CIFAR 11pct": (
        (9, 1e-3 / 9, 1.0),
        (0.995441, 1.990882, 2.986323, 3.981764, 4.977205),
        None,
    ),
}


@pytest.mark.parametrize("form", forms.FORMS)
@pytest.mark.parametrize("name", LRN_EXAMPLES)
def test_lrn_examples_to_six_digits(name, form):
    (size, alpha, k), *outputs = LRN_EXAMPLES[name]
    for scale, expected in zip((1, 100), outputs, strict=True):
        if expected:
            x = scale * jnp.arange(1.0, 6.0).reshape(1, 1, 1, 5)
            constants = dict(size=size, alpha=alpha, beta=0.75, k=k)
            y = norms.local_response_norm(x, **constants, form=form)
            np.testing.assert_allclose(y.ravel(), expected, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("form", forms.FORMS)
def test_within_map_examples_to_six_digits(form):
    norm = functools.partial(norms.within_map_norm, beta=0.75, form=form)
    ones = norm(jnp.ones((1, 3, 3, 2)), size=3, alpha=5e-5 / 9)[0, ..., 1]
    np.testing.assert_allclose(ones[1, 1], 0.999963, atol=5e-7)
    np.testing.assert_allclose(ones[0, 1], 0.999975, atol=5e-7)
    np.testing.assert_allclose(ones[2, 2], 0.999983, atol=5e-7)
    tens = norm(jnp.full((1, 5, 5, 2), 10.0), size=5, alpha=1e-3 / 25)[0, ..., 0]
    np.testing.assert_allclose(tens[2, 2], 9.310124, atol=5e-7)
    np.testing.assert_allclose(tens[0, 4], 9.738233, atol=5e-7)


def test_window_of_even_size_starts_half_its_size_before():
    x = jnp.arange(1.0, 6.0).reshape(1, 1, 1, 5)
    y = norms.local_response_norm(x, size=4, alpha=1.0, beta=1.0, k=0.0).ravel()
    sums = [1 + 4, 1 + 4 + 9, 1 + 4 + 9 + 16, 4 + 9 + 16 + 25, 9 + 16 + 25]  # maps i-2 … i+1
    np.testing.assert_allclose(y, np.arange(1.0, 6.0) / sums, rtol=1e-6)


def value_and_gradient(f, *operands, seed=1):
    def both(*operands):
        y, pullback = jax.vjp(f, *operands)
        g = jnp.asarray(np.random.default_rng(seed).normal(size=y.shape), y.dtype)
        return y, *pullback(g)

    return tiny.jit(both)(*operands)


def both_forms(f, x):
    return [value_and_gradient(functools.partial(f, form=form), x) for form in forms.FORMS]


def rounded(shape, seed=0):
    """Values that tie often, as after a ReLU."""
    x = np.random.default_rng(seed).normal(size=shape)
    return np.maximum(np.round(x * 2) / 2, 0)


@pytest.mark.parametrize("size", [3, 4, 5])
@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize("across", [True, False])
def test_fast_norms_equal_the_plain_ones(size, beta, across):
    op = norms.local_response_norm if across else norms.within_map_norm
    f = functools.partial(op, size=size, alpha=0.3, beta=beta, k=1.5)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 7, 8)))
        (y, dx), (y2, dx2) = both_forms(f, x)
    np.testing.assert_allclose(y, y2, rtol=1e-13)
    np.testing.assert_allclose(dx, dx2, rtol=1e-12, atol=1e-13)


def test_norm_of_bfloat16_sums_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 64)), jnp.bfloat16)
    norm = functools.partial(norms.local_response_norm, size=33, alpha=1.0, beta=0.75, k=1.0)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    exact = norm(x.astype(jnp.float32))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


POOLS = [(3, 2, False), (3, 2, True), (2, 2, False), (2, 2, True), (3, 3, True), (3, 1, False)]
POOLS += [(5, 2, False), (1, 1, False), (2, 3, False)]


@pytest.mark.parametrize(("window", "stride", "overhang"), POOLS)
def test_fast_max_pool_equals_the_plain_one(window, stride, overhang):
    """In values, and in gradients at ties: select_and_scatter's first largest takes all."""
    f = functools.partial(pools.max_pool, window=window, stride=stride, overhang=overhang)
    with jax.enable_x64(True):
        x = jnp.asarray(rounded((2, 8, 11, 3)))
        (y, dx), (y2, dx2) = both_forms(f, x)
        np.testing.assert_array_equal(f(x, form="fast"), y2)  # without a gradient
    np.testing.assert_array_equal(y, y2)
    np.testing.assert_allclose(dx, dx2, rtol=1e-12)


def test_max_pool_tie_goes_to_the_first():
    for form in forms.FORMS:
        pool = functools.partial(pools.max_pool, window=2, stride=2, form=form)
        gradient = jax.grad(lambda x, pool=pool: pool(x).sum())
        dx = gradient(jnp.ones((1, 2, 2, 1))).reshape(2, 2)
        np.testing.assert_array_equal(dx, [[1, 0], [0, 0]])


def test_pools_by_hand():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    pool = dict(window=3, stride=2)
    np.testing.assert_array_equal(pools.max_pool(x, **pool).ravel(), [10])
    np.testing.assert_array_equal(
        pools.max_pool(x, overhang=True, **pool)[0, ..., 0], [[10, 11], [14, 15]]
    )
    np.testing.assert_array_equal(
        pools.max_pool(-1 - x, overhang=True, **pool)[0, ..., 0], [[-1, -3], [-9, -11]]
    )
    # The mean of the pixels inside: 3x3, 3x2, 2x3 and 2x2 of them.
    np.testing.assert_allclose(
        pools.avg_pool(x, overhang=True, **pool)[0, ..., 0], [[5, 6.5], [11, 12.5]], rtol=1e-6
    )


@pytest.mark.parametrize(("window", "stride", "overhang"), POOLS)
def test_avg_pool_equals_reduce_window(window, stride, overhang):
    def plain(x):
        pads = [
            (0, max(0, (size(n, window, stride, overhang=overhang) - 1) * stride + window - n))
            for n in x.shape[1:3]
        ]
        sizes = ((1, window, window, 1), (1, stride, stride, 1), [(0, 0), *pads, (0, 0)])
        total = lax.reduce_window(x, np.zeros((), x.dtype), lax.add, *sizes)
        inside = lax.reduce_window(jnp.ones_like(x), np.zeros((), x.dtype), lax.add, *sizes)
        return total / inside

    f = functools.partial(pools.avg_pool, window=window, stride=stride, overhang=overhang)
    x = jnp.asarray(rounded((2, 8, 11, 3)), jnp.float32)
    for a, b in zip(value_and_gradient(f, x), value_and_gradient(plain, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_output_sizes():
    assert [size(n, 3, 2) for n in (55, 27, 13, 32)] == [27, 13, 6, 15]
    hanging = [size(n, 3, 2, overhang=True) for n in (55, 27, 13, 32, 16, 8, 24)]
    assert hanging == [27, 13, 6, 16, 8, 4, 12]
    assert size(2, 3, 2) < 1
    assert size(224, 11, 4, (0, 3)) == 55
    assert size(224, 11, 4, (2, 2)) == 55
    assert size(227, 11, 4, (0, 0)) == 55
    assert size(7, 11, 4, (0, 3)) < 1


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (67, 11, 4, (0, 3)),
        (71, 11, 4, (0, 0)),
        (64, 11, 4, (2, 2)),
        (40, 12, 4, (1, 5)),
        (39, 9, 5, (3, 0)),
        (4, 5, 1, (2, 2)),  # a kernel larger than the maps before it
        (6, 5, 1, (0, 0)),  # or after it
    ],
)
def test_fast_conv_equals_the_plain_one(monkeypatch, size, kernel, stride, padding):
    """Values, with and without a gradient, and both gradients; the fast form is another program."""
    monkeypatch.setattr(conv, "FIRST_CONV_COLUMNS", 0)

    def run(form, x, kernel):
        options = dict(stride=stride, padding=padding, form=form)
        convolve = functools.partial(conv.first_conv, **options)
        y, pullback = jax.vjp(convolve, x, kernel)
        program = str(jax.make_jaxpr(convolve)(x, kernel))
        return program, (convolve(x, kernel), y, *pullback(jnp.cos(y)))

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(2, size, size - 1, 3)))
        k = jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)))
        (fast_program, fast), (program, plain) = run("fast", x, k), run("plain", x, k)
    assert fast_program != program
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.fixture
def has_onednn():
    if jax.default_backend() != "cpu":
        pytest.skip("oneDNN's convolutions are for CPUs")
    if not onednn_trial.has_onednn():
        pytest.skip("this jaxlib's call to oneDNN is not known")


@pytest.mark.usefixtures("has_onednn")
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((40, 13, 9, 24), (3, 3, 24, 16), 1, (1, 1)),
        ((3, 16, 15, 3), (5, 5, 3, 8), 1, (2, 2)),
        ((5, 8, 8, 4), (3, 3, 4, 6), 1, (0, 2)),
        ((20, 67, 66, 3), (11, 11, 3, 8), 4, (0, 3)),
        ((4, 23, 25, 3), (5, 5, 3, 8), 2, (2, 2)),
        ((4, 24, 25, 3), (5, 5, 3, 8), 4, (0, 0)),
    ],
)
def test_onednn_conv_equals_the_plain_one(monkeypatch, shape, kernel, stride, padding):
    """Values and gradients, of several batches for the kernel's, and with rows left over."""
    monkeypatch.setattr(conv, "LEAST_WORK", 0)
    monkeypatch.setattr(onednn, "CACHED_BYTES", 0)
    rng = np.random.default_rng(0)
    x, k = (jnp.asarray(rng.normal(size=each), jnp.float32) for each in (shape, kernel))
    convolve = functools.partial(conv.conv, stride=stride, padding=padding)
    assert "onednn" in jax.jit(convolve).lower(x, k).as_text()
    y, pullback = jax.vjp(convolve, x, k)
    g = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    ours = (convolve(x, k), y, *pullback(g))
    with jax.enable_x64(True):
        wide = [jnp.asarray(each, float) for each in (x, k)]
        exact, pullback = jax.vjp(convolve, *wide)  # XLA's, as float64 is not for oneDNN
        exact = (exact, exact, *pullback(jnp.asarray(g, float)))
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())


def test_onednn_conv_of_images_that_vary_over_fewer_axes(monkeypatch):
    """As in two towers: their devices have the same images and kernels of their own."""
    monkeypatch.setattr(conv, "LEAST_WORK", 0)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, 9, 9, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 8)), jnp.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))

    def run(form):
        def local(images, kernel):
            kernel = lax.pcast(kernel, ("data",), to="varying")
            y = conv.conv(images, kernel, stride=1, padding=(1, 1), form=form)
            y = jnp.tanh(y).sum()
            return lax.psum(y, ("data", "model"))

        specs = (P("data"), P(None, None, None, "model"))
        split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
        return jax.jit(jax.value_and_grad(split, argnums=(0, 1)))(images, kernel)

    for a, b in zip(jax.tree.leaves(run(None)), jax.tree.leaves(run("plain")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "size", "window", "stride", "towers"),
    [("float32", 4, 2, 2, 2), ("bfloat16", 5, 3, 2, 1)],
)
def test_the_kernel_equals_its_operators(dtype, size, window, stride, towers):
    """In float32 to rounding; in bfloat16 their gradients are rounded on the way."""
    constants = fused.Constants(size, 0.3, 0.75, 2.0, window, stride)
    x = jax.random.normal(jax.random.key(0), (2, 7, 9, 6), dtype)
    x = jnp.round(4 * x) / 4  # with ties
    bias = jnp.asarray([0.5, -0.25, 1.0, 0.0, 0.75, -0.5], dtype)

    def by_kernel(x, bias):
        return jnp.concatenate(fused.by_kernel(x, bias, constants, towers, True), axis=-1)

    def by_operators(x, bias):
        parts = jnp.split(x + bias, towers, axis=-1)
        return jnp.concatenate([fused.by_operators(x, constants) for x in parts], axis=-1)

    found, expected = (value_and_gradient(f, x, bias) for f in (by_kernel, by_operators))
    tolerance = 1e-6 if dtype == "float32" else 2**-7
    scales = 1, 1, jnp.abs(expected[2]).max()  # The bias' gradient is a sum over the images.
    for ours, theirs, scale in zip(found, expected, scales, strict=True):
        np.testing.assert_allclose(
            ours.astype("float32"), theirs.astype("float32"), atol=tolerance * scale
        )


@pytest.mark.usefixtures("has_onednn")
def test_onednn_computes_bfloat16(monkeypatch):
    """A net in bfloat16 was five times slower on a CPU than in float32; rounding is XLA's."""
    monkeypatch.setattr(conv, "LEAST_WORK", 0)
    rng = np.random.default_rng(0)
    shapes = (8, 9, 8, 6), (3, 3, 6, 4)
    operands = [jnp.asarray(rng.normal(size=each), jnp.bfloat16) for each in shapes]
    fast, plain = (
        functools.partial(conv.conv, stride=1, padding=(1, 1), form=form) for form in forms.FORMS
    )
    assert "onednn" in jax.jit(fast).lower(*operands).as_text()
    found, expected = (value_and_gradient(f, *operands) for f in (fast, plain))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        ours, theirs = (each.astype("float32") for each in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2**-7 * jnp.abs(theirs).max())


def test_small_convs_do_not_call_onednn():
    """A program with such a call is compiled at each start."""
    small = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))
    program = functools.partial(conv.conv, stride=1, padding=(1, 1))
    assert "onednn" not in jax.jit(program).lower(*small).as_text()


def test_a_platform_takes_its_form_in_the_program_for_it():
    """Whatever traces it: the program for a GPU is that also where it is lowered on a CPU."""
    large = jnp.zeros((64, 27, 27, 48)), jnp.zeros((5, 5, 48, 128))

    def stage(x, kernel):
        y = conv.conv(x, kernel, stride=1, padding=(1, 1))
        y = norms.local_response_norm(y, size=5, alpha=0.1, beta=0.75, k=2.0)
        return pools.max_pool(y, window=3, stride=2).sum()

    traced = jax.jit(jax.grad(stage, argnums=(0, 1))).trace(*large)
    programs = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
    for platform, program in programs.items():
        cpu, plain = platform == "cpu", platform == "tpu"
        assert ("onednn" in program) == (cpu and onednn_trial.has_onednn())
        assert ("select_and_scatter" in program) == plain
        assert ("stablehlo.power" in program) == plain


def test_conv_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    y = conv.conv(x, kernel, stride=1, padding=(0, 1))[0, ..., 0]
    assert y.shape == (3, 3)
    assert y[0, 0] == 0 + 2 * 1 + 3 * 3 + 4 * 4  # cross-correlation, as in every AlexNet
    assert y[2, 2] == 8


def test_local_conv_has_a_kernel_for_every_place():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    kernel = rng.normal(size=(5, 4, 3, 3, 3, 6)).astype(np.float32)
    y = conv.local_conv(jnp.asarray(x), jnp.asarray(kernel), padding=(1, 1))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(5, 4):
        expected = np.einsum("bhwi,hwio->bo", padded[:, i : i + 3, j : j + 3], kernel[i, j])
        np.testing.assert_allclose(y[:, i, j], expected, rtol=1e-4, atol=1e-4)
    tied = np.broadcast_to(kernel[:1, :1], kernel.shape)
    same = conv.conv(jnp.asarray(x), jnp.asarray(kernel[0, 0]), stride=1, padding=(1, 1))
    again = conv.local_conv(jnp.asarray(x), jnp.asarray(tied), padding=(1, 1))
    np.testing.assert_allclose(again, same, rtol=1e-4, atol=1e-4)


def small_stage(form, kernel, images):
    """Every operator once."""
    h = conv.first_conv(images, kernel, stride=4, padding=(0, 3), form=form)
    h = norms.local_response_norm(h, size=5, alpha=0.1, beta=0.75, k=2.0, form=form)
    h = norms.within_map_norm(h, size=3, alpha=0.1, beta=0.75, form=form)
    h = pools.max_pool(h, window=3, stride=2, overhang=True, form=form)
    h = pools.avg_pool(h, window=2, stride=2, overhang=True)
    return jnp.tanh(h).sum(axis=(1, 2, 3)).mean()


@pytest.mark.parametrize(
    ("dtype", "form", "onednn"),
    [
        ("float32", None, True),
        ("float32", None, False),
        ("float32", "plain", False),
        ("float64", None, False),
        ("bfloat16", None, False),
    ],
)
def test_operators_work_in_shard_map(monkeypatch, dtype, form, onednn):
    """Images split over two devices, with the checks of what varies: same gradient as on one."""
    monkeypatch.setattr(conv, "LEAST_WORK", 0 if onednn else 2**60)
    stage = functools.partial(small_stage, form)
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.normal(size=(4, 48, 48, 3)), dtype)
        kernel = jnp.asarray(rng.normal(0, 0.05, size=(11, 11, 3, 6)), dtype)
        mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))

        def local(kernel, images):
            kernel = lax.pcast(kernel, ("data",), to="varying")
            return lax.pmean(stage(kernel, images), "data")

        split = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
        loss, gradient = jax.jit(jax.value_and_grad(stage))(kernel, images)
        loss2, gradient2 = jax.jit(jax.value_and_grad(split))(kernel, images)
    assert gradient.dtype == dtype
    tolerance = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 3e-2}[dtype]
    np.testing.assert_allclose(float(loss2), float(loss), rtol=tolerance, atol=tolerance)
    a, b = (np.asarray(g, np.float64) for g in (gradient, gradient2))
    np.testing.assert_allclose(b, a, atol=tolerance * abs(a).max())
