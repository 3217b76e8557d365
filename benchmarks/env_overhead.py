"""What the imagined environment adds to the bare call of its models, and what finished rows cost.

python benchmarks/env_overhead.py --path docs/results/env_overhead.json
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.utils.performance import benchmark_vector_step

import wm_gym  # noqa: F401  registers the ids
from trainers.cli import set_threads
from wm_gym.evaluation.paired import provenance, write_result
from wm_gym.imagined import ImaginedVectorEnv, one_thread


@dataclass(frozen=True, slots=True)
class OverheadConfig:
    """What is measured."""

    task: str = "Lift"
    num_envs: tuple[int, ...] = (1, 16, 64, 256)
    chunk: int = 8
    frozen_envs: int = 64
    """Rows of the environment in which three quarters finish."""
    seconds: float = 1.0
    """Of one measurement of the environment."""
    repeats: int = 10
    """Measurements, environment and models in turn; the fastest of each counts, as it is disturbed
    least by what else the machine does."""
    path: Path | None = None
    """Where to write the numbers as JSON."""


def make(config: OverheadConfig, num_envs: int, **options: Any) -> ImaginedVectorEnv:
    """Make rows that play every step asked for, whatever the classifier says."""
    return gym.make_vec(
        f"wm_gym/{config.task}-v0",
        num_envs=num_envs,
        chunk=config.chunk,
        autoreset_mode="disabled",
        ignore_terminations=True,
        **options,
    )


def overhead(config: OverheadConfig, num_envs: int, deterministic: bool) -> dict[str, Any]:
    """Time a step of the environment and the bare models for as many rows; seconds a call.

    The environment's time is all of `benchmark_vector_step`, so it includes the sampling of
    actions; no episode ends, so it includes no reset. `deterministic` calls the models on one
    thread for one row at a time, and so do the bare calls that it is compared with.
    """
    with (
        closing(make(config, num_envs, horizon=2**40, deterministic=deterministic)) as env,
        torch.inference_mode(),
    ):
        bare = bare_call(env)
        env_seconds, model_seconds = [], []
        for seed in range(config.repeats):
            rate = benchmark_vector_step(env, config.seconds, seed)  # rows a second
            env_seconds.append(num_envs / rate)
            model_seconds.append(seconds_of(bare, config.seconds))
    model, whole = min(model_seconds), min(env_seconds)
    return {
        "num_envs": num_envs,
        "chunk": config.chunk,
        "model_seconds": model,
        "env_seconds": whole,
        "overhead": whole / model - 1,
    }


def bare_call(env: ImaginedVectorEnv) -> Callable[[], None]:
    """Return what no step can do without: imagine K frames, judge them, decode the last.

    Everything that the models are given lies ready on their device.
    """
    model, success = env.world_model, env.success
    n, k, device = env.num_envs, env.chunk, env.device
    rows = np.arange(n) % len(env.pool)
    frames = torch.as_tensor(env.pool.frames[rows], device=device)[:, None]
    actions = torch.zeros(n, k, env.task.action_dim, device=device)
    noise = torch.randn(n, *model.noise_shape(k), device=device)
    memory = model.begin(frames)
    past = success.embed(model.encode(frames)).expand(-1, success.config.window - 1, -1)
    calls = torch.arange(n).split(1 if env.deterministic else n)
    given = [(memory.take(i), actions[i], noise[i], past[i]) for i in calls]
    threads = one_thread if env.deterministic else nullcontext

    def call() -> None:
        with threads():
            for memory, actions, noise, past in given:
                _, latents, apart = model.imagine(memory, actions, noise)
                apart.cpu()
                success.probability(torch.cat([past, success.embed(latents)], 1)).cpu()
                model.decode(latents[:, -1:]).cpu()

    return call


def seconds_of(call: Callable[[], None], duration: float) -> float:
    """Mean seconds of a call, repeated for `duration` seconds after one to warm up."""
    call()
    count, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < duration or not count:
        call()
        count += 1
    return seconds / count


def frozen(config: OverheadConfig) -> dict[str, float]:
    """Time a step in which all rows play, and one in which three quarters are finished."""
    n = config.frozen_envs
    masks = {"full": np.ones(n, bool), "quarter": np.arange(n) < n // 4}
    seconds: dict[str, list[float]] = {name: [] for name in masks}
    with closing(make(config, n, horizon=config.chunk)) as env:  # a step is an episode
        env.reset(seed=0)
        actions = np.zeros(env.action_space.shape, np.float32)
        env.step(actions)
        for _ in range(2 * config.repeats):
            for name, mask in masks.items():
                env.reset(options={"reset_mask": mask})
                began = time.perf_counter()
                env.step(actions)
                seconds[name].append(time.perf_counter() - began)
    full, quarter = (min(seconds[name]) for name in masks)
    return {"full_seconds": full, "quarter_seconds": quarter, "ratio": quarter / full}


def main(config: OverheadConfig) -> None:
    """Measure, print, and write where asked."""
    set_threads()
    found: dict[str, Any] = {"rows": [], "deterministic_rows": []}
    for n in config.num_envs:
        row, exact = (overhead(config, n, deterministic) for deterministic in (False, True))
        exact["times_batched"] = exact["env_seconds"] / row["env_seconds"]
        for name, measured in (("rows", row), ("deterministic_rows", exact)):
            found[name].append(measured)
            print(name, measured, flush=True)
    found["frozen"] = frozen(config)
    print("frozen", found["frozen"])
    if config.path:
        write_result(config.path, {**provenance([0]), **found})


if __name__ == "__main__":
    main(tyro.cli(OverheadConfig))
