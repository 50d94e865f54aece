"""What control groups leave to a process, in trees of files as Linux has them."""

import pytest

from alexnet_jax.data import control_groups, decoded, threads


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def version_2(folder, limit, taken, idle=0):
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{taken}\n",
        f"{folder}/memory.stat": f"anon 7\ninactive_file {idle}\nactive_file 3\n",
    }


def version_1(folder, limit, taken, idle=0):
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{taken}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {idle}\n",
    }


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/", version_2(".", 1000, 600, 250), 650),  # in a container
        ("0::/a/b", version_2("a/b", "max", 600), None),
        ("0::/a/b", version_2("a/b", "max", 600) | version_2("a", 900, 700, 100), 300),
        ("0::/a/b", version_2("a/b", 800, 600) | version_2("a", 900, 100), 200),
        ("0::/of/the/host", version_2(".", 500, 600, 50), 0),
        ("3:cpu:/\n4:memory:/a", version_1("memory/a", 1000, 600, 250), 650),
        ("4:memory:/a", version_1("memory/a", 1000, 9) | version_1("memory", 2**63, 300), 991),
        ("4:cpu,cpuacct:/a", version_1("memory/a", 1000, 600), None),
        ("", {}, None),
    ],
)
def test_the_memory_of_a_group_and_of_those_above_it(tmp_path, monkeypatch, own, files, left):
    write(tmp_path / "groups", files)
    write(tmp_path, {"own": own})
    found = list(control_groups.memory(tmp_path / "groups", tmp_path / "own"))
    assert min(found, default=None) == left

    monkeypatch.setattr(control_groups, "memory", lambda: iter(found))
    whole = 10**6
    monkeypatch.setattr(decoded, "_available", lambda: whole)
    assert decoded.free_memory() == (whole if left is None else left)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, 3),
        ("0::/", {"cpu.max": "max 100000\n"}, 99),
        (
            "1:cpu,cpuacct:/a",
            {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        (
            "1:cpu:/",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            99,
        ),
    ],
)
def test_the_cores_of_a_group_and_of_those_above_it(tmp_path, monkeypatch, own, files, cores):
    write(tmp_path / "groups", files)
    write(tmp_path, {"own": own})
    found = list(control_groups.cores(tmp_path / "groups", tmp_path / "own"))
    monkeypatch.setattr(control_groups, "cores", lambda: iter(found))
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(99), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert threads.cores() == cores
