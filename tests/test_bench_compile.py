"""What a program compiled for a card costs: a small one by hand, and the train step's own."""

import importlib.util
import json

import pytest

from alexnet_jax.bench import estimate, hlo, target
from alexnet_jax.bench.compile import summary
from tests import tiny

PROGRAM = (tiny.ROOT / "tests" / "programs" / "h100_step.hlo").read_text()
MAPS = 2 * 64 * 10 * 10 * 96  # bytes of conv1's output
WEIGHTS = 4 * 1000 * 1000


@pytest.fixture(scope="module")
def priced():
    costs = estimate.costs(hlo.operations(PROGRAM), target.load("h100"), "bfloat16")
    return {cost.operation.name: cost for cost in costs}


def test_what_is_executed_is_listed_in_the_order_of_the_schedule(priced):
    names = "conv norm gradient reduce pooled written reduced updated"
    assert list(priced) == names.split()


def test_bytes_are_what_is_read_and_written(priced):
    images, kernel, pooled = 2 * 64 * 40 * 40 * 3, 2 * 96 * 4 * 4 * 3, 2 * 64 * 5 * 5 * 48
    assert priced["conv"].moved == images + kernel + MAPS  # no working space
    assert priced["norm"].moved == MAPS // 2 + MAPS // 2 + 4 * 48  # one tower of two is read
    assert priced["gradient"].moved == 2 * MAPS // 2 + WEIGHTS
    assert priced["pooled"].moved == MAPS // 2 + pooled
    assert priced["updated"].moved == 3 * WEIGHTS


def test_what_no_model_prices_takes_its_work_or_its_bytes(priced):
    conv = priced["conv"]
    assert conv.operation.flops == 2 * 64 * 10 * 10 * 96 * 4 * 4 * 3
    assert conv.us == pytest.approx(1e6 * conv.moved / 3.35232e12)  # longer than its work
    assert priced["written"].us == pytest.approx(1e6 * 2 * 2 * 64 * 5 * 5 * 48 / 3.35232e12)
    assert priced["norm"].us == 3.5  # XLA's model of fusions
    assert priced["gradient"].us == 4.0  # its only one
    assert priced["gradient"].operation.flops == 2 * (MAPS // 4) * 1000


def test_kinds_and_layers(priced):
    kinds = {name: (cost.kind, cost.layer) for name, cost in priced.items()}
    assert kinds == {
        "conv": ("convolutions", "conv1"),
        "norm": ("ReLU, LRN and pooling", "lrn1"),  # by what stands in it
        "gradient": ("matrix products", "fc6, backward"),
        "reduce": ("collectives", ""),
        "pooled": ("ReLU, LRN and pooling", "pool1, backward"),  # by what reads it
        "written": ("ReLU, LRN and pooling", "pool1, backward"),
        "reduced": ("collectives", ""),
        "updated": ("update", ""),
    }


def test_a_collective_is_exposed_as_far_as_nothing_runs_beside_it(priced):
    result = summary(list(priced.values()))
    beside = priced["pooled"].us + priced["written"].us
    assert result["exposed_us"] == pytest.approx(10.0 - beside)
    kernels = sum(cost.us for cost in priced.values() if cost.kind != "collectives")
    assert result["estimated_us"] == pytest.approx(kernels + result["exposed_us"])
    assert result["by_kind"]["collectives"] == {"us": 10.0, "bytes": 2 * WEIGHTS}
    assert sum(kind["bytes"] for kind in result["by_kind"].values()) == result["bytes"]
    assert result["largest"][0]["name"] == "reduce"


@pytest.mark.parametrize("name", sorted(path.stem for path in target.FOLDER.iterdir()))
def test_targets(name):
    """The dense peaks that NVIDIA's data sheets name, in TFLOP/s."""
    sheets = {"h100": 989, "h200": 989, "a100": 312, "b200": 2250}
    card = target.load(name)
    assert card.peaks["bfloat16"] == pytest.approx(1e12 * sheets[name], rel=0.02)
    assert card.peaks["float32"] == pytest.approx(card.peaks["bfloat16"] / 2)
    assert card.memory > 40e9


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return tiny.make_config(folder / "tiny.py", "/nowhere")


def test_an_unknown_target(config_file):
    done = tiny.command("alexnet_jax.bench", "compile", f"--config={config_file}", "--target=h10")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --target 'h10' is unknown: did you mean 'h100'?")
    assert done.stderr.count("\n") == 1


needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs jax[cuda12]"
)


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is not None, reason="the wheels are here"
)
def test_without_the_plugins_wheels(config_file):
    done = tiny.command("alexnet_jax.bench", "compile", f"--config={config_file}")
    assert done.returncode == 1
    assert "pip install 'jax[cuda12]==" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@needs_cuda
def test_the_step_compiles_for_two_cards(config_file, tmp_path):
    file, program = tmp_path / "result.json", tmp_path / "program.hlo"
    done = tiny.command(
        *("alexnet_jax.bench", "compile", f"--config={config_file}", f"--json={file}"),
        *("--devices=2", "--config.mesh.data=2", f"--hlo={program}"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["estimated_us"] > result["exposed_us"] > 0
    assert result["by_kind"]["convolutions"]["us"] > 0
    assert {each["layer"] for each in result["largest"]} & {"conv1, backward", "conv2, backward"}
    assert 0 < result["peak_bytes"] < 2**30
    assert program.read_text().startswith("HloModule")
    assert "NVIDIA H100" in done.stdout


@pytest.mark.slow
@needs_cuda
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--devices=3", "--config.mesh.data=3"], "batch_size=16 cannot be divided over 3 devices"),
        (["--config.batch_size=8388608"], "doesn't fit the 79 GiB of one NVIDIA H100"),
    ],
)
def test_what_does_not_fit(config_file, arguments, expected):
    done = tiny.command("alexnet_jax.bench", "compile", f"--config={config_file}", *arguments)
    assert done.returncode == 1
    assert expected in done.stderr.splitlines()[-1]
