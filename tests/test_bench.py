"""The benchmarks: counts that can be known beforehand, timings that exist, PyTorch's equal nets."""

import json
import os
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import models
from alexnet_jax.bench import layers, timing
from alexnet_jax.config import load_config
from alexnet_jax.prepare import prepare
from experiments import bench_table
from tests import tiny


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return tiny.make_config(folder / "tiny.py", tiny.make_folder(folder / "photographs"))


def run(mode, config_file, tmp_path, *arguments):
    result = tmp_path / "result.json"
    flags = (f"--config={config_file}", "--repeats=1", f"--json={result}", *arguments)
    # One thread: PyTorch's wait for each other, which is slow on a busy machine.
    env = {"OMP_NUM_THREADS": "1"} if "--against=torch" in arguments else None
    with tiny.unoptimised():
        done = tiny.command("alexnet_jax.bench", mode, *flags, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(result.read_text()), done.stdout


def test_turns_are_taken_in_turn_after_a_warm_up(monkeypatch):
    now, calls = 0.0, []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)

    def contender(name, seconds, start=0.0):
        def steps(count):
            nonlocal now
            calls.append((name, count))
            slower = 2 if len(calls) > 9 else 1  # the machine slows down
            now += (start + seconds * count) * slower

        return steps

    contenders = {"slow": contender("slow", 2.0), "fast": contender("fast", 0.25, start=0.5)}
    times = timing.take_turns(contenders, repeats=3, seconds=2.0)
    # The first estimate of the fast one holds its start: it runs on until a sample is long enough.
    counts = [("fast", 1)] * 2 + [("fast", 3), ("fast", 5), ("fast", 6)]
    assert calls == [("slow", 1)] * 2 + counts + [("slow", 1), ("fast", 6)] * 3
    assert times == {"slow": [2.0, 4.0, 4.0], "fast": [2 / 6, 4 / 6, 4 / 6]}
    assert timing.ratios(times["slow"], times["fast"]) == {
        "ratio": 6.0,
        "ratio_min": 6.0,
        "ratio_max": 6.0,
    }
    assert timing.spread(times["slow"]) == {
        "seconds": statistics.median([2.0, 4.0, 4.0]),
        "seconds_min": 2.0,
        "seconds_max": 4.0,
    }


def test_operations_of_the_papers_net():
    """Against the sum by hand from the paper's sizes, section 3.5."""
    flops = layers.layer_flops(models.create("alexnet"), 224)
    assert flops["conv1"] == 2 * 55 * 55 * 96 * 11 * 11 * 3
    assert flops["conv2"] == 2 * 27 * 27 * 256 * 5 * 5 * 48  # each map reads one tower
    assert flops["conv3"] == 2 * 13 * 13 * 384 * 3 * 3 * 256
    assert flops["fc6"] == 2 * 6 * 6 * 256 * 4096
    assert flops["fc8"] == 2 * 4096 * 1000
    # measurements.md, A7: 264.6 GFLOP for a batch of 64.
    step = layers.step_flops(models.create("alexnet"), 224, 64)
    assert step == pytest.approx(264.6e9, rel=2e-3)


def test_untied_layers_are_counted_by_place():
    flops = layers.layer_flops(models.create("cifar_13pct"), 24)
    assert flops["local3"] == 2 * 6 * 6 * 32 * 3 * 3 * 64


NETS = {
    "towers": ("alexnet", {}),
    "one tower, an even window": ("alexnet_one_tower", {"lrn_size": 4}),
    "norms within maps": ("net145", {}),
    "joined norms, pool first": ("caffenet", {}),
    "without conv3": ("alexnet", {"skip": ("conv3",)}),
    "overhang": ("cifar_18pct", {}),
    "untied": ("cifar_13pct", {}),
}
SMALL = dict(width=1 / 16, hidden_units=32, num_classes=10)


def net(name, **fields):
    preset, more = NETS[name]
    cifar = preset.startswith("cifar")
    model = models.create(preset, **({} if cifar else SMALL), **more, **fields)
    size = 32 if cifar else 99
    rng = np.random.default_rng(0)

    def draw(leaf):  # larger than at the start of training, so that the norms matter
        if leaf.ndim == 1:
            return jnp.asarray(rng.uniform(0, 1, leaf.shape), leaf.dtype)
        value = rng.normal(0, 0.01, leaf.shape)
        return jnp.asarray(value + 0.05 * np.sign(value), leaf.dtype)

    one = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0), one)["params"])
    return model, params, jnp.asarray(rng.normal(0, 60, (3, size, size, 3)), jnp.float32)


@pytest.mark.parametrize("name", NETS)
def test_operations_one_by_one_are_the_net(name):
    """Run one after the other on each other's maps they give the net's logits."""
    model, params, images = net(name, dropout=0.0)

    def chain(params, images):
        maps = [images]
        for operation in layers.operations(model, params, images.shape[1], len(images)):
            _, function, weights, made_up = operation
            if len(maps) != len(made_up):
                maps = [jnp.concatenate(maps, axis=-1)]
            maps = [x.reshape(like.shape) for x, like in zip(maps, made_up, strict=True)]
            maps = function(weights, maps)
        return maps[0]

    def both(params, images):
        return model.apply({"params": params}, images)[0], chain(params, images)

    whole, ours = jax.jit(both)(params, images)
    np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NETS if name != "untied"])
def test_pytorchs_tuned_net_is_ours(name):
    """Logits and every gradient, in double precision."""
    torch = pytest.importorskip("torch")
    from alexnet_jax.bench import torch_nets

    with jax.enable_x64(True):
        model, params, images = net(name, dropout=0.0, dtype="float64")
        theirs = torch_nets.build(model, params, images.shape[1], tuned=True).double()
        x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
        logits = theirs(x)
        weighted = np.random.default_rng(0).normal(size=logits.shape)
        (logits * torch.from_numpy(weighted)).sum().backward()

        def loss(params):
            ours, _ = model.apply({"params": params}, images)
            return jnp.sum(ours * weighted), ours

        gradients, ours = jax.jit(jax.grad(loss, has_aux=True))(params)
    ours = np.asarray(ours)
    np.testing.assert_allclose(logits.detach().numpy(), ours, atol=1e-8 * abs(ours).max(), rtol=0)
    biases = [np.asarray(gradients[row.name]["bias"]) for row in model.layers if row.name in params]
    their_biases = [p.grad.numpy() for p in theirs.parameters() if p.ndim == 1]
    for own, other in zip(biases, their_biases, strict=True):
        np.testing.assert_allclose(other, own, atol=1e-8 * abs(own).max() + 1e-12, rtol=0)
    conv1 = np.asarray(gradients[model.layers[0].name]["kernel"]).transpose(3, 2, 0, 1)
    first = next(theirs.parameters()).grad.numpy()
    np.testing.assert_allclose(first, conv1, atol=1e-8 * abs(conv1).max(), rtol=0)


def test_pytorchs_stock_net_is_ours_where_norms_join():
    torch = pytest.importorskip("torch")
    from alexnet_jax.bench import torch_nets

    model, params, images = net("towers", lrn_joins=True)
    theirs = torch_nets.build(model, params, images.shape[1], tuned=False).eval()
    with torch.inference_mode():
        logits = theirs(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)).numpy()
    ours, _ = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(logits, ours, atol=1e-4 * abs(ours).max(), rtol=0)


def test_step_needs_no_data(config_file, tmp_path):
    result, text = run("step", config_file, tmp_path, "--config.data.name=folder:/nowhere")
    assert result["images_per_second"] == pytest.approx(16 / result["step_seconds"])
    assert set(result["forward"]) == {"1", "16"}
    for key in ("compile_seconds", "second_compile_seconds", "peak_matmul_flops", "step_bytes"):
        assert result[key] > 0
    model = models.create("alexnet", **_tiny_fields(config_file), num_classes=1000)
    assert result["model_flops"] == layers.step_flops(model, 32, 16)
    assert result["overrides"] == {"data.name": "folder:/nowhere"}
    assert result["device"]
    assert result["versions"]["jax"] == jax.__version__
    assert "images/s" in text


def _tiny_fields(config_file):
    given = {k: v for k, v in vars(load_config(config_file).model).items() if v is not None}
    return {name: value for name, value in given.items() if name not in ("name", "num_classes")}


@pytest.mark.slow
def test_layers_names_each_operation(config_file, tmp_path):
    result, _ = run("layers", config_file, tmp_path)
    layers = {layer["layer"]: layer for layer in result["layers"]}
    names = "conv1 act1 lrn1 pool1 conv2 act2 lrn2 pool2 conv3 act3 conv4 act4 conv5 act5 pool5"
    assert list(layers) == [*names.split(), "fc6", "act6", "fc7", "act7", "fc8", "update"]
    assert "input_gradient" not in layers["conv1"]
    assert layers["conv2"].keys() >= {"forward", "input_gradient", "weight_gradient"}
    assert "weight_gradient" not in layers["pool1"]


def test_input(config_file, tmp_path):
    result, _ = run("input", config_file, tmp_path, "--config.data.backend=tfdata", "--seconds=0.1")
    assert result["images_per_second"] > 0
    assert result["decoding"]["ratio"] > 0
    assert result["resize_size"] == 36
    assert result["sample_seconds"] == 0.1
    assert result["python"]["cpu_seconds"] > 0


def test_input_from_a_mapped_copy(config_file, tmp_path):
    prepare(load_config(config_file).data, tmp_path / "copies", raw=True)
    arguments = ("--config.data.backend=mapped", f"--config.data.copies={tmp_path / 'copies'}")
    for more, limit in ((), "copying"), (("--cold",), "reading"):
        given = (*arguments, *more, "--seconds=0.1")
        result, text = run("input", config_file, tmp_path, *given)
        assert result["images_per_second"] > 0
        assert result[limit]["images_per_second"] > 0
        assert f"bare {limit}" in text
        assert bool(result.get("disk")) == bool(more)
        assert "a process stops scaling" in text


def test_the_device_backend_sends_nothing(config_file, tmp_path):
    result, _ = run("input", config_file, tmp_path, "--seconds=0.1")
    assert result["transfers_between_steps"] == 0


def test_train(config_file, tmp_path):
    result, text = run("train", config_file, tmp_path, "--steps=8")
    assert result["steps"] == 8
    slower = max(result["step_seconds"], result["input_seconds"])
    assert result["overhead"] == pytest.approx(result["loop_seconds"] / slower - 1)
    assert "the loop takes" in text


@pytest.mark.slow
def test_comms(config_file, tmp_path):
    result, _ = run("comms", config_file, tmp_path)
    by_mesh = {(e["layout"], e["data"], e["model"]): e for e in result["layouts"]}
    assert set(by_mesh) >= {("data", 2, 1), ("towers", 1, 2), ("hybrid", 1, 2), ("data", 8, 1)}
    data, towers = by_mesh["data", 2, 1], by_mesh["towers", 1, 2]
    assert "all-gather" not in data["collectives"]
    assert towers["collectives"]["all-gather"]["count"] == 5
    # The gradients of all parameters, and a few sums.
    params = models.create("alexnet", **_tiny_fields(config_file), num_classes=4)
    shapes = jax.eval_shape(params.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
    assert size <= data["bytes_sent"] < size + 100


@pytest.mark.slow
def test_against_torch(config_file, tmp_path):
    pytest.importorskip("torch")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its compiler takes a minute
    try:
        result, text = run("step", config_file, tmp_path, "--against=torch")
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]
    for task in ("step", "forward_1", "forward_16"):
        assert set(result["torch"][task]) == {"stock", "tuned"}
        assert result["torch"][task]["stock"]["ratio"] > 0
    assert "stock" in text


@pytest.mark.slow
def test_against_torchs_loader(config_file, tmp_path):
    pytest.importorskip("torch")
    flags = ("--config.data.backend=tfdata", "--against=torch", "--seconds=1")
    result, _ = run("input", config_file, tmp_path, *flags)
    assert result["torch"]["ratio"] > 0
    assert result["torch"]["pixel_difference"] == 0  # these photographs aren't resized


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "one of step, layers, input, train, comms"),
        (["stepp"], "did you mean 'step'"),
        (["step", "--repeats=0"], "--repeats must be at least 1"),
    ],
)
def test_mistakes(arguments, expected, config_file):
    done = tiny.command("alexnet_jax.bench", f"--config={config_file}", *arguments)
    assert done.returncode == 1
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_table_shows_the_newest_matching_record(tmp_path):
    def record(ratio, **fields):
        torch = {"step": {"stock": {"ratio": ratio}, "tuned": {"ratio": ratio / 2}}}
        common = {
            "mode": "step",
            "config": "configs/imagenette.py",
            "overrides": bench_table.TEN_CLASSES,
        }
        hardware = {"device_kind": "cpu"}
        return {**common, "device": "a CPU", "hardware": hardware, "torch": torch, **fields}

    other = record(9.0, overrides={**bench_table.TEN_CLASSES, "batch_size": 8})
    lines = [record(1.5), record(1.25), other]
    (tmp_path / "step.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = bench_table.table(tmp_path)
    (row,) = [line for line in table.splitlines() if "imagenette" in line and "1.25" in line]
    assert "1.25× stock" in row
    assert "9.00" not in table
    assert "not measured" in table
