"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path


def free_memory() -> int:
    """Bytes: what the system has free, and no more than a container's limit leaves."""
    try:
        found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(found["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):  # where it cannot be asked for, half of all of it
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min(free, _container())


def _container() -> int:
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Pages of files that nobody uses are given back when they are wanted.
        return int(limit) - int(used) + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return 1 << 62
