"""Published results: one row an episode, every rate with its interval, and where they came from."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from wm_gym.evaluation.statistics import (
    Difference,
    Rate,
    paired_difference,
    pooled_difference,
    pooled_rate,
    rate,
)
from wm_gym.files import replacing
from wm_gym.machine import cores


def run_row(
    *,
    replicate: int,
    seed: int,
    starts: ArrayLike,
    base: ArrayLike,
    improved: ArrayLike,
    imagined_base: ArrayLike,
    imagined_improved: ArrayLike,
) -> dict[str, Any]:
    """One replicate: real success of two policies on the same starts, imagined success beside it.

    `starts` are (n,) indices into the test pool; `base` and `improved` (n,) bool in the real
    simulator; the imagined ones (m,) bool, of any length.
    """
    index = np.asarray(starts)
    before, after = np.asarray(base, bool), np.asarray(improved, bool)
    if len(np.unique(index)) != len(index) or not index.shape == before.shape == after.shape:
        raise ValueError(
            "A paired run needs distinct starts and one success of each policy a start; got "
            f"{len(np.unique(index))} distinct of {index.shape} starts, {before.shape} and "
            f"{after.shape} successes."
        )
    return {
        "replicate": replicate,
        "seed": seed,
        "base": rate(before)._asdict(),
        "improved": rate(after)._asdict(),
        "imagined_base": rate(imagined_base)._asdict(),
        "imagined_improved": rate(imagined_improved)._asdict(),
        "paired_difference": paired_difference(before, after)._asdict(),
        "episodes": [
            {"start": int(s), "base": bool(b), "improved": bool(i)}
            for s, b, i in zip(index, before, after, strict=True)
        ],
    }


def result(
    runs: Sequence[Mapping[str, Any]],
    *,
    controls: Mapping[str, ArrayLike],
    real_episodes: Mapping[str, int],
    wall_seconds: Mapping[str, float],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """A whole results file: `run_row`s, their pooled difference, controls, costs and `provenance`.

    Rows of one replicate, which differ in their seed alone, are averaged before they are pooled.
    `controls` maps a name to successes, bool (replicates, starts); `real_episodes` counts
    demonstrations, play, rollouts and validation episodes.
    """
    starts = [[episode["start"] for episode in run["episodes"]] for run in runs]
    if not runs or any(s != starts[0] for s in starts):
        raise ValueError(
            f"Pooling needs at least one run, all on the same starts in the same order; got "
            f"{len(runs)} runs with {[len(s) for s in starts]} starts."
        )
    base, improved = (_success_shares(runs, key) for key in ("base", "improved"))
    return {
        **origin,
        "runs": [dict(run) for run in runs],
        "pooled": pooled_difference(base, improved)._asdict(),
        "controls": {name: pooled_rate(success)._asdict() for name, success in controls.items()},
        "real_episodes": dict(real_episodes),
        "wall_seconds": {stage: round(s, 1) for stage, s in wall_seconds.items()},
    }


def _success_shares(runs: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Share of the seeds of each replicate that succeed from each start, (replicates, starts)."""
    seeds: dict[int, list[list[bool]]] = {}
    for run in runs:
        seeds.setdefault(run["replicate"], []).append([e[key] for e in run["episodes"]])
    return np.array([np.mean(flags, axis=0) for flags in seeds.values()])


def provenance(seeds: Sequence[int]) -> dict[str, Any]:
    """What a published number must carry; the commit is None outside a checkout."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "machine": {"cpu": _cpu(), "cores": cores(), "gpu": gpu},
        "seeds": list(seeds),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_result(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON aside and rename it."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n")


def table(content: Mapping[str, Any]) -> str:
    """A result as plain text: real success beside imagined, then the paired differences."""
    rows = [("", "success", "n", "95 % interval", "imagined", "paired difference")]
    for run in content["runs"]:
        name = f"replicate {run['replicate']}"
        difference = Difference(**run["paired_difference"])
        rows.append((f"{name} base", *_cells(run["base"], run["imagined_base"]), ""))
        improved = _cells(run["improved"], run["imagined_improved"])
        rows.append((f"{name} improved", *improved, str(difference)))
    rows += [(f"control: {k}", *_cells(v, None), "") for k, v in content["controls"].items()]
    rows.append(("pooled", "", "", "", "", str(Difference(**content["pooled"]))))
    return "\n".join(aligned(rows))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text with a column under a column, the first to the left and others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return [line.rstrip() for line in lines]


def _cells(real: Mapping[str, Any], imagined: Mapping[str, Any] | None) -> tuple[str, ...]:
    r = Rate(**real)
    beside = f"{100 * imagined['rate']:.1f} %" if imagined else ""
    interval = f"{100 * r.low:.1f} to {100 * r.high:.1f}"
    return f"{100 * r.rate:.1f} %", str(r.n), interval, beside


def _commit() -> str | None:
    """The commit this package runs from, with `-dirty` when there are uncommitted changes."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
