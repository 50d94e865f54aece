"""Reads what the control groups of this process, such as those of a container, allow it.

A group's limits hold for the groups in it too, so that the least of all of them counts.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def folders(controller: str, root: Path = ROOT, own: Path = OWN) -> Iterator[tuple[Path, int]]:
    """Yields (folder, version 1 or 2) of each group of this process and of those above it.

    Args:
        controller: what limits the resource, such as `cpu`.
        root: where the groups' files lie.
        own: the file that lists this process's groups.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:  # Only Linux has control groups.
        return
    for _, controllers, path in lines:
        # Version 2 has one tree; in version 1 each controller has one of its own.
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        place = top / path.strip("/")
        # In a container the path may be that of the host: then only the top is there.
        for folder in {top, *(each for each in (place, *place.parents) if top in each.parents)}:
            yield folder, 1 if controllers else 2


def cores(root: Path = ROOT, own: Path = OWN) -> Iterator[int]:
    """Yields the whole cores that each group is allowed, rounded up; see `folders`."""
    for folder, version in folders("cpu", root, own):
        try:
            if version == 1:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            else:
                quota, period = (folder / "cpu.max").read_text().split()
            if int(quota) > 0:
                yield -(-int(quota) // int(period))
        except (OSError, ValueError):  # There is no such group, or it has "max", no limit.
            continue


def memory(root: Path = ROOT, own: Path = OWN) -> Iterator[int]:
    """Yields the bytes that each group may still take; see `folders`.

    Files that were read and are not in use any more count as taken, but give way where memory is
    short: they are left out.
    """
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    for folder, version in folders("memory", root, own):
        limit_file, taken_file, idle = names[version]
        try:
            limit = int((folder / limit_file).read_text())
            taken = int((folder / taken_file).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield max(0, limit - (taken - int(stat.get(idle, 0))))
        except (OSError, ValueError):  # There is no such group, or it has "max", no limit.
            continue
