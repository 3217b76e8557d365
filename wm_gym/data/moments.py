"""Starts in the middle of recorded episodes, for imagined episodes that branch off from them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wm_gym.data.episodes import Episode
from wm_gym.files import replacing
from wm_gym.starts import StartPool, bundle

FILE_NAME = "moments.npz"
PAST = 10  # pictures before a moment: what memory and success classifier look back upon


def draw_moments(episodes: Sequence[Episode], count: int, seed: int) -> np.ndarray:
    """Draw `count` moments before success, uint8 (count, T, H, W, 3): what is seen up to each.

    The first picture is that of the episode, the others are the last T - 1. Episodes take turns, so
    that each gives as many.
    """
    rng = np.random.default_rng([seed, 4])
    turns = np.resize(rng.permutation(len(episodes)), count)  # (count,) episode of each moment
    return np.stack([_moment(episodes[i], rng) for i in turns])


def with_moments(pool: StartPool, moments: np.ndarray) -> StartPool:
    """Add moments, uint8 (m, T, H, W, 3), to a pool of starts, for the imagined world.

    A policy that practises from these meets real pictures of its own mistakes, and a world model
    need not imagine its way there (branched rollouts: Janner et al. 2019, arXiv 1906.08253). Of a
    moment only pictures are known, so its simulator state is NaN. Raises ValueError for pictures of
    another size.
    """
    if moments.shape[2:] != pool.frames.shape[1:]:
        raise ValueError(
            f"Moments must be uint8 (m, T, {', '.join(map(str, pool.frames.shape[1:]))}) as the "
            f"pool's starts are, got {moments.dtype} {moments.shape}."
        )
    at_rest = np.repeat(pool.frames[:, None], moments.shape[1], axis=1)
    pictures = np.concatenate([at_rest, moments])  # (s + m, T, H, W, 3)
    unknown = np.full((len(moments), pool.states.shape[1]), np.nan)
    return StartPool(
        pictures[:, -1].copy(),
        np.concatenate([pool.states, unknown]),
        pool.task,
        pool.split,
        past=pictures[:, :-1].copy(),
    )


def save_moments(moments: np.ndarray, folder: Path | str) -> Path:
    """Write moments, uint8 (m, T, H, W, 3), to `folder`/moments.npz, and return the path."""
    path = Path(folder) / FILE_NAME
    with replacing(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, frames=moments)
    return path


def load_moments(task: str, folder: Path | str | None = None) -> np.ndarray:
    """Read a task's moments, uint8 (m, T, H, W, 3): those bundled, or `folder`/moments.npz.

    Raises FileNotFoundError where there is no such file and ValueError where it is damaged.
    """
    path = (bundle(task) if folder is None else Path(folder)) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"No moments for task {task!r} at {path}; draw them from recorded episodes with "
            "draw_moments, and keep them with save_moments."
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["frames"]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} holds no moments ({error}); expected an array `frames` as save_moments writes."
        ) from error


def _moment(episode: Episode, rng: np.random.Generator) -> np.ndarray:
    """Pictures up to a moment before success, (T, H, W, 3): the first, then those just before."""
    first = episode.first_success
    last = len(episode) if first is None else first
    t = int(rng.integers(min(1, last), last + 1))
    shown = np.arange(t - PAST, t + 1).clip(min=0)
    shown[0] = 0  # where the episode began
    return episode.frames[shown]
