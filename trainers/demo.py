"""Film n environments of either world side by side.

wm-gym demo --task Lift --backend imagined --policy random --out demo.mp4
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch

from policies.token import TokenVLA
from trainers.rollout import make_env
from wm_gym.checks import check_count, check_seeds
from wm_gym.evaluation.video import border, check_video_path, hold, tile, write_video
from wm_gym.starts import load_starts
from wm_gym.tasks import get_task

SPLIT = "validation"  # test starts are played for published numbers only


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """What is filmed."""

    task: str = "Lift"
    backend: Literal["imagined", "real"] = "imagined"
    policy: str = "random"
    """Either random, expert (scripted, in the real backend alone), or a TokenVLA: a folder, a
    bundled name such as lift/policy_base, or a Hub id."""
    num_envs: int = 16
    steps: int = 64
    """Control steps of 1/20 s at most; an episode stops at its success and waits for the others."""
    seed: int = 0
    out: Path = Path("demo.mp4")
    """A .mp4 or .gif file."""


def demo(config: DemoConfig) -> None:
    """Film one episode an environment, tiled; a red border turns green with the success."""
    check_count("num_envs", config.num_envs)
    check_count("steps", config.steps)
    check_seeds(config.seed, config.num_envs)
    check_video_path(config.out)
    if config.policy == "expert" and config.backend != "real":
        raise ValueError(
            "The expert reads the simulator's state, which an imagined world has not; film it with "
            "--backend real, or film another policy."
        )
    play = _play_expert if config.policy == "expert" else _play
    frames, success = play(config)
    won = np.logical_or.accumulate(success, axis=1)  # (n, T)
    marked = [
        np.where(done[:, None, None, None], border(film, True), border(film, False))
        for film, done in zip(frames, won, strict=True)
    ]
    write_video(config.out, tile(np.stack(marked)))
    print(f"{config.out}: {won[:, -1].sum()} of {len(won)} {config.backend} episodes succeed")


def _play(config: DemoConfig) -> tuple[np.ndarray, np.ndarray]:
    """Play a policy: pictures uint8 (n, T, H, W, 3), and where the task was done, bool (n, T)."""
    chunk, act = _policy(config)
    options = {"chunk": chunk, "split": SPLIT, "horizon": config.steps, "return_frames": True}
    env = make_env(config.task, config.backend, config.num_envs, **options)
    with closing(env):
        starts = _starts(config, len(env.unwrapped.pool))
        obs, info = env.reset(seed=config.seed, options={"start": starts})
        frames, success = [obs["image"][:, None]], [np.zeros((config.num_envs, 1), bool)]
        over = np.zeros(config.num_envs, bool)
        while not over.all():
            obs, _, terminated, truncated, info = env.step(act(obs, env))
            frames.append(info["frames"])
            success.append(info["frames_success"])
            over |= terminated | truncated
    return np.concatenate(frames, axis=1), np.concatenate(success, axis=1)


def _policy(config: DemoConfig) -> tuple[int, Callable]:
    """Return how many steps a decision spans, and `act(obs, env) -> actions (n, K, 7)`."""
    if config.policy == "random":
        rng = np.random.default_rng(config.seed)
        return 1, lambda obs, env: rng.uniform(-1, 1, env.action_space.shape)
    policy = TokenVLA.from_pretrained(config.policy)

    @torch.inference_mode()
    def act(obs: dict, env: gym.vector.VectorEnv) -> np.ndarray:
        return policy.act(obs, env.unwrapped.instructions, greedy=True).action.cpu().numpy()

    return policy.chunk, act


def _play_expert(config: DemoConfig) -> tuple[np.ndarray, np.ndarray]:
    """Let the scripted expert play inside the simulators; the rest as `_play`."""
    from wm_gym.real.expert import DEMONSTRATION
    from wm_gym.real.pool import SimulationPool

    task = get_task(config.task)
    pool = load_starts(task.name, SPLIT)
    requests = [
        (pool.states[start], DEMONSTRATION, config.seed + row, config.steps, 0)
        for row, start in enumerate(_starts(config, len(pool)))
    ]
    with SimulationPool(task) as simulations:
        films = simulations.map("demonstrate", requests)
    length = max(len(film.frames) for film in films)
    frames = np.stack([hold(film.frames, length) for film in films])
    success = [hold(np.append(False, film.success), length) for film in films]
    return frames, np.stack(success)


def _starts(config: DemoConfig, size: int) -> np.ndarray:
    return np.arange(config.num_envs) % size
