"""Tables, ledger, analyses and figures say what the records and checkpoints say."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import bench, features
from alexnet_jax.assemble import assemble
from alexnet_jax.config import load_config, override, read_config
from alexnet_jax.errors import UserError
from alexnet_jax.trained.pretrained import open_pretrained
from experiments import (
    analyse,
    definition,
    figures,
    findings,
    heat_maps,
    ledger,
    measures,
    net_claims,
    net_figures,
    pages,
    record,
    reproduce,
    scale,
    seeds_together,
    tables,
    tabulate,
)
from experiments.compare import Interval, paired, verdict
from experiments.drawing import Drawing, dots, write
from tests import tiny


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty place of records."""
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def line(variant: str, seed: int, error: float, **fields) -> dict:
    """A record with a curve of six training lines and three evaluations."""
    train = zip((2.0, 1.5, 1.0, 0.8, 0.6, 0.4), (80.0, 60.0, 40.0, 24.0, 20.0, 10.0), strict=True)
    valid = zip((1.5, 1.1, 1.4), (60.0, 50.0, error), strict=True)
    curve = [
        {"epoch": number / per_epoch, "split": split, "loss": loss, "top1_error": top1}
        for split, per_epoch, points in (("train", 2, train), ("validation", 1, valid))
        for number, (loss, top1) in enumerate(points, start=1)
    ]
    final = {"top1_error": error, "top5_error": error / 5, "loss": 1.4}
    return {"variant": variant, "seed": seed, "final": final, "curve": curve, **fields}


def test_the_interval_is_students_over_pairs_of_one_seed():
    ours = {0: 31.0, 1: 32.0, 2: 33.0, 7: 99.0}
    base = {0: 30.0, 1: 30.0, 2: 30.0, 5: 0.0}
    found = paired(ours, base)
    half = 4.302653 * 1.0 / 3**0.5  # t of two degrees of freedom, deviation 1, three pairs
    assert (found.mean, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert not found.visible
    assert paired({0: 31.0}, base) == Interval(1.0, None, None, 1)
    assert paired({3: 1.0}, base) is None
    assert paired({0: None, 1: 2.0}, base) is None


def test_quotients_are_compared_as_quotients():
    found = paired({0: 2.0, 1: 8.0}, {0: 1.0, 1: 1.0}, ratio=True)
    assert found.mean == pytest.approx(4.0)
    assert found.low * found.high == pytest.approx(16.0)
    assert paired({0: 2.0, 1: 2.2}, {0: 1.0, 1: 1.0}, ratio=True).visible


@pytest.mark.parametrize(
    ("interval", "paper", "expected"),
    [
        (Interval(1.0, 0.5, 1.5, 3), 1.4, "agrees"),
        (Interval(-1.0, -1.5, -0.5, 3), 1.4, "contradicts"),
        (Interval(1.0, 0.5, 1.5, 3), "lower", "contradicts"),
        (Interval(1.0, -0.5, 2.5, 3), 1.4, "not visible"),
        (Interval(0.1, -0.5, 0.7, 3), 1.4, "no effect of that size"),
        (Interval(1.0, -0.5, 2.5, 3), "higher", "not visible"),
        (Interval(0.6, 0.5, 0.7, 3, ratio=True), 0.5, "agrees"),
        (Interval(0.6, 0.4, 1.2, 3, ratio=True), 0.5, "not visible"),
        (Interval(0.8, 0.6, 1.2, 3, ratio=True), 0.5, "no effect of that size"),
        (Interval(3.0, 2.0, 4.0, 3, ratio=True), 6.0, "agrees"),
        (Interval(1.0, 0.5, 1.5, 3), None, "visible"),
        (Interval(1.0, None, None, 1), 1.4, "one seed"),
        (None, 1.4, "not decided"),
    ],
)
def test_the_verdict_is_about_the_direction_and_then_the_size(interval, paper, expected):
    assert verdict(interval, paper) == expected


def test_a_run_that_does_not_get_there_is_a_lower_bound():
    """A tanh net that is not at 25% when its run ends: at least so many times ReLU's epochs."""
    relu = {0: 7.0, 1: 8.0}
    tanh = {0: measures.AtLeast(56.0), 1: 48.0}
    found = paired(tanh, relu, ratio=True)
    assert found.at_least
    assert found.low == pytest.approx(6.0)
    assert tabulate.difference(found, "epochs_to_25") == "at least ×6.00"
    assert verdict(found, 6.0) == "agrees"
    assert paired(relu, tanh, ratio=True) is None  # a bound of the baseline bounds nothing
    assert tabulate.spread([measures.AtLeast(56.0)] * 2, "epochs_to_25") == "not within 56.00"


@pytest.mark.parametrize("family", [1, 11])
def test_what_so_many_pairs_would_show(family):
    """The difference that a paired t-test of this spread sees in 80 of 100 such experiments.

    In a family of eleven, as the grid of dropout and pooling, it has to be seen at 5% over 11.
    """
    rng = np.random.default_rng(0)
    spread, n = 1.5, 5
    found = paired(
        {i: spread * (i - 2) / np.sqrt(2.5) for i in range(n)}, dict.fromkeys(range(n), 0.0)
    )
    draws = rng.normal(found.detectable(family), spread, (20_000, n))
    t = draws.mean(1) / (draws.std(1, ddof=1) / np.sqrt(n))
    critical = {1: 2.776445, 11: 5.746507}[family]  # of four degrees of freedom
    assert (abs(t) > critical).mean() == pytest.approx(0.8, abs=0.01)


def test_measures_of_a_curve():
    one = line("baseline", 0, 45.0)
    assert measures.value(one, "train_top1_error") == 15.0  # of the last epoch
    assert measures.value(one, "epochs_to_25") == 2.0
    assert measures.value(one, "best_epoch") == 2.0
    assert measures.value(one, "rise") == pytest.approx(0.3)
    for each in one["curve"]:
        each["top1_error"] = 80.0
    assert measures.value(one, "epochs_to_25") == measures.AtLeast(3.0)
    assert isinstance(measures.value(one, "epochs_to_25"), measures.AtLeast)
    assert measures.value({**one, "measures": {"top1_error": 7.0}}, "top1_error") == 7.0
    with pytest.raises(UserError, match="did you mean 'top1_error'"):
        measures.value(one, "top1_eror")


LRN = [
    *(line("baseline", seed, error) for seed, error in enumerate((30.0, 31.0, 32.0))),
    *(line("no LRN", seed, error) for seed, error in enumerate((31.4, 32.4, 33.6))),
]


def test_a_table_in_three_languages():
    sweep = definition.load_sweep(definition.FOLDER / "lrn.py")
    texts = tabulate.grid(sweep, LRN)
    assert texts[1][:2] == ["baseline", "31.00 ± 1.00"]
    assert texts[2] == [
        "no LRN",
        "32.47 ± 1.10",
        "1.400 ± 0.000",
        "3",
        "+1.47 [+1.18, +1.75]",
        "+1.4",
    ]
    assert len(texts) == 3  # variants without records have no row
    shown = tabulate.markdown(texts)
    assert shown.splitlines()[1] == "| :--- | ---: | ---: | ---: | ---: | ---: |"
    tex = tables.latex(texts)
    assert r"no LRN & 32.47 $\pm$ 1.10 &" in tex
    assert r"top-1 error, \%" in tex
    table = list(csv.DictReader(io.StringIO(tables.comma_separated(sweep, LRN))))
    row = next(r for r in table if (r["variant"], r["measure"]) == ("no LRN", "top1_error"))
    assert float(row["difference"]) == pytest.approx(1.4666667)
    assert (row["n"], row["paper"]) == ("3", "1.4")


def test_what_is_not_reached_has_no_mean():
    assert tabulate.spread([None, None], "epochs_to_25") == "not reached"
    assert tabulate.spread([2.0, None], "epochs_to_25") == "reached by 1 of 2"
    assert tabulate.spread([None, None], "low_frequency") == "not recorded"
    assert tabulate.spread([70.0, None], "low_frequency") == "recorded by 1 of 2"


def test_the_pages_check_sees_a_changed_number(results):
    record.write_records("lrn", LRN)
    text = "a\n\n<!-- table: lrn -->\n<!-- end -->\nb <!-- table: ledger -->\n<!-- end -->\n"
    assert tables.differing(text) == ["lrn", "ledger"]
    whole = tables.filled(text)
    assert whole.startswith("a\n\n<!-- table: lrn -->\n| variant |")
    assert "\n<!-- end -->\nb <!-- table: ledger -->\n|  | the paper |" in whole
    assert tables.differing(whole) == []
    assert tables.differing(whole.replace("32.47", "32.46")) == ["lrn"]
    with pytest.raises(UserError, match="did you mean 'lrn'"):
        tables.filled("<!-- table: lrnn -->\n<!-- end -->")


def test_the_ledger_has_a_row_a_claim_by_its_primary_finding(results):
    record.write_records("lrn", LRN)
    pairs = (("baseline", (30.0, 31.0)), ("2x2, no overlap", (31.0, 30.5)))
    lines = [line(name, seed, e) for name, both in pairs for seed, e in enumerate(both)]
    record.write_records("pooling", lines)
    claims = ledger.judged()
    _, *rows = ledger.grid(claims)
    assert [row[0] for row in rows] == [f"[{n}](#claim-{n})" for n in range(1, 18)]
    assert rows[1][2:] == ["", "⚪ not run"]  # what is there is secondary
    assert rows[3][2] == "2x2, no overlap: top-1 error +0.25 points [−9.28, +9.78], 2 seeds"
    assert rows[3][3] == "⚪ not visible"
    assert "60,965,224 parameters and 659,272 units; but conv1 has 290,400 units" in rows[15][2]
    assert "conv3 1.45%, conv4 1.09%" in rows[15][2]
    assert rows[15][3] == "🟡 agrees in part"
    assert rows[16][3] == "⚪ not run"
    assert ledger.summary(claims) == (
        "1 of 17 claims agrees in part, 1 cannot be told from chance and 15 have not been run."
    )
    listed = {row[0]: row for row in ledger.behind(claims[1])}
    lrn = listed["[no LRN](results/lrn/table.md), top-1 error"]
    assert lrn[1:4] == ["+1.4", "+1.47 points [+1.18, +1.75]", "3 seeds"]
    assert lrn[-1] == "agrees"
    page = ledger.text()
    assert page.count("## Claim ") == 17
    assert "**1 of 17 claims agrees in part, " in page


def test_the_ledger_says_what_was_run_at_its_published_length(results):
    figure1 = ledger.CLAIMS[8]
    assert ledger.judge(figure1).scale == "cifar_18pct, unregularised: not run"
    record.write_records("figure1", [line("relu", 0, 30.0), line("tanh", 0, 30.0)])
    ran = "cifar_18pct, unregularised: run, on CIFAR-10 re-encoded as JPEG"
    assert ledger.judge(figure1).scale == ran
    record.write_records("cifar_18pct_long", [line("baseline", 0, 20.1)])
    assert ledger.judge(ledger.CLAIMS[2]).scale == (
        "cifar_13pct, cifar_11pct: not run; cifar_18pct over all of its 140 epochs, one seed: run, "
        "on CIFAR-10 re-encoded as JPEG"
    )


def test_one_seed_beside_a_number_in_print_decides_nothing(results):
    """The published net's error is a row of its own, and says that it rests on one run."""
    runs = [("baseline", 20.49), ("no normalisation", 21.5)]
    record.write_records("cifar_18pct_long", [line(name, 0, error) for name, error in runs])
    sweep = definition.load_sweep(definition.FOLDER / "cifar_18pct_long.py")
    own, compared = findings.of_study(sweep)
    assert (own.amount, own.paper, own.runs, own.verdict) == (
        "20.49%",
        "18",
        "one seed",
        "one seed",
    )
    assert (compared.amount, compared.verdict) == ("+1.01 points", "one seed")
    texts = tabulate.grid(sweep, record.read_records("cifar_18pct_long"))
    assert texts[0][4] == "in print"
    assert [row[4] for row in texts[1:]] == ["18", ""]
    seeds = [line("baseline", seed, error) for seed, error in enumerate((20.4, 20.5, 20.6))]
    record.write_records("cifar_18pct_long", seeds)
    (own,) = findings.of_study(sweep)
    assert own.verdict == "higher than in print"


def test_findings_of_a_family_are_corrected_together(results):
    """Of three middle layers the least p is multiplied by three (Holm), and may not show then."""
    errors = {
        "baseline": (30.0, 30.0, 30.0),
        "no conv3": (30.9, 31.0, 31.3),
        "no conv4": (30.0, 31.0, 29.5),
        "no conv5": (29.0, 30.5, 30.0),
    }
    lines = [line(name, seed, e) for name, three in errors.items() for seed, e in enumerate(three)]
    record.write_records("middle_convs", lines)
    sweep = definition.load_sweep(definition.FOLDER / "middle_convs.py")
    found = {each.name[1]: each for each in findings.of_study(sweep)}
    alone = paired(*(dict(enumerate(errors[name])) for name in ("no conv3", "baseline")))
    assert alone.p < 0.05
    assert found["no conv3"].p == pytest.approx(3 * alone.p)
    assert found["no conv3"].verdict == ("agrees" if 3 * alone.p < 0.05 else "not visible")
    assert found["no conv4"].p == 1.0
    assert found["no conv3"].power == f"±{alone.detectable(3):.2f}" != f"±{alone.detectable():.2f}"


def test_a_page_is_written_in_utf8_under_any_locale(tmp_path):
    """One of no such signs left the page empty: it was cut before its text failed to be encoded."""
    page = tmp_path / "page.md"
    page.write_text("old", "utf-8")
    code = (
        "from pathlib import Path; from experiments import pages; "
        f"path = Path({str(page)!r}); pages.write(path, '−0.5 ± 1'); "
        "assert pages.is_current(path, '−0.5 ± 1')"
    )
    ascii_ = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | ascii_ | {"PYTHONPATH": str(tiny.ROOT)}
    script = tmp_path / "script.py"
    script.write_text(code, "utf-8")
    subprocess.run([sys.executable, script], env=environment, check=True)
    assert page.read_text("utf-8") == "−0.5 ± 1"
    with pytest.raises(UnicodeEncodeError):
        pages.write(page, "a name that is no text, \udcff")
    assert page.read_text("utf-8") == "−0.5 ± 1"


def test_an_own_sweep_has_its_table(results, tmp_path, capsys, monkeypatch):
    """One that is nowhere but in the file that is named."""
    file = tmp_path / "mine.py"
    file.write_text(
        '"""Mine."""\nBASE = "configs/bench_imagenette.py"\nVARIANTS = {"a": {}, "b": {}}'
    )
    with pytest.raises(UserError, match="no records of 'mine'"):
        tables.main([str(file)])
    record.write_records("mine", [line("a", 0, 30.0), line("b", 0, 31.0)])
    given = SimpleNamespace(check=False, write=False)
    monkeypatch.setattr(tables, "flags", SimpleNamespace(FLAGS=given))
    assert tables.main([str(file)]) == 0
    assert "mine: Mine.\n\n| variant |" in capsys.readouterr().out


def test_records_of_another_configuration_are_refused(results):
    record.write_records("pooling", [line("baseline", 0, 30.0, digest="0123456789ab")])
    sweep = definition.load_sweep(definition.FOLDER / "pooling.py")
    with pytest.raises(UserError, match="line 1: 'baseline', seed 0, is of another configuration"):
        findings.of_study(sweep)
    record.write_records("pooling", [line("2x2", 0, 30.0)])
    with pytest.raises(UserError, match="'2x2', seed 0, is of another"):
        findings.records(sweep)


def test_a_sweep_of_ones_own_has_its_table(results, tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(
        '"""Mine."""\nBASE = "configs/default.py"\nVARIANTS = {"one": {}, "two": {"seed": 7}}\n'
    )
    with pytest.raises(UserError, match=r"no records of 'mine': run .*mine\.py"):
        tables.asked_for([str(own)])
    record.write_records("mine", [line("one", 0, 30.0), line("two", 0, 20.0)])
    (sweep,) = tables.asked_for([str(own)]).values()
    assert "20.00" in tables.files(sweep, findings.records(sweep))[results / "mine" / "table.md"]


def test_lower_bounds_are_no_numbers(results):
    """Neither in a verdict over one pair nor as a mean in the table for programs."""
    bound = paired({0: measures.AtLeast(56.0)}, {0: 7.0}, ratio=True)
    assert verdict(bound, 6.0) == "one seed"
    slow = line("tanh", 0, 30.0)
    slow["curve"] = [
        each for each in slow["curve"] if each["split"] != "train" or each["epoch"] < 2
    ]
    sweep = definition.load_sweep(definition.FOLDER / "figure1.py")
    text = tables.comma_separated(sweep, [line("relu", 0, 30.0), slow])
    assert "relu,epochs_to_25,2.0,,1,,,," in text
    assert "tanh,epochs_to_25,,,1,,0.75,," in text


def test_an_analysis_keeps_the_nets_that_are_not_here(results):
    def measured(seed, value):
        return {"variant": "as trained", "seed": seed, "measures": {"colour_gap": value}}

    record.write_records("specialisation_large", [measured(0, 36.8), measured(1, 4.0)])
    analyse.add_records("specialisation_large", [measured(2, 9.0), measured(1, 4.5)])
    kept = record.read_records("specialisation_large")
    assert [(each["seed"], each["measures"]["colour_gap"]) for each in kept] == [
        (0, 36.8),
        (1, 4.5),
        (2, 9.0),
    ]


def test_the_nets_of_an_analysis_are_the_same_whatever_else_has_run(tmp_path):
    for name, variant in (("lrn", "baseline"), ("lrn", "no LRN"), ("precision", "bfloat16")):
        sweep = definition.load_sweep(definition.FOLDER / f"{name}.py")
        for seed in range(5):
            folder = tmp_path / definition.cell(sweep, variant, seed).folder
            folder.mkdir(exist_ok=True)
            (folder / "result.json").touch()
    found = analyse.finished(tmp_path)
    assert list(found) == ["baseline", "lrn: no LRN"]
    assert [each.seed for each in found["baseline"]] == [0, 1, 2, 3, 4]


def test_a_claim_is_reproduced_by_its_commands():
    claim = ledger.CLAIMS[0]
    lines = reproduce.commands(claim, ["--jobs=2", "--out=o", "--data_dir=d"])
    said = [" ".join(command[2:]) for command, _ in lines]
    assert said == [
        *(
            f"experiments.sweep experiments/sweeps/{name}.py --jobs=2 --out=o --data_dir=d"
            for name in ("lrn", "pooling", "weight_decay", "pretraining")
        ),
        "experiments.analyse averaging --record --out=o --data_dir=d",
        "experiments.tables --write",
        "experiments.ledger --write",
    ]
    assert "9 runs, some" in lines[3][1]
    (_, cost), *_ = reproduce.commands(ledger.CLAIMS[8], [])
    assert cost.startswith("6 runs, ")
    with pytest.raises(UserError, match="name one claim, from 1 to 17"):
        reproduce.main(["18"])


def test_folders_are_those_that_a_shell_would_mean():
    """Of --data_dir=~/x, which shells leave as it is, a sweep made FOLDER/~/x."""
    done = tiny.command("experiments.reproduce", 15, "--data_dir=~/x", "--out=o")
    assert f"--out={tiny.ROOT / 'o'} --data_dir={Path.home() / 'x'} " in done.stdout
    for line in (["sweep"], ["reencode", "--out=o"]):
        done = tiny.command(f"experiments.{line[0]}", *line[1:], "--data_dir=~no.such.user/x")
        assert "there is no such user" in done.stderr


def test_the_time_of_two_gpus_is_read_from_the_benchmark(results):
    fields = {"batch_size": 128}

    toy = {"batch_size": 4, "data.image_size": 99, "model.width": 0.0625, "model.hidden_units": 32}

    def measured(seconds, own, kind="GTX 580", **more):
        overrides = {**fields, **own, **more}
        where = {"config": "configs/imagenet2012.py", "hardware": {"device_kind": kind}}
        return {**where, "overrides": overrides, "step_seconds": seconds}

    lines = [
        measured(1.8, net_claims.TWO_GPUS),
        measured(3.0, net_claims.ONE_GPU),
        measured(2.0, net_claims.ONE_GPU),  # the newest, though after the other
        measured(1.0, net_claims.ONE_GPU, batch_size=64),
        measured(1.0, net_claims.ONE_GPU, kind="cpu"),
        measured(0.5, net_claims.TWO_GPUS, kind="cpu"),
        measured(9.0, net_claims.TWO_GPUS, kind="another"),
        # The newest of all, but a rehearsal's on this GPU, which once decided the claim.
        *(measured(0.1, net, **toy) for net in (net_claims.TWO_GPUS, net_claims.ONE_GPU)),
    ]
    file = record.RESULTS / "bench" / "step.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = ("0.90× the time of half the net on one GTX 580", "agrees")
    assert net_claims.times() == expected
    two = ledger.judge(ledger.CLAIMS[16])
    assert (two.verdict, two.scale) == ("agrees", "imagenet2012")


def test_every_claim_of_a_sweep_has_its_row_and_its_primary_finding():
    known = definition.studies()
    for number, (study, variant, measure) in findings.PRIMARY.items():
        assert study in next(claim for claim in ledger.CLAIMS if claim.number == number).names
        assert variant in known[study].variants
        assert measure in known[study].measures
    claims = {name: claim.number for claim in ledger.CLAIMS for name in claim.names}
    for name, sweep in definition.studies().items():
        if sweep.claim and name != "paper":
            assert claims[name] == sweep.claim


def test_the_projects_own_tables_are_those_of_its_records():
    texts = [page.read_text() for page in tables.PAGES]
    assert [name for text in texts for name in tables.differing(text)] == []
    # A table that got lost in a move would go unnoticed.
    blocks = {match[1] for text in texts for match in tables.BLOCK.finditer(text)}
    assert blocks == set(tables.OTHERS)
    assert ledger.PATH.read_text() == ledger.text()
    assert scale.PAGE.read_text() == scale.page()
    for name, sweep in definition.studies().items():
        if lines := findings.records(sweep):
            for path, text in tables.files(sweep, lines).items():
                assert path.read_text() == text, name


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Two untrained nets on a small data set, as finished cells and a loader of theirs."""
    folder = tmp_path_factory.mktemp("nets")
    data = tiny.make_folder(folder / "photographs")
    run = assemble(load_config(tiny.make_config(folder / "config.py", data)))
    params = run.fresh_state().params
    other = jax.tree.map(lambda leaf: leaf[..., ::-1] * 1.2, params)
    cells = [SimpleNamespace(seed=seed, digest=str(seed)) for seed in range(2)]
    return {"baseline": cells}, lambda cell: (run, (params, other)[cell.seed])


def test_averaging_has_the_mean_of_all_and_all_together(nets, monkeypatch):
    monkeypatch.setattr(analyse, "AVERAGED", 2)
    single, together = analyse.averaging(*nets)
    assert single["variant"] == "one net"
    assert together["variant"] == "five averaged"
    runs, load = nets
    losses = [analyse.evaluate(*load(cell))["loss"] for cell in runs["baseline"]]
    assert single["measures"]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    # Jensen: the average's loss is below the average of the losses, as these nets differ.
    assert together["measures"]["loss"] < np.mean(losses)


def test_views_gives_both_of_each_seed(nets):
    found = list(analyse.views(*nets))
    assert [(each["variant"], each["seed"]) for each in found][:3] == [
        ("centre", 0),
        ("ten views", 0),
        ("centre", 1),
    ]
    assert found[0]["measures"]["loss"] != found[1]["measures"]["loss"]


def test_neighbours_are_the_nearest_training_images(nets):
    runs, load = nets
    found = list(analyse.neighbours({"baseline": runs["baseline"][:1]}, load))
    assert [each["variant"] for each in found] == ["pixels", "fc7"]
    run, params = load(runs["baseline"][0])
    test, train = (analyse.features(run, params, split) for split in ("test", "train"))
    for each in found:
        own, base = test[each["variant"]], train[each["variant"]]
        order = np.linalg.norm(own[:, None] - base, axis=-1).argsort(axis=1)[:, :5]
        right = 100 * np.mean(train["labels"][order] == test["labels"][:, None])
        assert each["measures"]["precision_at_5"] == pytest.approx(right, abs=1)
    assert len(test["labels"]) == 36
    assert test["fc7"].shape == (36, 32)
    near, distances = features.nearest(test["pixels"], 2, test["pixels"])
    assert (near[:, 0] == np.arange(36)).all()
    wanted = np.linalg.norm(test["pixels"] - test["pixels"][near[:, 1]], axis=1)
    np.testing.assert_allclose(distances[:, 1], wanted, rtol=1e-3)


def test_colour_energy_is_what_differs_between_the_channels():
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.normal(size=(5, 5, 1, 1)), 3, axis=2)
    pure = rng.normal(size=(5, 5, 1, 1)) * np.array([1.0, -1.0, 0.0])[None, None, :, None]
    share = analyse.colour_energy(np.concatenate([grey, pure, grey + pure], axis=-1))
    assert share[0] == pytest.approx(0)
    assert share[1] == pytest.approx(1)
    assert 0 < share[2] < 1
    assert analyse.gap(np.array([0.1, 0.1, 0.5, 0.7])) == pytest.approx(50)


def test_towers_are_compared_with_shuffled_kernels(nets):
    runs, load = nets
    shuffled, trained = list(analyse.specialisation({"baseline": runs["baseline"][:1]}, load))
    share = analyse.colour_energy(np.asarray(load(runs["baseline"][0])[1]["conv1"]["kernel"]))
    assert trained["measures"]["colour_gap"] == pytest.approx(analyse.gap(share))
    assert shuffled["measures"]["colour_gap"] > 0
    assert 0 < trained["p"] <= 1


def test_low_frequencies_are_those_of_smooth_kernels():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(11, 11, 3, 200))
    share = analyse.low_frequency_energy(noise)
    assert share.mean() == pytest.approx(21 / 121, abs=0.01)  # of 121 frequencies, 21
    slow = np.cos(2 * np.pi * np.arange(11) / 11)[:, None, None, None] * np.ones((11, 11, 3, 1))
    fast = np.cos(2 * np.pi * 4 * np.arange(11) / 11)[:, None, None, None] * np.ones((11, 11, 3, 1))
    assert analyse.low_frequency_energy(slow) == pytest.approx(1)
    assert analyse.low_frequency_energy(fast) == pytest.approx(0)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The texts of a drawing's SVG, which stay texts in it here, with its caption."""
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")

    def texts(drawing):
        light, dark = (tmp_path / name for name in write(drawing, tmp_path / "figure"))
        assert light.read_bytes() != dark.read_bytes()
        return f"{light.read_text()} {drawing.caption}"

    return texts


def test_figure_1_marks_where_each_activation_gets_to_25(results, drawn):
    """What the sweep lacks is from its search, at the best rate there."""
    record.write_records("figure1", [line("relu", seed, 30.0) for seed in (0, 1)])
    slow = line("tanh, rate 0.01", 0, 30.0)
    slower = line("tanh, rate 0.003", 0, 30.0)
    slow["curve"] = slow["curve"][:3]
    slower["curve"] = slower["curve"][:2]
    for each, rate in ((slow, 0.01), (slower, 0.003)):
        each["overrides"] = {"optim.learning_rate": rate}
    record.write_records("figure1_search", [slower, slow])
    text = drawn(figures.activations("figure1"))
    assert "relu: 25% after 2.0" in text
    assert "tanh, rate 0.01: not in 2 epochs" in text
    assert "Training error rate" in text
    assert "ReLU at 25% at least 0.8 times sooner than tanh" in text
    assert "CIFAR-10 re-encoded as JPEG, 32 pixels, cifar_18pct" in text
    assert "2 seeds" in text


def test_the_architecture_is_the_modules(drawn):
    text = drawn(figures.architecture("architecture"))
    for part in ("conv1", "55×55×48", "13×13×192", "27×27×128", "2048", "1000"):
        assert part in text
    for part in ("96 kernels", "11×11×3", "stride 4", "max pool 3×3", "9,216 to", "dropout 0.5"):
        assert part in text


def test_the_heat_maps_have_every_cell_of_each_budget(results, drawn):
    for name, best in (("dropout_pooling", 30.0), ("dropout_pooling_few", 50.0)):
        sweep = definition.load_sweep(definition.FOLDER / f"{name}.py")
        cells = [line(v, s, best + n + s) for n, v in enumerate(sweep.variants) for s in (0, 2)]
        record.write_records(name, cells)
        text = drawn(heat_maps.dropout_pooling("dropout_pooling"))
        for number in range(12):
            assert f"{best + 1 + number:.1f}" in text
    assert "31.0" in text  # the first map is still there
    assert "dropout 0.75" in text
    assert "average 3x3" in text
    assert "≥ 10" in text  # the colours end where the best cells can be told apart
    assert "all images, 15 epochs, 2 seeds; 20% of the images, 120 epochs, 2 seeds" in text


def test_curves_of_dropout(results, drawn):
    record.write_records("dropout", [line(v, 0, 30.0) for v in ("baseline", "no dropout")])
    text = drawn(figures.dropout("dropout"))
    assert "no dropout, training" in text
    assert "dropout 0.5, validation" in text
    assert "Imagenette, 32 pixels, bench_imagenette; one seed" in text


def test_charts_of_a_sweep(results, drawn):
    sweep = definition.load_sweep(definition.FOLDER / "lrn.py")
    text = drawn(Drawing(lambda: dots(sweep, LRN), "dots"))
    assert "no LRN" in text
    assert "top-1 error, %" in text
    sweep = definition.load_sweep(definition.FOLDER / "figure1.py")
    bound = line("tanh", 0, 30.0)
    bound["curve"] = bound["curve"][:3]
    assert "tanh" in drawn(Drawing(lambda: dots(sweep, [bound]), "a run that does not get there"))


def test_figures_3_and_4_from_a_net(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(net_figures, "NEAR", 2)
    monkeypatch.setattr(net_figures, "SHOWN", 3)
    net = net_figures.Net(open_pretrained(trained.workdir), read_config(trained.workdir), "")
    for name, draw in figures.FROM_NETS.items():
        figures.publish(name, draw(name, net), tmp_path)
        suffix = "png" if name == "kernels" else "jpg"
        with (
            Image.open(tmp_path / f"{name}.{suffix}") as light,
            Image.open(tmp_path / f"{name}-dark.{suffix}") as dark,
        ):
            assert light.size == dark.size
            assert light.getpixel((1, 1)) != dark.getpixel((1, 1))
    told = json.loads((tmp_path / "captions.json").read_text())
    assert list(told) == [*figures.FROM_NETS]
    assert "conv1's 6 kernels of 5×5×3" in told["kernels"]["caption"]
    assert "3 photographs, evenly spread over the test split" in told["predictions"]["caption"]
    assert "of 6 are of the query's class" in told["neighbours"]["caption"]
    assert all("32 pixels, 3 epochs, seed 0" in each["caption"] for each in told.values())
    assert all("seed 0, the best checkpoint" in each["caption"] for each in told.values())


def test_a_figure_without_records_says_how_to_make_them(results):
    with pytest.raises(UserError, match=r"run experiments/sweeps/activations\.py"):
        figures.activations("activations")


def test_commands_refuse_what_they_do_not_know():
    done = tiny.command("experiments.tables", "lrnn")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("did you mean 'lrn'?")


PAPER = definition.load_sweep(definition.FOLDER / "paper.py")
PAPER_SCALE = {
    **{f"sweep paper: {name}": name for name in PAPER.variants},
    "imagenet2012": None,
    "imagenet2012_owt": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER_SCALE)
def test_paper_scale_takes_steps(name):
    """The very nets, images and update rules of ImageNet, four made-up images at a time."""
    variant = PAPER_SCALE[name]
    if variant is None:
        config = load_config(tiny.ROOT / "configs" / f"{name}.py")
    else:
        config = definition.configuration(PAPER, variant, seed=0)
    config = override(config, {"batch_size": 4, "mesh.data": 1})
    run = bench.synthetic_run(config)
    state, batches = run.fresh_state(), bench.batches(run)
    before = np.asarray(state.params["fc8"]["bias"])
    for _ in range(3):
        state, sums = run.train_step(state, next(batches))
        assert sums["finite"]
        assert sums["count"] == 4
    assert state.step == 3
    assert not np.array_equal(state.params["fc8"]["bias"], before)


@pytest.mark.slow  # of an experiment that sweeps do not use
def test_seeds_together_train_as_they_do_alone(tmp_path):
    config = load_config(tiny.make_config(tmp_path / "config.py", tiny.make_folder(tmp_path / "p")))
    run = bench.synthetic_run(config)
    together = seeds_together.stacked(seeds_together.states(run, 2))
    alone = seeds_together.states(run, 2)
    step = seeds_together.step_together(run)
    for _, batch in zip(range(2), bench.batches(run), strict=False):
        alone = [run.train_step(state, batch)[0] for state in alone]
        together, _ = step(together, batch)
    for seed, state in enumerate(alone):
        for layer, weights in state.params.items():
            own = together.params[layer]["kernel"][seed]
            np.testing.assert_allclose(own, weights["kernel"], rtol=1e-3, atol=1e-5)
    first, second = (state.params["conv1"]["kernel"] for state in alone)
    assert not np.allclose(first, second)
