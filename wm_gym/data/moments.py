"""Starts in the middle of recorded episodes, for imagined episodes that branch off from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wm_gym.data.episodes import Episode
from wm_gym.starts import StartPool

PAST = 10  # pictures before a moment: what memory and success classifier look back upon


def add_moments(pool: StartPool, episodes: Sequence[Episode], count: int, seed: int) -> StartPool:
    """Add `count` moments of recorded episodes, drawn at random, to a pool of starts.

    A policy that practises from these alone meets real pictures of its own mistakes, and a world
    model need not imagine its way there (branched rollouts: Janner et al. 2019, arXiv 1906.08253).
    Moments after the first success are left out. Episodes take turns, so that each gives as many.
    The pool is for the imagined world: of a moment only pictures are known.
    """
    rng = np.random.default_rng([seed, 4])
    turns = np.resize(rng.permutation(len(episodes)), count)  # (count,) episode of each moment
    pictures = [_moment(episodes[i], rng) for i in turns]
    pictures = np.stack([_at_rest(frame) for frame in pool.frames] + pictures)  # (s, T, H, W, 3)
    unknown = np.full((count, pool.states.shape[1]), np.nan)
    return StartPool(
        pictures[:, -1].copy(),
        np.concatenate([pool.states, unknown]),
        pool.task,
        pool.split,
        past=pictures[:, :-1].copy(),
    )


def _moment(episode: Episode, rng: np.random.Generator) -> np.ndarray:
    """Pictures up to a moment before success, (T, H, W, 3): the first, then those just before."""
    first = episode.first_success
    last = len(episode) if first is None else first
    t = int(rng.integers(min(1, last), last + 1))
    shown = np.arange(t - PAST, t + 1).clip(min=0)
    shown[0] = 0  # where the episode began
    return episode.frames[shown]


def _at_rest(frame: np.ndarray) -> np.ndarray:
    return np.repeat(frame[None], PAST + 1, axis=0)
