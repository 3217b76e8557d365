"""New real episodes to judge a world model by, from starts that nothing was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from policies.token import TokenVLA
from trainers.replay import DTYPE, play, recorded
from trainers.rollout import autocast, device_of, instructions_of, make_env
from wm_gym.data.collection import record_expert
from wm_gym.data.episode import Episode
from wm_gym.data.reading import EpisodeFile
from wm_gym.real.expert import PLAY
from wm_gym.real.pool import SimulationPool
from wm_gym.starts import StartPool, load_starts
from wm_gym.tasks import get_task

ROWS = 32  # episodes side by side
CHUNK = 8  # control steps a call, where robosuite repeats what was recorded
PROBED = (48, 160)  # episodes that a position probe learns from, and their control steps


def play_policy(
    task: str, policy: TokenVLA, starts: Sequence[int], steps: int, seed: int, workers: int | None
) -> list[Episode]:
    """Episodes of `steps` control steps that `policy` plays from these validation starts.

    It acts as it does in practice, drawn at its temperature, and goes on past a success.
    """
    rows, found = min(ROWS, len(starts)), []
    generator = torch.Generator(device_of(policy)).manual_seed(seed)
    options = {"chunk": policy.chunk, "horizon": steps, "workers": workers}
    options |= {"split": "validation", "return_frames": True, "ignore_terminations": True}
    waves = [np.asarray(starts[i : i + rows]) for i in range(0, len(starts), rows)]
    with (
        closing(make_env(task, "real", rows, **options)) as env,
        tqdm(total=len(waves) * -(-steps // policy.chunk), desc="policy", unit="decision") as bar,
    ):
        told = instructions_of(env)

        def decide(_: int, obs: dict[str, Any]) -> np.ndarray:
            with torch.inference_mode(), autocast(policy, DTYPE):
                return policy.act(obs, told, generator=generator).action.cpu().numpy()

        for wave in waves:
            played = play(env, wave, seed, decide, bar)
            episodes = zip(wave, recorded(played.actions, played), strict=True)
            found += [replace(e, source="policy", start=int(start)) for start, e in episodes]
    return found


def play_expert(
    path: Path,
    task: str,
    split: str,
    starts: Sequence[int],
    steps: int,
    *,
    source: str,
    seed: int,
    workers: int | None,
) -> list[Episode]:
    """Episodes of `steps` control steps that the expert that errs plays from these starts.

    They are kept at `path`, and not played again where they are there already, be it with more.
    Raises ValueError where what is there are episodes from other starts, or of other lengths.
    """
    facts = get_task(task)
    with SimulationPool(facts, workers) as pool:
        record_expert(
            path,
            facts,
            load_starts(task, split),
            starts,
            replace(PLAY, length=steps),
            source=source,
            seed=seed,
            pool=pool,
        )
    with EpisodeFile(path) as file:
        episodes = [file.episode(i) for i in range(len(starts))]
    for i, (episode, start) in enumerate(zip(episodes, starts, strict=True)):
        if (episode.start, len(episode)) != (start, steps):
            raise ValueError(
                f"Episode {i} in {path} has {len(episode)} steps from start {episode.start}, not "
                f"{steps} from {start}; remove the file, or choose another folder."
            )
    return episodes


def play_for_probe(folder: Path, task: str, seed: int, workers: int | None) -> list[Episode]:
    """Let the expert that errs play, from training starts, what a position probe learns from.

    The episodes are kept in `folder`, as by `play_expert`.
    """
    (count, steps), told = PROBED, {"source": "probe", "seed": seed, "workers": workers}
    return play_expert(folder / "probe.hdf5", task, "train", range(count), steps, **told)


def play_aside(
    task: str,
    episodes: Sequence[Episode],
    steps: int,
    aside: float,
    seed: int,
    workers: int | None,
) -> np.ndarray:
    """Play n episodes from validation starts once more, their object begun `aside` metres aside.

    The same actions; each object has a direction of its own. Returns the pictures after each of
    `steps` control steps, uint8 (n, steps, H, W, 3).
    """
    pool, rows = load_starts(task, "validation"), [e.start for e in episodes]
    at, n, decisions = get_task(task).object_at, len(episodes), -(-steps // CHUNK)
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, n)
    states = pool.states[rows]
    states[:, at : at + 2] += aside * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    starts = StartPool(pool.frames[rows], states, pool.task, pool.split)
    actions = np.zeros((decisions * CHUNK, n, episodes[0].actions.shape[1]), np.float32)
    actions[:steps] = np.stack([e.actions[:steps] for e in episodes], axis=1)
    chunks = actions.reshape(decisions, CHUNK, n, -1).swapaxes(1, 2)
    options = {"starts": starts, "chunk": CHUNK, "horizon": steps, "workers": workers}
    options |= {"split": pool.split, "return_frames": True, "ignore_terminations": True}
    with (
        closing(make_env(task, "real", n, **options)) as env,
        tqdm(total=decisions, desc="aside", unit="decision") as bar,
    ):
        played = play(env, np.arange(n), seed, lambda decision, _: chunks[decision], bar)
    return played.frames[:, 1:]
