"""What the machine lends to this process."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # where a container sees its own limits


def cores() -> int:
    """Cores this process may use; machines lend fewer than they have, and containers less time."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        allowed, lent = len(os.sched_getaffinity(0)), quota()
        return allowed if lent >= allowed else math.ceil(lent)
    return os.cpu_count() or 1


def quota() -> float:
    """How many cores' time a container is lent (`docker run --cpus`); infinite without a limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroups 2, 1
        try:
            told = " ".join((CGROUP / name).read_text() for name in files)
            lent, period = map(int, told.split())
        except (OSError, ValueError):  # no such files, or "max"
            continue
        if lent > 0:  # cgroups 1 say -1 for no limit
            return lent / period
    return math.inf
