"""Checkpoints: what is saved comes back bit for bit, and no fault loses or alters it silently."""

import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import warnings
from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.errors import UserError
from alexnet_jax.records import checkpoint, digests, restore

REPOSITORY = Path(__file__).parent.parent
CHECKPOINT_V1 = Path(__file__).parent / "data" / "checkpoint_v1"


def params_of(step):
    """Parameters that the step alone decides."""
    rng = np.random.default_rng(step)
    return {
        "conv1": {
            "kernel": jnp.asarray(rng.standard_normal((3, 3, 3, 16), np.float32)),
            "bias": jnp.asarray(rng.standard_normal(16, np.float32)),
        },
        "fc8": {"kernel": jnp.asarray(rng.standard_normal((32, 16), np.float32))},
    }


def state_of(step):
    """Optimizer state, both kinds of PRNG key, counters and a scalar of the host."""
    velocity = optax.trace(decay=0.9).init(params_of(step + 1000))
    return {
        "opt": (velocity, optax.EmptyState()),
        "key": jax.random.key(step),
        "raw_key": jax.random.PRNGKey(step + 1),
        "step": jnp.int32(step),
        "plateau": {"best": jnp.float32(0.1 * step), "rate": np.float32(0.01)},
    }


def abstract(tree, sharding=None):
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def assert_same(actual, expected):
    """Equal trees, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def no_log(line):
    raise AssertionError(f"unexpected: {line}")


def saved_run(workdir, saves, keep=3):
    """A work directory with the given (step, error) pairs saved."""
    checkpoints = checkpoint.open_checkpoints(workdir, keep=keep)
    assert checkpoint.verify(checkpoints, no_log) is None
    for step, error in saves:
        meta = {"config": {"seed": 3}}
        checkpoint.save(checkpoints, step, params_of(step), state_of(step), meta, error)
    checkpoint.finish(checkpoints)
    return workdir


def resume(workdir, keep=3):
    """Opens and restores the latest as a new process would; also gives the lines logged."""
    lines = []
    checkpoints = checkpoint.open_checkpoints(workdir, keep=keep)
    restored = checkpoint.restore_latest(
        checkpoints, abstract(params_of(0)), abstract(state_of(0)), lines.append
    )
    return checkpoints, restored, lines


def contents(directory):
    """Every file below `directory` with its bytes and time of change."""
    return {
        path.relative_to(directory).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def bytes_of(directory):
    return {name: data for name, (data, _) in contents(directory).items()}


def reseal(step_directory):
    """Writes the digest anew, as a program of another format would have."""
    digest = step_directory / "SHA256SUMS"
    digest.unlink(missing_ok=True)
    lines = [f"{sha256(data).hexdigest()}  {n}\n" for n, data in bytes_of(step_directory).items()]
    write_digest(digest, "".join(lines))


def write_digest(path, listing):
    path.write_text(f"{listing}# {sha256(listing.encode()).hexdigest()}\n")


def set_format(step_directory, number):
    path = step_directory / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))


def process_state():
    """What is hidden of messages in this process."""
    absl, asyncio = logging.getLogger("absl"), logging.getLogger("asyncio")
    return list(absl.filters), asyncio.level, list(warnings.filters), sys.unraisablehook


def test_a_save_leaves_the_messages_of_the_process_as_they_were(tmp_path):
    before = process_state()
    checkpoints = checkpoint.open_checkpoints(tmp_path, keep=1)
    checkpoint.verify(checkpoints, no_log)
    checkpoint.save(checkpoints, 1, params_of(1), state_of(1), {}, None)
    assert process_state() != before
    checkpoint.finish(checkpoints)
    assert process_state() == before


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Steps 10 and 20; copy it before changing anything."""
    return saved_run(tmp_path_factory.mktemp("two"), [(10, 40.0), (20, 30.0)])


@pytest.fixture
def run(two_steps, tmp_path):
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs is not allowed here (it takes root)")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


# Round trip


def test_restores_bit_for_bit_with_keys_and_optimizer_state(run):
    _, (params, state, meta), lines = resume(run)
    assert_same(params, params_of(20))
    assert_same(state, state_of(20))
    assert lines == []
    assert meta["format"] == restore.FORMAT
    assert meta["step"] == 20
    assert meta["error"] == 30.0
    assert meta["config"] == {"seed": 3}
    assert meta["versions"]["jax"] == jax.__version__
    jax.random.split(state["key"])  # a typed key still


def test_an_empty_directory_has_nothing_to_restore(tmp_path):
    _, restored, lines = resume(tmp_path / "new")
    assert restored is None
    assert lines == []


def test_saved_values_are_those_at_the_call_though_the_arrays_are_donated(tmp_path):
    checkpoints, _, _ = resume(tmp_path)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    params = {"w": jnp.arange(4_000_000, dtype=jnp.float32)}
    checkpoint.save(checkpoints, 1, params, {"step": jnp.int32(1)}, {}, None)
    jax.block_until_ready(overwrite(params))
    checkpoint.finish(checkpoints)
    params, _ = restore.restore_params(tmp_path, abstract({"w": jnp.zeros(4_000_000)}))
    assert np.array_equal(params["w"], np.arange(4_000_000, dtype=np.float32))


def test_restores_onto_other_devices_and_another_layout(tmp_path):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    split, whole = NamedSharding(mesh, P(None, "model")), NamedSharding(mesh, P())
    params = {"kernel": jax.device_put(params_of(5)["fc8"]["kernel"], split)}
    state = {"velocity": jax.device_put(params_of(6)["fc8"]["kernel"], whole)}
    checkpoints, _, _ = resume(tmp_path)
    checkpoint.save(checkpoints, 5, params, state, {}, None)
    checkpoint.finish(checkpoints)

    one_device = SingleDeviceSharding(jax.devices()[3])
    for params_sharding, state_sharding in [(one_device, one_device), (whole, split)]:
        restored_params, restored_state, _ = checkpoint.restore(
            checkpoints, 5, abstract(params, params_sharding), abstract(state, state_sharding)
        )
        assert_same(restored_params, params)
        assert_same(restored_state, state)
        assert restored_params["kernel"].sharding == params_sharding
        assert restored_state["velocity"].sharding == state_sharding


def test_a_path_with_spaces_unicode_and_a_symbolic_link(tmp_path):
    real = tmp_path / "läufe und mehr ✓"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    saved_run(link, [(1, None)])
    _, (params, _, _), _ = resume(real)
    assert_same(params, params_of(1))


def test_an_earlier_commits_checkpoint_still_loads():
    params, meta = restore.restore_params(CHECKPOINT_V1, abstract(params_of(7)))
    assert_same(params, params_of(7))
    assert meta["format"] == 1
    assert meta["error"] == 12.5
    checkpoints = checkpoint.Checkpoints(CHECKPOINT_V1 / "checkpoints", None)
    _, state, _ = checkpoint.restore(checkpoints, 7, abstract(params_of(7)), abstract(state_of(7)))
    assert_same(state, state_of(7))


# What is kept


def test_latest_and_best_are_kept_also_across_a_restart(tmp_path):
    saved_run(tmp_path, [(1, 50.0), (2, 20.0), (3, 40.0), (4, 30.0)])
    assert restore.steps(tmp_path) == [2, 3, 4]
    checkpoints, _, _ = resume(tmp_path)
    for step, error in [(5, 25.0), (6, None), (7, float("nan"))]:
        checkpoint.save(checkpoints, step, params_of(step), state_of(step), {}, error)
    checkpoint.finish(checkpoints)
    assert restore.steps(tmp_path) == [2, 5, 6, 7]
    assert restore.best_step(tmp_path) == 2
    checkpoint.save(checkpoints, 8, params_of(8), state_of(8), {}, 19.0)
    checkpoint.finish(checkpoints)
    assert restore.steps(tmp_path) == [6, 7, 8]
    assert restore.best_step(tmp_path) == 8
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"6", "7", "8"}, "nothing else lies in the directory"


def test_the_later_of_equally_good_steps_is_best(tmp_path):
    for keep, kept in [(1, [2, 3]), (3, [1, 2, 3])]:
        run = saved_run(tmp_path / str(keep), [(1, 20.0), (2, 20.0), (3, 30.0)], keep)
        assert restore.steps(run) == kept
        assert restore.best_step(run) == 2


def test_saving_a_saved_step_again_changes_nothing(run):
    checkpoints, _, _ = resume(run)
    before = contents(run)
    checkpoint.save(checkpoints, 20, params_of(99), state_of(99), {}, 1.0)
    checkpoint.finish(checkpoints)
    assert contents(run) == before


def test_leftovers_of_a_killed_save_are_removed_and_ignored(run):
    directory = run / "checkpoints"
    shutil.copytree(directory / "20", directory / "30.orbax-checkpoint-tmp")
    shutil.copytree(directory / "20", directory / "deleted" / "5")
    assert restore.steps(run) == [10, 20]
    resume(run)
    assert {path.name for path in directory.iterdir()} == {"10", "20"}


# Damage


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("injure", [flip_byte, truncate, Path.unlink])
def test_damage_to_any_file_is_noticed_and_the_one_before_restored(two_steps, tmp_path, injure):
    names = sorted(contents(two_steps / "checkpoints" / "20"))
    assert len(names) > 20
    for number, name in enumerate(names):
        run = tmp_path / str(number)
        shutil.copytree(two_steps, run)
        injure(run / "checkpoints" / "20" / name)
        injured = contents(run / "checkpoints" / "20")

        checkpoints = checkpoint.open_checkpoints(run, keep=3)
        lines = []
        assert checkpoint.verify(checkpoints, lines.append) == 10, name
        assert len(lines) == 1
        assert str(run / "checkpoints" / "20") in lines[0]
        assert name in lines[0]
        assert "20.corrupt-1" in lines[0]
        assert contents(run / "checkpoints" / "20.corrupt-1") == injured, "moved, not changed"


def test_every_byte_of_the_digest_counts(run):
    step = run / "checkpoints" / "20"
    digest = step / "SHA256SUMS"
    whole = digest.read_bytes()
    for position in random.Random(0).sample(range(len(whole)), 100):
        for bit in (1, 32, 128):
            digest.write_bytes(
                whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :]
            )
            assert digests.damage(step) == "SHA256SUMS is not as it was written"


def test_the_run_goes_on_from_the_one_before_and_damage_can_come_twice(run):
    for expected_name in ("20.corrupt-1", "20.corrupt-2"):
        flip_byte(run / "checkpoints" / "20" / "state" / "manifest.ocdbt")
        checkpoints, (params, state, meta), lines = resume(run)
        assert meta["step"] == 10
        assert_same(params, params_of(10))
        assert_same(state, state_of(10))
        assert len(lines) == 1
        assert (run / "checkpoints" / expected_name).is_dir()
        checkpoint.save(checkpoints, 20, params_of(20), state_of(20), {}, 30.0)
        checkpoint.finish(checkpoints)
    assert restore.steps(run) == [10, 20]
    _, (params, _, _), lines = resume(run)
    assert_same(params, params_of(20))
    assert lines == []


def test_an_older_damaged_checkpoint_is_found_too(run):
    truncate(run / "checkpoints" / "10" / "metrics" / "metrics")
    _, (_, _, meta), lines = resume(run)
    assert meta["step"] == 20
    assert "metrics/metrics" in lines[0]
    assert restore.steps(run) == [20]


def test_with_none_readable_it_stops_every_time(run):
    for step in ("10", "20"):
        flip_byte(run / "checkpoints" / step / "params" / "manifest.ocdbt")
    injured = bytes_of(run / "checkpoints" / "20")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no checkpoint in .* is readable"):
            resume(run)
    assert bytes_of(run / "checkpoints" / "20.corrupt-1") == injured


def test_people_can_check_the_digest_with_sha256sum(two_steps):
    step = two_steps / "checkpoints" / "20"
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=step, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr
    assert check.stdout.count(": OK\n") == len(contents(step)) - 1


def test_a_directory_with_a_steps_name_and_no_digest_is_not_trusted(run):
    (run / "checkpoints" / "30").mkdir()
    _, (_, _, meta), lines = resume(run)
    assert meta["step"] == 20
    assert "SHA256SUMS is missing" in lines[0]


def test_a_later_format_is_refused_by_number_and_left_alone(run):
    step = run / "checkpoints" / "20"
    set_format(step, 7)
    reseal(step)
    before = contents(run)
    for attempt in (
        lambda: resume(run),
        lambda: restore.restore_params(run, abstract(params_of(0))),
        lambda: restore.read_meta(run, 20),
    ):
        with pytest.raises(UserError, match="format 7, this program reads up to 1"):
            attempt()
    (step / "SHA256SUMS").unlink()  # a later format may keep its digest elsewhere
    with pytest.raises(UserError, match="format 7, this program reads up to 1"):
        resume(run)
    del before["checkpoints/20/SHA256SUMS"]
    assert contents(run) == before


def test_a_flipped_bit_in_the_format_is_damage_not_a_later_format(run):
    set_format(run / "checkpoints" / "20", 3)
    with pytest.raises(UserError, match="damaged"):
        restore.restore_params(run, abstract(params_of(0)))
    _, (_, _, meta), lines = resume(run)
    assert meta["step"] == 10
    assert "meta/metadata" in lines[0]


def test_a_checkpoint_of_another_net_names_what_differs(run):
    params = params_of(0)
    params["conv1"]["bias"] = jnp.zeros(17)
    params["fc9"] = {"kernel": jnp.zeros((2, 2), jnp.bfloat16)}
    before = contents(run)
    with pytest.raises(UserError) as caught:
        restore.restore_params(run, abstract(params))
    assert "conv1/bias is float32[16], expected float32[17]" in str(caught.value)
    assert "fc9/kernel is absent, expected bfloat16[2, 2]" in str(caught.value)
    assert "\n" not in str(caught.value)
    state = state_of(0) | {"extra": jnp.zeros(3)}
    checkpoints, _, _ = resume(run)
    with pytest.raises(UserError, match="extra is absent"):
        checkpoint.restore(checkpoints, 20, abstract(params_of(0)), abstract(state))
    assert contents(run) == before


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"format": "x"}', "\xff"])
def test_a_meta_that_is_no_meta_is_one_line(run, text):
    (run / "checkpoints" / "20" / "meta" / "metadata").write_text(text, encoding="latin-1")
    reseal(run / "checkpoints" / "20")
    with pytest.raises(UserError):
        resume(run)
    with pytest.raises(UserError):
        restore.restore_params(run, abstract(params_of(0)))


def test_a_digest_reads_no_file_outside_its_step(run):
    os.mkfifo(run / "checkpoints" / "20" / "pipe")
    digest = run / "checkpoints" / "20" / "SHA256SUMS"
    for name in ("../../../../../../../dev/zero", "/dev/zero", "pipe"):
        write_digest(digest, f"{'0' * 64}  {name}\n")
        assert digests.damage(digest.parent) == f"{name} is missing"


def restore_altered_files(run, cases):
    """Restores step 20 with one file altered and the digest made anew; prints what each gave."""
    step = run / "checkpoints" / "20"
    whole = {name: data for name, data in bytes_of(step).items() if name.startswith("params/")}
    rng = random.Random(0)
    for _ in range(cases):
        name = rng.choice(sorted(whole))
        data = bytearray(whole[name])
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (step / name).write_bytes(data[: rng.randint(0, 2 * len(data))])
        reseal(step)
        try:
            restore.restore_params(run, abstract(params_of(0)), 20)
            print(json.dumps("restored"))
        except UserError as error:
            print(json.dumps(str(error)))
        (step / name).write_bytes(whole[name])


def test_files_that_agree_with_a_forged_digest_are_one_line_or_arrays(run):
    # In a process of its own: TensorStore's threads still write to stderr after Orbax has given up.
    code = """if True:
        import sys, pathlib, test_checkpoint
        test_checkpoint.restore_altered_files(pathlib.Path(sys.argv[1]), cases=60)
    """
    child = subprocess.run(
        [sys.executable, "-c", code, str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    outcomes = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(outcomes) == 60
    assert 0 < outcomes.count("restored") < 60
    assert not any("\n" in outcome for outcome in outcomes)


# Reading for evaluation


def test_restore_params_finds_latest_best_and_named_and_writes_nothing(tmp_path):
    run = saved_run(tmp_path / "run", [(1, 20.0), (2, 30.0), (3, None)])
    shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / "9.orbax-checkpoint-tmp")
    before = contents(run)
    for step, expected in [(None, 3), (2, 2), ("best", 1)]:
        params, meta = restore.restore_params(run, abstract(params_of(0)), step)
        assert_same(params, params_of(expected))
        assert meta["step"] == expected
    assert restore.best_step(run) == 1
    flip_byte(run / "checkpoints" / "3" / "params" / "manifest.ocdbt")
    before["checkpoints/3/params/manifest.ocdbt"] = contents(run)[
        "checkpoints/3/params/manifest.ocdbt"
    ]
    with pytest.raises(UserError, match=r"params/manifest.ocdbt .* other steps there: 1, 2"):
        restore.restore_params(run, abstract(params_of(0)))
    assert contents(run) == before


@pytest.mark.parametrize("named", [True, False])
def test_a_run_keeps_its_own_generator_of_random_numbers(tmp_path, named):
    """Also where an earlier commit saved it, which did not name the generator."""
    run = saved_run(tmp_path / "run", [(1, 20.0)])
    if not named:
        meta = run / "checkpoints/1/meta/metadata"
        fields = json.loads(meta.read_text())
        assert fields.pop("key_kinds") == {"key": "threefry2x32"}
        meta.write_text(json.dumps(fields))
        reseal(run / "checkpoints/1")
    with jax.default_prng_impl("rbg"):
        checkpoints = checkpoint.open_checkpoints(run, keep=3)
        wanted = abstract(state_of(0) | {"raw_key": jnp.zeros(2, jnp.uint32)})
        _, state, _ = checkpoint.restore_latest(checkpoints, abstract(params_of(0)), wanted, no_log)
    assert_same(state["key"], jax.random.key(1))


def test_restore_params_needs_the_params_alone(run):
    shutil.rmtree(run / "checkpoints" / "20" / "state")
    params, _ = restore.restore_params(run, abstract(params_of(0)), 20)
    assert_same(params, params_of(20))


def test_restore_params_from_a_read_only_file_system(two_steps, small_disk):
    run = small_disk / "run"
    shutil.copytree(two_steps, run)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    params, _ = restore.restore_params(run, abstract(params_of(0)), "best")
    assert_same(params, params_of(20))
    with pytest.raises(UserError, match="cannot write to"):
        checkpoint.open_checkpoints(run, keep=3)


def test_what_is_not_there_is_named(tmp_path, run):
    with pytest.raises(UserError, match="no work directory"):
        restore.restore_params(tmp_path / "missing", abstract(params_of(0)))
    with pytest.raises(UserError, match="no checkpoint in"):
        restore.restore_params(tmp_path, abstract(params_of(0)))
    with pytest.raises(UserError, match=r"of step 15 .* 10, 20"):
        restore.restore_params(run, abstract(params_of(0)), 15)
    unrated = saved_run(tmp_path / "unrated", [(1, None), (2, None)])
    assert restore.restore_params(unrated, abstract(params_of(0)), "best")[1]["step"] == 2
    first = saved_run(tmp_path / "first", [(0, 20.0), (1, 30.0)])
    assert restore.restore_params(first, abstract(params_of(0)), "best")[1]["step"] == 0


# Directories and disks


def test_a_work_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create"):
        checkpoint.open_checkpoints(tmp_path / "file" / "run", keep=3)
    with pytest.raises(UserError, match="at least 1"):
        checkpoint.open_checkpoints(tmp_path / "run", keep=0)


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(small_disk, caplog):
    def params(step):
        rng = np.random.default_rng(step)
        return {"w": jnp.asarray(rng.standard_normal(600_000, np.float32))}

    run = small_disk / "run"
    checkpoints = checkpoint.open_checkpoints(run, keep=1)
    checkpoint.verify(checkpoints, no_log)
    checkpoint.save(checkpoints, 1, params(1), {"step": jnp.int32(1)}, {}, 10.0)
    checkpoint.save(checkpoints, 2, params(2), {"step": jnp.int32(2)}, {}, 20.0)
    checkpoint.finish(checkpoints)
    (small_disk / "ballast").write_bytes(bytes(6 * 2**20))

    for step in (3, 4):  # also when one insists
        checkpoint.save(checkpoints, step, params(step), {"step": jnp.int32(step)}, {}, 5.0)
        with pytest.raises(UserError) as caught:
            checkpoint.finish(checkpoints)
        assert f"{run}/checkpoints/{step} failed (No space left on device)" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not any(record.exc_info for record in caplog.records), "no traceback is logged"
    assert restore.steps(run) == [1, 2]

    (small_disk / "ballast").unlink()
    checkpoint.save(checkpoints, 5, params(5), {"step": jnp.int32(5)}, {}, 30.0)
    checkpoint.save(checkpoints, 6, params(6), {"step": jnp.int32(6)}, {}, 30.0)
    checkpoint.finish(checkpoints)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "6"}, "no leftovers"
    assert checkpoint.verify(checkpoint.open_checkpoints(run, keep=1), no_log) == 6
    for step in restore.steps(run):
        restored, _ = restore.restore_params(run, abstract(params(0)), step)
        assert_same(restored, params(step))
    assert restore.steps(run) == [1, 6], "the best and the latest, as if nothing had failed"


# Kills

CHILD = """
    import os, shutil, signal, sys
    import jax, jax.numpy as jnp, numpy as np
    from alexnet_jax.records import checkpoint, digests, restore

    workdir, point = sys.argv[1], sys.argv[2]

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def half_rmtree(path, **kwargs):
        if os.path.exists(path):
            next(file for file in path.rglob("*") if file.is_file()).unlink()
            die()

    def params(step):
        rng = np.random.default_rng(step)
        return {"w": jnp.asarray(rng.standard_normal(300_000, np.float32)), "b": jnp.full(3, step)}

    def state(step):
        return {"key": jax.random.key(step), "step": jnp.int32(step)}

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    def abstract(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    checkpoints = checkpoint.open_checkpoints(workdir, keep=2)
    restored = checkpoint.restore_latest(
        checkpoints, abstract(params(0)), abstract(state(0)), print)
    step = 0
    if restored:
        p, s, meta = restored
        step = meta["step"]
        assert np.array_equal(p["w"], params(step)["w"]) and (p["b"] == step).all()
        assert s["step"] == step and s["key"] == jax.random.key(step)
    print("restored", step, flush=True)
    while True:
        if point != "any" and step >= 4:
            if point == "before digest":
                checkpoint.digests._sha256 = die
            elif point == "before rename":
                rename = os.rename
                os.rename = lambda a, b: die() if str(b).endswith("/5") else rename(a, b)
            elif point == "after rename":
                seal = checkpoint.digests.seal
                checkpoint.digests.seal = lambda *paths: (seal(*paths), die())
            elif point == "while deleting":
                shutil.rmtree = half_rmtree
        step += 1
        checkpoint.save(checkpoints, step, params(step), state(step), {}, 100.0 / step)
        if step % 3 == 0 or point != "any":
            checkpoint.finish(checkpoints)
            print("saved", step, flush=True)
"""


def live_and_die(workdir, delay=None, point="any"):
    """Lets a saving process live for `delay` seconds after its start-up, or until `point`.

    Returns the step it began from and the last one it knew to be safe.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(workdir), point],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    )
    first = process.stdout.readline()
    if delay is not None:
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
    output, errors = process.communicate(timeout=60)
    lines = [first, *output.splitlines()]
    assert process.returncode == -signal.SIGKILL, errors
    assert all(line.split()[0] in ("restored", "saved") for line in lines), lines
    return int(lines[0].split()[1]), int(lines[-1].split()[1])


def kill_at_random(workdir, kills, seed):
    safe, reached = 0, set()
    delays = random.Random(seed)
    for _ in range(kills):
        begun, now_safe = live_and_die(workdir, delay=delays.uniform(0.05, 0.8))
        assert begun >= safe, "a checkpoint known to be on the disk was lost"
        safe = max(begun, now_safe)
        reached.add(begun)
    checkpoints = checkpoint.open_checkpoints(workdir, keep=2)
    assert checkpoint.verify(checkpoints, no_log) >= safe
    return reached


def test_nothing_is_lost_in_3_random_kills(tmp_path):
    kill_at_random(tmp_path, 3, seed=1)


@pytest.mark.slow
def test_nothing_is_lost_in_40_random_kills(tmp_path):
    assert len(kill_at_random(tmp_path, 40, seed=2)) > 20, "the kills came too early to count"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "survives"),
    [("before digest", 4), ("before rename", 4), ("after rename", 5), ("while deleting", 5)],
)
def test_nothing_is_lost_in_a_kill_at_the_worst_moment(tmp_path, point, survives):
    live_and_die(tmp_path, point=point)
    checkpoints = checkpoint.open_checkpoints(tmp_path, keep=2)
    assert checkpoint.verify(checkpoints, no_log) == survives
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names <= {"3", "4", "5"}


# Several processes

PAIR = """
    import sys
    import jax, numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    workdir, port, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    from alexnet_jax.records import checkpoint, digests, restore

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def params(step):
        value = np.random.default_rng(step).standard_normal((8, 4), np.float32)
        return {"w": jax.make_array_from_callback((8, 4), split, lambda index: value[index])}

    def state(step):
        return {"step": jax.make_array_from_callback((), whole, lambda index: np.int32(step))}

    abstract = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

    for life in range(3):
        lines = []
        checkpoints = checkpoint.open_checkpoints(workdir, keep=2)
        restored = checkpoint.restore_latest(
            checkpoints, abstract(params(0)), abstract(state(0)), lines.append)
        step = 0
        if restored:
            (p, s, meta), step = restored, restored[2]["step"]
            here, there = p["w"].addressable_shards, params(step)["w"].addressable_shards
            assert all((a.data == b.data).all() for a, b in zip(here, there)) and s["step"] == step
        print(life, step, len(lines), flush=True)
        for step in range(step + 1, step + 4):
            checkpoint.save(checkpoints, step, params(step), state(step), {}, None)
        checkpoint.finish(checkpoints)
        if life == 1 and rank == 0:
            with open(f"{workdir}/checkpoints/{step}/params/manifest.ocdbt", "a") as file:
                file.write("x")
        multihost_utils.sync_global_devices(str(life))
"""


@pytest.mark.slow
def test_two_processes_agree_on_what_to_restore(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PAIR), str(tmp_path), port, rank],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        )
        for rank in ("0", "1")
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for output, logged in zip(outputs, (1, 0), strict=True):
        lines = [line for line in output.splitlines() if line[:1].isdigit()]
        assert lines == ["0 0 0", "1 3 0", f"2 5 {logged}"], "5: step 6 was damaged"
    assert restore.steps(tmp_path) == [7, 8]
