"""Environment steps a second of both worlds, one run, one machine.

python benchmarks/world_speed.py --path docs/results/speed.json
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro

import wm_gym  # noqa: F401  registers the ids
from trainers.cli import set_threads
from wm_gym.evaluation.paired import provenance, write_result


@dataclass(frozen=True, slots=True)
class SpeedConfig:
    """What is measured."""

    task: str = "Lift"
    num_envs: int = 64
    chunk: int = 8
    repeats: int = 5
    """Passes over an episode of the imagined world; the median counts."""
    path: Path | None = None
    """Where to write the numbers as JSON."""


def steps_per_second(config: SpeedConfig, backend: str, every_frame: bool, repeats: int) -> float:
    """Median over episodes of (control steps played) / (seconds of `step` alone)."""
    options = {"dtype": "bfloat16"} if backend == "imagined" else {}
    env = gym.make_vec(
        f"wm_gym/{config.task}-v0",
        num_envs=config.num_envs,
        backend=backend,
        chunk=config.chunk,
        autoreset_mode="disabled",
        ignore_terminations=True,
        return_frames=every_frame,
        horizon=4 * config.chunk,
        **options,
    )
    rng = np.random.default_rng(0)
    rates = []
    with closing(env):
        for _ in range(repeats):
            env.reset(seed=0)
            for _ in range(4):
                action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
                began = time.perf_counter()
                env.step(action)
                seconds = time.perf_counter() - began
                rates.append(config.num_envs * config.chunk / seconds)
    return float(np.median(rates[1:]))


def main(config: SpeedConfig) -> None:
    """Measure, print a table, and write it where asked."""
    set_threads()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows = []
    for every_frame in (False, True):
        imagined = steps_per_second(config, "imagined", every_frame, config.repeats)
        real = steps_per_second(config, "real", every_frame, 1)
        rows.append(
            {
                "device": f"{device}, {os.cpu_count()} cores",
                "preset": "nano",
                "num_envs": config.num_envs,
                "chunk": config.chunk,
                "picture_of": "every step" if every_frame else "every chunk",
                "steps_per_second": round(imagined),
                "real_steps_per_second": round(real),
                "ratio": round(imagined / real, 1),
            }
        )
        print(rows[-1], flush=True)
    if config.path:
        write_result(config.path, {**provenance([0]), "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(SpeedConfig))
