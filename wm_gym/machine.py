"""What the machine lends to this process."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores this process may use; machines lend fewer than they have."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
