"""The one reading of a table: operations of one's own, and tables that cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import export, models, summary
from alexnet_jax.bench.layers import layer_flops
from alexnet_jax.errors import UserError
from alexnet_jax.models import Conv, Dense, Stateless, forms
from alexnet_jax.runtime import jax_versions
from alexnet_jax.trained.pretrained import open_pretrained
from tests import tiny


def squeeze(x):
    """Every second pixel, each divided by the largest of its tower."""
    return x[:, ::2, ::2] / (1 + abs(x).max(axis=-1, keepdims=True))[:, ::2, ::2]


SQUEEZE = Stateless("squeeze", squeeze, stride=2)
TABLE = (
    Conv("conv1", 4, kernel=3, padding=1, then=("act", SQUEEZE)),
    Conv("conv2", 4, kernel=3, padding=1, then=(Stateless("swish", jax.nn.swish),)),
    Dense("fc3"),
)
STAGES = (
    Conv("conv1", 4, kernel=3, stride=2, then=("act", "lrn", "pool")),
    Conv("conv2", 4, kernel=3, padding=1, then=("act",)),
    Dense("fc3"),
)


def net():
    model = models.create("alexnet", layers=TABLE, num_classes=5, kernel_init="he")
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    return model, params, images


def test_a_rows_own_function_runs_counts_and_is_shown():
    model, params, images = net()
    _, found = jax.jit(model.apply)({"params": params}, images)
    towers = jnp.split(found["act1"], 2, axis=-1)
    expected = jnp.concatenate([squeeze(x) for x in towers], axis=-1)
    np.testing.assert_allclose(found["squeeze1"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["swish2"], jax.nn.swish(found["conv2"]), rtol=1e-6)
    table = models.operations(model, 8)
    assert [op.name for op in table] == ["conv1", "act1", "squeeze1", "conv2", "swish2", "fc3"]
    shapes = {op.name: op.output for op in table if not op.dense}
    assert shapes == {name: x.shape[1:] for name, x in found.items() if name != "fc3"}
    rows = models.activations(model, 8)
    assert {name: shape for name, shape, _ in rows} == {k: x.shape[1:] for k, x in found.items()}
    assert sum(count for *_, count in rows) == sum(x.size for x in jax.tree.leaves(params))
    assert layer_flops(model, 8)["conv2"] == 2 * 4 * 4 * 4 * 3 * 3 * 2
    assert summary.receptive_fields(table)["conv2"] == 7


OWN_FILE = """
import jax
from alexnet_jax import models
from alexnet_jax.config import load_config_dict

swish = models.Stateless("swish", jax.nn.swish)
layers = (
    models.Conv("conv1", 32, kernel=5, stride=4, then=(swish, "pool")),
    models.Dense("fc2"),
)
models.PRESETS["swishnet"] = models.Preset("a net of this test", {{"layers": layers}})

def get_config():
    config = load_config_dict("{base}").unlock()
    config.num_train_steps = 2
    config.model.name = "swishnet"
    config.model.module = "swishnet"
    return config
"""


def test_commands_import_the_module_that_adds_a_runs_preset(trained, tmp_path, monkeypatch):
    own, run = tmp_path / "swishnet.py", tmp_path / "run"
    own.write_text(OWN_FILE.format(base=trained.config_file))
    picture = next(trained.images.rglob("*.png"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines = [
        ("alexnet_jax.main", f"--config={own}", f"--workdir={run}"),
        ("alexnet_jax.evaluate", f"--workdir={run}"),
        ("alexnet_jax.classify", f"--workdir={run}", picture),
    ]
    (tmp_path / "outputs").mkdir()
    done = tiny.commands(lines, tmp_path / "outputs")
    assert [each.returncode for each in done] == [0, 0, 0], done
    assert "swish1" in done[0].stdout
    with pytest.raises(UserError, match=r"model\.module 'swishnet' cannot be imported \(Mod"):
        open_pretrained(run)  # The folder of the module is not on this process' path.


def test_what_cannot_have_it_refuses_it_by_name():
    model, params, _ = net()
    for to in ("safetensors", "torchvision"):
        with pytest.raises(UserError, match="squeeze after conv1, swish after conv2"):
            export.refuse_own_functions(model, to)
    pytest.importorskip("torch")
    from alexnet_jax.bench import torch_nets

    with pytest.raises(UserError, match="squeeze1"):
        torch_nets.build(model, params, 8, tuned=True)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((Conv("conv1", 4, 3, then=("pol",)), Dense("fc2")), "after conv1 'pol'.*'pool'"),
        ((Conv("conv1", 4, 3), Dense("fc2", then=("lrn",))), "after fc2 'lrn'"),
        ((Conv("conv1", 4, 3), Conv("conv1", 4, 3), Dense("fc2")), "called conv1"),
        ((Dense("fc1"), Conv("conv1", 4, 3)), "Conv rows, then"),
        ((Conv("conv1", 0, 3), Dense("fc2")), "conv1: maps=0"),
        ((Conv("conv1", 4, 3), Dense("fc2", 9)), "fc2: units=9"),
        ((Conv("conv1", 4, 3, stride=2, local=True), Dense("fc2")), "conv1: stride=2"),
    ],
)
def test_a_table_is_checked_when_the_net_is_created(layers, message):
    with pytest.raises(UserError, match=message):
        models.create("alexnet", layers=layers)


def test_a_function_that_cannot_be_applied_is_named():
    wrong = Stateless("sum", lambda x: x.sum(axis=-1))
    table = (Conv("conv1", 4, 3, then=(wrong,)), Dense("fc2"))
    with pytest.raises(UserError, match="conv1: its operation 'sum' makes"):
        models.operations(models.create("alexnet", layers=table), 8)


def test_what_a_gpu_takes_gives_the_same_values_and_gradients(monkeypatch):
    """All forms that are chosen for CUDA, run here: of the first layer, its bias and the norms."""
    model = models.create("alexnet", layers=STAGES, num_classes=4, kernel_init="he")
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = jax.jit(model.init)(jax.random.key(1), images)

    def results():
        def loss(params):
            logits, activations = model.apply(params, images)
            return jnp.sum(jnp.square(logits)) + jnp.sum(activations["act2"]), activations["pool1"]

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    on_cpu = results()
    assert any("cuda" in on and "cpu" not in on for on in forms.FAST_ON.values())
    on_cuda = {name: ("cpu",) if "cuda" in on else () for name, on in forms.FAST_ON.items()}
    monkeypatch.setattr(forms, "FAST_ON", on_cuda)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results(), on_cpu
    )


def test_the_fused_kernel_is_a_gpus_alone_and_off_by_default():
    """A program for a CPU computes the same with it; tests/test_ops.py holds the kernel itself."""
    model = models.create("alexnet", layers=STAGES, num_classes=4, kernel_init="he")
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = jax.jit(model.init)(jax.random.key(1), images)
    nets = [model.clone(fused_kernel=fused_kernel) for fused_kernel in (False, True)]

    def has_kernel(net, platform):
        traced = jax.jit(net.apply).trace(params, images)
        try:
            return "triton" in traced.lower(lowering_platforms=(platform,)).as_text()
        except RuntimeError as error:  # From jax 0.11 on it is lowered only where the GPU is.
            return jax_versions.NO_GPU_TO_LOWER_FOR in str(error)

    found = [has_kernel(net, platform) for net in nets for platform in ("cpu", "cuda")]
    assert found == [False, False, False, True]
    off, on = (jax.jit(net.apply)(params, images)[0] for net in nets)
    np.testing.assert_array_equal(off, on)
