"""Sweeps: which runs there are, that none is trained twice, and what stops and failures do."""

import collections
import json
import os
import signal
import threading
import time
import types
from pathlib import Path

import pytest
from absl import flags
from ml_collections.config_flags import DEFINE_config_file

from alexnet_jax import optim
from alexnet_jax.assemble import make_model
from alexnet_jax.config import flatten, freeze
from alexnet_jax.errors import UserError
from alexnet_jax.models import activations
from alexnet_jax.records import lock
from experiments import board, definition, record, sweep
from experiments.definition import cells, load_sweep
from experiments.recording import record_sweeps
from experiments.state import plan
from tests import tiny

# In the place of alexnet_jax.main: ends at once, or waits for SIGTERM, or fails.
STUB = """
import json, pathlib, signal, sys, time
from alexnet_jax.records import lock
flags = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
held = lock.acquire(workdir)
with (workdir / "started").open("a") as file:
    file.write("x")
rate = float(flags.get("config.optim.learning_rate", 0.01))
if rate == 666:
    print("error: step 3 is not finite")
    sys.exit(1)
if rate == 99 and not (workdir / "saved").exists():
    def save(*_):
        (workdir / "saved").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    (workdir / "ready").touch()
    time.sleep(60)
final = {"step": 6, "epoch": 3.0, "loss": 1.0, "top1_error": 40.0 + rate, "top5_error": 0.0}
lines = [
    {"step": s, "epoch": s / 2, "split": split, "loss": 1 / 3, "top1_error": 50, "top5_error": 0}
    for s in (2, 4, 6) for split in ("train", "test")
]
(workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
result = {"final": final, "best": final, "epochs": 3.0, "seed": int(flags["config.seed"])}
names = ("images_per_second", "commit", "date", "command", "hardware", "versions")
result |= dict.fromkeys(names, "?")
(workdir / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """Records go here, not into the project's."""
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sweep, "TICK_SECONDS", 0.02)
    return tmp_path / "results"


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """Runs are done by STUB, in tenths of a second."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    whole = definition.Cell.command

    def command(cell, python, workdir, data_dir=""):
        return [python, str(stub), *whole(cell, python, workdir, data_dir)[3:]]

    monkeypatch.setattr(definition.Cell, "command", command)
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT))


def make_sweep(folder: Path, variants: dict, name: str = "rates", **fields) -> Path:
    base = tiny.make_config(folder / "config.py", folder / "no_such_data")
    fields = {"BASE": str(base), "VARIANTS": variants, "SEEDS": 2, **fields}
    path = folder / f"{name}.py"
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in fields.items()))
    return path


RATES = {"baseline": {}, "low": {"optim.learning_rate": 0.001}}


def train(paths: list[Path], out: Path, *, jobs: int = 2, seeds: int | None = None):
    sweeps = [load_sweep(path) for path in paths]
    states = plan(sweeps, out, seeds)
    return sweep.run(sweeps, states, jobs=jobs), states


def starts(out: Path) -> list[int]:
    """How often each run was started."""
    return [len(path.read_text()) for path in sorted(out.glob("*/started"))]


def lines(results: Path, name: str = "rates") -> list[dict]:
    return [json.loads(line) for line in (results / name / "runs.jsonl").read_text().splitlines()]


def test_first_one_seed_of_every_variant_then_the_next(tmp_path):
    one = load_sweep(make_sweep(tmp_path, RATES))
    two = load_sweep(make_sweep(tmp_path, {"x": {}}, name="other", SEEDS=1))
    order = [(cell.sweep.name, cell.variant, cell.seed) for cell in cells([one, two])]
    assert order == [
        ("rates", "baseline", 0),
        ("rates", "low", 0),
        ("other", "x", 0),
        ("rates", "baseline", 1),
        ("rates", "low", 1),
    ]
    assert len(cells([one, two], seeds=3)) == 9


def test_a_run_is_known_by_what_decides_its_numbers(tmp_path):
    def digest(seed=0, **fields):
        variant = {name.replace("__", "."): value for name, value in fields.items()}
        return definition.cell(load_sweep(make_sweep(tmp_path, {"v": variant})), "v", seed).digest

    same = digest()
    assert digest(model__dropout=0.5) == same  # the preset's own
    assert digest(keep_checkpoints=7, data__data_dir="elsewhere", mesh__data=2) == same
    others = [
        digest(seed=1),
        digest(model__dropout=0.4),
        digest(num_epochs=4),
        digest(data__crop=False),
        digest(model__name="alexnet_half"),
        digest(optim__drop_epochs=(1,)),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_a_field_of_the_net_that_is_added_later_renames_no_run(tmp_path, monkeypatch):
    one = load_sweep(make_sweep(tmp_path, RATES))
    before = definition.cell(one, "low", 0).digest
    whole = definition.resolve

    def resolve(config, model):
        fields = vars(whole(config, model).model)
        return types.SimpleNamespace(model=types.SimpleNamespace(**fields, lately=1.5))

    monkeypatch.setattr(definition, "resolve", resolve)
    monkeypatch.setattr(definition.AlexNet, "lately", 1.5, raising=False)
    assert definition.cell(load_sweep(make_sweep(tmp_path, RATES)), "low", 0).digest == before


def test_the_command_line_says_the_whole_configuration(tmp_path):
    variant = {
        "model.skip": ("conv3",),
        "model.lrn": False,
        "optim.drop_epochs": (1, 2),
        "optim.layer_decays": (("conv1", 0.0),),
        "optim.schedule": "epochs",
        "model.lrn_alpha": 1e-4 * 64**2,
    }
    cell = definition.cell(load_sweep(make_sweep(tmp_path, {"v": variant})), "v", 3)
    command = cell.command("python", tmp_path / "run", "/data")
    values, arguments = flags.FlagValues(), ["main", *command[3:]]
    holder = DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(arguments)
    wanted = flatten(cell.config) | {"data.data_dir": "/data"}
    assert flatten(freeze(values[holder.name].value)) == wanted
    assert values["workdir"].value == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"VARIANTS": {}}, "defines no VARIANTS"),
        ({"BASELINE": "bassline"}, "did you mean 'baseline'"),
        ({"PAPER": {"lo": 1.0}}, "did you mean 'low'"),
        ({"PAPER": {"low": {"top1_eror": 1.0}}}, "did you mean 'top1_error'"),
        ({"PAPER": 1.4}, "PAPER = 1.4 is no dict"),
        ({"PAPER": {"low": "worse"}}, "PAPER of 'low' is 'worse': it must be a number or 'higher'"),
        ({"PAPER": {"low": {"loss": "+1.4"}}}, "PAPER of 'low' is '\\+1.4'"),
        ({"PAPER": {"low": True}}, "PAPER of 'low' is True"),
        ({"PUBLISHED": {"low": "18"}}, "PUBLISHED of 'low' is '18': it must be a number$"),
        ({"MEASURES": "top1_error"}, "MEASURES = 'top1_error' is no tuple"),
        ({"MEASURES": ("top1_eror",)}, "did you mean 'top1_error'"),
        ({"SEEDS": 0}, "SEEDS = 0 is not positive"),
        ({"SEED": 5}, "unknown SEED; did you mean SEEDS"),
        ({"OVERRIDE": {"num_epochs": 1}}, "unknown OVERRIDE; did you mean OVERRIDES"),
        ({"VARIANTS": {"low": 0.1}}, "the fields of 'low', 0.1, are no dict"),
        ({"BASE": "configs/nothing.py"}, "no configuration file"),
        ({"OVERRIDES": {"model.dropot": 0.1}}, "did you mean 'model.dropout'"),
        ({"OVERRIDES": {"num_epochs": "many"}}, "'baseline': "),
        ({"OVERRIDES": {"model.dropout": 1.5}}, "model.dropout=1.5"),
    ],
)
def test_a_mistake_in_a_definition_is_a_line(tmp_path, fields, message):
    path = make_sweep(tmp_path, RATES, **fields)
    with pytest.raises(UserError, match=message) as caught:
        cells([load_sweep(path)])
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_definition_is_a_line(tmp_path):
    with pytest.raises(UserError, match="no sweep"):
        load_sweep(tmp_path / "nothing.py")
    (tmp_path / "broken.py").write_text("BASE = (\n")
    with pytest.raises(UserError, match="cannot be loaded: SyntaxError"):
        load_sweep(tmp_path / "broken.py")


def test_the_projects_records_are_not_replaced_by_a_file_of_their_name(tmp_path, results):
    with pytest.raises(UserError, match="the project has a sweep of this name"):
        load_sweep(make_sweep(tmp_path, RATES, name="dropout"))
    with pytest.raises(UserError, match="the project has an analysis of this name"):
        load_sweep(make_sweep(tmp_path, RATES, name="averaging"))
    own = load_sweep(make_sweep(tmp_path, RATES, name="imagenette"))
    record.write_records("imagenette", [{"seed": 0, "final": {}}])
    with pytest.raises(UserError, match="has records that are no sweep's"):
        record_sweeps([own], plan([own], tmp_path / "runs"))
    assert record.read_records("imagenette") == [{"seed": 0, "final": {}}]


def test_every_sweep_of_the_project_builds_its_nets_and_shares_the_baseline():
    baselines = collections.defaultdict(set)  # by the budget
    sweeps = definition.load_all()
    assert {each.claim for each in sweeps} >= {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13}
    for each in cells(sweeps, seeds=1):
        config = each.config
        model = make_model(config, 10)
        layers = [name for name, _, count in activations(model, config.data.image_size) if count]
        optim.check(config.optim, layers)
        assert optim.unreached(config.optim, config.num_epochs) == []
        assert definition.cost(config) > 0
        shared = each.variant == "baseline" and not each.sweep.variants["baseline"]
        if shared and each.sweep.claim in (2, 4, 5, 6, 7, 11, 12, 13):
            baselines[config.num_epochs].add(each.digest)
    assert set(baselines) == {15, 45, 120}
    assert all(len(digests) == 1 for digests in baselines.values())


def test_runs_are_trained_once_and_recorded_for_every_sweep(tmp_path, results, stubbed):
    one = make_sweep(tmp_path, RATES)
    two = make_sweep(tmp_path, {"as it is": {"model.dropout": 0.5}}, name="other", SEEDS=1)
    status, states = train([one, two], tmp_path / "out")
    assert status == 0
    assert len(states) == 4
    assert starts(tmp_path / "out") == [1, 1, 1, 1]
    recorded = lines(results)
    assert [(line["variant"], line["seed"]) for line in recorded] == [
        ("baseline", 0),
        ("low", 0),
        ("baseline", 1),
        ("low", 1),
    ]
    assert recorded[1]["overrides"] == {"optim.learning_rate": 0.001}
    assert recorded[1]["settings"]["model.width"] == 1 / 16
    assert recorded[1]["final"]["top1_error"] == 40.001
    assert recorded[1]["wall_seconds"] > 0
    assert [point["epoch"] for point in recorded[1]["curve"]] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert {point["loss"] for point in recorded[1]["curve"]} == {0.33333}
    assert [line["variant"] for line in lines(results, "other")] == ["as it is"]

    status, _ = train([one, two], tmp_path / "out", seeds=3)
    assert status == 0
    assert sorted(starts(tmp_path / "out")) == [1] * 6
    assert len(lines(results)) == 6
    # Fewer seeds again: nothing is forgotten, also where the runs themselves are gone.
    train([one], tmp_path / "elsewhere", seeds=1)
    assert len(lines(results)) == 6


def test_lines_of_another_configuration_go(tmp_path, results, stubbed, capsys):
    """Those of a changed variant; but where none would stay, the records may be another file's."""
    train([make_sweep(tmp_path, RATES)], tmp_path / "out")
    changed = make_sweep(tmp_path, RATES | {"low": {"num_epochs": 5}})
    train([changed], tmp_path / "out", seeds=1)
    kept = [(line["seed"], line["overrides"].get("num_epochs")) for line in lines(results)]
    assert kept == [(0, None), (0, 5), (1, None)]
    assert "rates: 2 of 4 records go" in capsys.readouterr().out
    (tmp_path / "b").mkdir()
    other = make_sweep(tmp_path / "b", RATES, OVERRIDES={"num_epochs": 7})
    with pytest.raises(UserError, match=r"rates has records, and none is of a run .* another name"):
        train([other], tmp_path / "out")
    assert starts(tmp_path / "out") == [1] * 5
    assert len(lines(results)) == 3


def test_records_of_runs_that_are_elsewhere_keep_their_names(tmp_path, results, stubbed):
    """Also those of one run that is two variants, or that has another name by now."""
    same = {"model.dropout": 0.5}  # the preset's own
    path = make_sweep(tmp_path, {"baseline": {}, "same": same, **RATES}, SEEDS=1)
    train([path], tmp_path / "out")
    before = lines(results)
    assert [line["variant"] for line in before] == ["baseline", "same", "low"]
    elsewhere = tmp_path / "elsewhere"
    record_sweeps([load_sweep(path)], plan([load_sweep(path)], elsewhere))
    assert lines(results) == before
    renamed = load_sweep(make_sweep(tmp_path, {"explicit": same, "low": RATES["low"]}, SEEDS=1))
    record_sweeps([renamed], plan([renamed], elsewhere))
    assert lines(results) == [{**before[1], "variant": "explicit"}, before[2]]


def test_a_failed_run_does_not_end_the_others(tmp_path, results, stubbed, capsys):
    variants = {"baseline": {}, "bad": {"optim.learning_rate": 666.0}, **RATES}
    status, _ = train([make_sweep(tmp_path, variants, SEEDS=1)], tmp_path / "out", jobs=1)
    assert status == 1
    out = capsys.readouterr().out
    assert "2 of 3 runs are done" in out
    assert "failed: rates: bad, seed 0: error: step 3 is not finite; see " in out
    assert [line["variant"] for line in lines(results)] == ["baseline", "low"]


def test_a_run_that_begins_with_another_waits_for_it(tmp_path, results, stubbed):
    variants = {
        "baseline": {"init_from": "source"},
        "source": {"optim.learning_rate": 0.5},
        "orphan": {"init_from": "bad"},
        "bad": {"optim.learning_rate": 666.0},
    }
    path = make_sweep(tmp_path, variants, SEEDS=1)
    status, states = train([path], tmp_path / "out")
    assert status == 1
    by_name = {state.cell.variant: state for state in states}
    statuses = {name: state.status for name, state in by_name.items()}
    assert statuses == {"baseline": "done", "source": "done", "orphan": "failed", "bad": "failed"}
    assert not (by_name["orphan"].workdir / "started").exists()
    begun, source = (by_name[name].workdir for name in ("baseline", "source"))
    assert (begun / "started").stat().st_ctime >= (source / "result.json").stat().st_ctime
    command = by_name["baseline"].cell.command("python", begun)
    assert f"--config.init_from={source}" in command
    # Another source makes it another run.
    variants["source"] = {"optim.learning_rate": 0.4}
    other = load_sweep(make_sweep(tmp_path, variants))
    assert definition.cell(other, "baseline", 0).digest != by_name["baseline"].cell.digest


def test_a_signal_lets_the_runs_save_themselves_and_the_next_start_goes_on(
    tmp_path, results, stubbed, capsys
):
    path = make_sweep(tmp_path, {"baseline": {}, "long": {"optim.learning_rate": 99.0}}, SEEDS=1)
    out = tmp_path / "out"

    def stop():
        while not list(out.glob("*/ready")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    status, states = train([path], out)
    stopper.join()
    assert status == os.EX_TEMPFAIL
    assert {state.cell.variant: state.status for state in states}["long"] == "waiting"
    first = json.loads((states[1].workdir / "sessions.json").read_text())["seconds"]
    assert "stopped by SIGTERM; the same command goes on" in capsys.readouterr().out
    assert len(list(out.glob("*/saved"))) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    status, _ = train([path], out)
    assert status == 0
    assert sorted(starts(out)) == [1, 2]
    long = next(line for line in lines(results) if line["variant"] == "long")
    assert long["wall_seconds"] > first > 0


@pytest.mark.parametrize("what", ["claim", "."])
def test_a_run_that_another_process_has_is_left_to_it(tmp_path, results, stubbed, what):
    """The sweep that has it, or, where that was killed, the run that goes on without it."""
    path = make_sweep(tmp_path, RATES, SEEDS=1)
    one = load_sweep(path)
    low = tmp_path / "out" / definition.cell(one, "low", 0).folder
    baseline = tmp_path / "out" / definition.cell(one, "baseline", 0).folder
    held = lock.acquire(low / what)

    def finish():
        while not (baseline / "result.json").exists():
            time.sleep(0.02)
        time.sleep(0.2)  # time in which it could wrongly be started
        for name in ("metrics.jsonl", "result.json"):
            (low / name).write_bytes((baseline / name).read_bytes())
        held.release()

    other = threading.Thread(target=finish)
    other.start()
    status, states = train([path], tmp_path / "out")
    other.join()
    assert status == 0
    assert not (low / "started").exists()
    assert [state.status for state in states] == ["done", "done"]
    assert len(lines(results)) == 2


def test_each_job_has_its_own_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert sweep._shares(1) == [()]
    assert sweep._shares(2) == [(0, 2), (1, 3)]
    assert sweep._shares(3) == [(0, 3), (1,), (2,)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert sweep._shares(2) == [(5,), (5,)]


def test_time_left_is_learned_from_the_runs_that_ended(tmp_path, stubbed):
    one = load_sweep(make_sweep(tmp_path, RATES, SEEDS=1))
    states = plan([one], tmp_path / "out")
    # Nobody knows how many images there are.
    assert board.total_seconds_left(states, jobs=1) is None
    for state in states:
        state.flops = 1e12
    unknown = board.total_seconds_left(states, jobs=1)
    assert unknown == 2 * (board.START_SECONDS + 1e12 / board.CPU_RATE)
    states[0].status, states[0].seconds = "done", board.START_SECONDS + 100
    assert board.total_seconds_left(states, jobs=1) == pytest.approx(board.START_SECONDS + 100)


def test_a_real_run(tmp_path, results):
    folder = tiny.make_folder(tmp_path / "photographs")
    variants = {"baseline": {"data.name": f"folder:{folder}", "num_epochs": 1}}
    path = make_sweep(tmp_path, variants, SEEDS=1)
    status, _ = train([path], tmp_path / "out", jobs=1)
    assert status == 0, next(tmp_path.glob("out/*/log")).read_text()
    (line,) = lines(results)
    assert line["final"]["epoch"] == 1.0
    assert line["curve"][-1]["step"] == line["final"]["step"]
    assert line["hardware"]["cpu_cores"]
    assert f"--config.data.name=folder:{folder}" in line["command"]


def test_a_dry_run_only_lists(tmp_path):
    path = make_sweep(tmp_path, RATES, OVERRIDES={"data.name": "cifar10_jpeg"}, SEEDS=1)
    done = tiny.command("experiments.sweep", path, f"--out={tmp_path / 'out'}", "--dry_run")
    assert done.returncode == 0, done.stderr
    first, _, last = done.stdout.splitlines()
    assert first.startswith("rates: baseline, seed 0 ")
    assert "waiting" in first
    assert last.startswith("2 runs, ")
    assert "?" not in done.stdout
    assert "\x1b" not in done.stdout
    assert not (tmp_path / "out").exists()
