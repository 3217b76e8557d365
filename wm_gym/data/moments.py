"""Starts in the middle of recorded episodes, for imagined episodes that branch off from them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wm_gym.data.episode import Episode
from wm_gym.files import replacing
from wm_gym.starts import LOW_DIM, ROBOT, StartPool, bundle

FILE_NAME = "moments.npz"
PAST = 10  # pictures before a moment: what memory and success classifier look back upon


class Moments(NamedTuple):
    """What is seen up to m moments of episodes, and measured there."""

    frames: np.ndarray
    """(m, T, H, W, 3) uint8: the first picture of the episode, then the last T - 1."""
    low_dim: dict[str, np.ndarray]
    """What the robot measures of itself there, float32 (m, d) each, by robomimic's keys; NaN where
    an episode does not say."""


def draw_moments(episodes: Sequence[Episode], count: int, seed: int) -> Moments:
    """Draw `count` moments before success. Episodes take turns, so that each gives as many."""
    rng = np.random.default_rng([seed, 4])
    turns = np.resize(rng.permutation(len(episodes)), count)  # (count,) episode of each moment
    drawn = [(episodes[i], _moment(episodes[i], rng)) for i in turns]
    measured = [{k: v[[t]] for k, v in e.low_dim.items() if k.startswith(ROBOT)} for e, t in drawn]
    frames = np.stack([e.frames[_shown(t)] for e, t in drawn])
    return Moments(frames, _joined(measured, [1] * count))


def with_moments(pool: StartPool, moments: Moments) -> StartPool:
    """Add moments to a pool of starts, for the imagined world.

    A policy that practises from these meets real pictures of its own mistakes, and a world model
    need not imagine its way there (branched rollouts: Janner et al. 2019, arXiv 1906.08253). The
    simulator state of a moment is NaN, and so is what only the pool's starts measure, or only the
    moments. Raises ValueError for pictures of another size.
    """
    seen = moments.frames
    if seen.shape[2:] != pool.frames.shape[1:]:
        raise ValueError(
            f"Moments must be uint8 (m, T, {', '.join(map(str, pool.frames.shape[1:]))}) as the "
            f"pool's starts are, got {seen.dtype} {seen.shape}."
        )
    at_rest = np.repeat(pool.frames[:, None], seen.shape[1], axis=1)
    pictures = np.concatenate([at_rest, seen])  # (s + m, T, H, W, 3)
    unknown = np.full((len(seen), pool.states.shape[1]), np.nan)
    return StartPool(
        pictures[:, -1].copy(),
        np.concatenate([pool.states, unknown]),
        pool.task,
        pool.split,
        past=pictures[:, :-1].copy(),
        low_dim=_joined([pool.low_dim, moments.low_dim], [len(pool), len(seen)]),
    )


def save_moments(moments: Moments, folder: Path | str) -> Path:
    """Write moments to `folder`/moments.npz, and return the path."""
    path = Path(folder).expanduser() / FILE_NAME
    measured = {LOW_DIM + key: rows for key, rows in moments.low_dim.items()}
    with replacing(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, frames=moments.frames, **measured)
    return path


def load_moments(task: str, folder: Path | str | None = None) -> Moments:
    """Read a task's moments: those bundled, or `folder`/moments.npz.

    Raises FileNotFoundError where there is no such file and ValueError where it is damaged.
    """
    path = (bundle(task) if folder is None else Path(folder).expanduser()) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"No moments for task {task!r} at {path}; draw them from recorded episodes with "
            "draw_moments, and keep them with save_moments."
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            low_dim = {k.removeprefix(LOW_DIM): arrays[k] for k in arrays if k.startswith(LOW_DIM)}
            return Moments(arrays["frames"], low_dim)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} holds no moments ({error}); expected an array `frames` as save_moments writes."
        ) from error


def _joined(
    parts: Sequence[Mapping[str, np.ndarray]], lengths: Sequence[int]
) -> dict[str, np.ndarray]:
    """Put measurements, float32 (length, d) each, one after another; NaN where a part has none."""
    widths = {key: rows.shape[1] for part in parts for key, rows in part.items()}

    def rows(part: Mapping[str, np.ndarray], length: int, key: str) -> np.ndarray:
        return part[key] if key in part else np.full((length, widths[key]), np.nan, np.float32)

    return {
        key: np.concatenate([rows(*each, key) for each in zip(parts, lengths, strict=True)])
        for key in widths
    }


def _moment(episode: Episode, rng: np.random.Generator) -> int:
    """Draw a moment before success."""
    first = episode.first_success
    last = len(episode) if first is None else first
    return int(rng.integers(min(1, last), last + 1))


def _shown(moment: int) -> np.ndarray:
    """Numbers of the pictures up to a moment, (T,): the first, then those just before."""
    shown = np.arange(moment - PAST, moment + 1).clip(min=0)
    shown[0] = 0  # where the episode began
    return shown
