"""Recording real episodes: the start pools, the scripted expert, and a policy's own rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from tqdm import tqdm

from wm_gym.data.episode import Episode
from wm_gym.data.writing import EpisodeWriter
from wm_gym.real.expert import ExpertConfig
from wm_gym.real.pool import SimulationPool
from wm_gym.real.worker import Playback
from wm_gym.starts import ROBOT, StartPool
from wm_gym.tasks import Task

TAIL = 16  # control steps recorded past the first success, so that "it stays done" is in the data
# Test starts of earlier worlds, which were chosen with them in sight, are from 2 to 4 million on.
FIRST_SEED = {"train": 0, "validation": 1_000_000, "test": 5_000_000}


def draw_starts(task: Task, split: str, count: int, pool: SimulationPool) -> StartPool:
    """Draw `count` starts of a split; no two splits share a seed, so neither a start."""
    first = FIRST_SEED[split]
    drawn = []
    for batch in tqdm(_batches(range(first, first + count), pool), f"{split} starts"):
        drawn += pool.map("sample_start", [(seed,) for seed in batch])
    states, frames, measured = zip(*drawn, strict=True)
    own = [key for key in measured[0] if key.startswith(ROBOT)]
    low_dim = {key: np.stack([row[key] for row in measured]) for key in own}
    return StartPool(np.stack(frames), np.stack(states), task.name, split, low_dim=low_dim)


def record_expert(
    path: Path,
    task: Task,
    starts: StartPool,
    indices: Sequence[int],
    expert: ExpertConfig,
    *,
    source: str,
    seed: int,
    pool: SimulationPool,
    filmed: bool = True,
) -> None:
    """Record the scripted expert from `starts[indices]`, one episode each, into `path` (HDF5).

    Unless `filmed`, without pictures, in a third of the time.

    An interrupted recording continues where it stopped and gives the same file; one that holds more
    episodes is left as it is. Raises ValueError where `path` holds episodes from other starts, of
    another source, seed or length.
    """
    with EpisodeWriter(path, environment(task)) as writer:
        _check_goes_on(writer, indices, source, seed, expert.length)
        todo = list(enumerate(indices))[len(writer) :]
        with tqdm(total=len(indices), initial=len(writer), desc=source, unit="episode") as bar:
            for batch in _batches(todo, pool):
                requests = [
                    (starts.states[start], expert, seed * 100_003 + i, task.horizon, TAIL, filmed)
                    for i, start in batch
                ]
                recordings = pool.map("demonstrate", requests)
                for (_, start), r in zip(batch, recordings, strict=True):
                    facts = {"source": source, "start": int(start), "seed": seed}
                    writer.append(Episode(**r._asdict(), **facts))
                bar.update(len(batch))


def record_policy(
    path: Path,
    task: Task,
    env: Any,
    player: Callable[[int], Callable[[dict, list[str]], np.ndarray]],
    indices: Sequence[int],
    *,
    source: str,
    seed: int,
) -> None:
    """Record a policy in a real environment, as above, in waves of num_envs episodes.

    `player(first)` gives what acts in the wave that begins with episode number `first`,
    `act(obs, instructions) -> actions (n, K, 7)`. An interrupted wave is played again as a whole,
    and gives the same episodes where all that `act` draws is a function of `first`.

    `env` is `make_vec(..., backend="real", chunk=K, autoreset_mode="disabled",
    ignore_terminations=True, return_frames=True, horizon=task.horizon + TAIL)`: an episode goes on
    past its success and is cut TAIL steps after it, or at the task's horizon without one. Raises
    ValueError for another environment, and where `path` holds episodes from other starts, of
    another source or seed.
    """
    _check_recordable(env, task)
    with EpisodeWriter(path, environment(task)) as writer:
        _check_goes_on(writer, indices, source, seed)
        with tqdm(total=len(indices), initial=len(writer), desc=source, unit="episode") as bar:
            while len(writer) < len(indices):
                first = len(writer) - len(writer) % env.num_envs
                wave = np.asarray(indices[first : first + env.num_envs])
                played = _play_wave(env, player(first), wave, task.horizon, source, seed)
                for episode in islice(played, len(writer) - first, None):
                    writer.append(episode)
                    bar.update()


def environment(task: Task) -> dict[str, Any]:
    """robomimic's `env_args` of our task."""
    return {
        "env_name": task.simulator,
        "type": 1,  # robomimic's number for robosuite
        "env_version": "1.4.1",
        "env_kwargs": {
            "robots": "Panda",
            "control_freq": 20,
            "camera_names": task.camera.name,
            "camera_heights": task.image_size,
            "camera_widths": task.image_size,
        },
        "wm_camera": {
            "position": list(task.camera.position),
            "target": list(task.camera.target),
            "fovy": task.camera.fovy,
        },
    }


def _check_goes_on(
    writer: EpisodeWriter,
    indices: Sequence[int],
    source: str,
    seed: int,
    length: int | None = None,
) -> None:
    """Raise ValueError where the last episode that is there already is not the one asked for."""
    at = min(len(writer), len(indices)) - 1
    if at < 0:
        return
    last = writer.episode(at)
    found = (last.source, last.seed, last.start, len(last))
    wanted = (source, seed, int(indices[at]), length or len(last))
    if found != wanted:
        raise ValueError(
            f"Episode {at} in {writer.path} has (source, seed, start, steps) {found}, not "
            f"{wanted}; continue it with the same settings, or write to another file."
        )


def _check_recordable(env: Any, task: Task) -> None:
    world = env.unwrapped
    wanted = {
        "autoreset_mode": AutoresetMode.DISABLED,
        "ignore_terminations": True,
        "return_frames": True,
        "horizon": task.horizon + TAIL,
    }
    wrong = {k: getattr(world, k) for k, v in wanted.items() if getattr(world, k) != v}
    if wrong or len(world.single_action_space.shape) != 2:
        raise ValueError(
            f"Recording needs an environment with chunk=K and {wanted}, got action shape "
            f"{world.single_action_space.shape} and {wrong}; make it with these keywords."
        )


def _play_wave(
    env: Any, act: Callable, starts: np.ndarray, horizon: int, source: str, seed: int
) -> Iterator[Episode]:
    """Play one episode from each start (at most num_envs of them) side by side."""
    n = len(starts)
    padded = np.resize(starts, env.num_envs)
    obs, _ = env.reset(seed=seed, options={"start": padded})
    frames, actions, success, notes = [obs["image"][:, None]], [], [], []
    while sum(a.shape[1] for a in actions) < env.unwrapped.horizon:
        action = np.asarray(act(obs, env.unwrapped.instructions))
        obs, _, _, _, info = env.step(action)
        frames.append(info["frames"])
        actions.append(action)
        success.append(info["frames_success"])
        notes.append(env.unwrapped.playbacks)
    pictures, played, done = (np.concatenate(x, axis=1) for x in (frames, actions, success))
    for row in range(n):
        first = int(done[row].argmax()) if done[row].any() else None
        end = horizon if first is None or first >= horizon else first + 1 + TAIL
        said = [playbacks[row] for playbacks in notes]
        states, low_dim = joined(said)
        yield Episode(
            pictures[row, : end + 1].copy(),
            np.clip(played[row, :end], -1, 1).astype(np.float32),
            done[row, :end].copy(),
            states[: end + 1],
            source,
            int(starts[row]),
            seed,
            low_dim={key: rows[: end + 1] for key, rows in low_dim.items()},
        )


def joined(played: Sequence[Playback]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Simulator states (t + 1, p) and `low_dim` (t + 1, d) by key of t steps played in parts."""
    low_dim = {key: _joined([part.low_dim[key] for part in played]) for key in played[0].low_dim}
    return _joined([part.states for part in played]), low_dim


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Join what was noted of steps in a row; each part begins where the one before it ended."""
    return np.concatenate([parts[0][:1], *(part[1:] for part in parts)])


def _batches(items: Sequence, pool: SimulationPool) -> Iterator[Sequence]:
    """Cut `items` so that every worker is busy and little is lost by an interruption."""
    size = 4 * pool.workers
    for first in range(0, len(items), size):
        yield items[first : first + size]
