"""Rows of a world, as arrays: what they played, and what all of their future depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Played(NamedTuple):
    """What a world reports about the m rows that it played."""

    image: Any
    """(m, H, W, 3) uint8, the last frame played, in the world's own kind of array."""
    success: np.ndarray
    """(m, K) bool, the success predicate after each action; False where not played."""
    probability: np.ndarray
    """(m, K) float32, its probability."""
    played: np.ndarray
    """(m,) int64, control steps really played, at least 1."""
    uncertainty: np.ndarray
    """(m, K) float32, of the world about the episode so far; a simulator's is 0."""
    frames: Any | None = None
    """(m, K, H, W, 3) uint8 with return_frames; frames not played repeat the last one."""


class WorldState(NamedTuple):
    """m rows of a world as `get_state` saved them: arrays with one entry a row, shared with nobody.

    It can be pickled, kept, and set again in any world with the same settings, however many rows
    that has. A copy of a row draws the same noise and the same next starts as the row itself;
    `state._replace(seeds=...)` sends copies different ways where a world is noisy.
    """

    settings: dict[str, Any]
    """What a world that takes the state must have been made with."""
    seeds: np.ndarray
    """(m,) int64."""
    episode: np.ndarray
    """(m,) int64, episodes begun since the seed was given, less one."""
    elapsed: np.ndarray
    """(m,) int64, control steps of the episode."""
    start: np.ndarray
    """(m,) int64, index into the pool of starts, -1 for a picture."""
    success: np.ndarray
    """(m,) bool, so far in the episode."""
    probability: np.ndarray
    """(m,) float32, at the last step played."""
    uncertainty: np.ndarray
    """(m,) float32, so far in the episode."""
    over: np.ndarray
    """(m,) bool, the episode has ended and waits for its reset."""
    image: Any
    """(m, H, W, 3) uint8, what the rows show, in the kind of array that `output` names."""
    hidden: Any
    """What the world alone knows: an array, or tuples of them, one entry a row. Real: simulator
    states (m, d) float64. Imagined: what the models remember, on their device."""

    def take(self, rows: Any) -> WorldState:
        """Return rows (r,) int of the state as a state of their own, fresh; rows may repeat."""
        rows = np.asarray(rows)
        return WorldState(self.settings, *map_arrays(lambda array: array[rows], self[1:]))


def map_arrays(change: Callable[[Any], Any], value: Any) -> Any:
    """Apply `change` to an array, or to every array of nested (named) tuples."""
    if not isinstance(value, tuple):
        return change(value)
    parts = [map_arrays(change, part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def check_state(state: Any, now: WorldState) -> None:
    """Raise ValueError where `state` cannot take the place of `now`, the rows that it is for."""
    if not isinstance(state, WorldState):
        raise ValueError(
            f"A state is what get_state or fork returned, got {type(state).__name__}; pass that."
        )
    came, here = state.settings, now.settings
    if other := [key for key in here if came.get(key) != here[key]]:
        saved, world = ({key: given.get(key) for key in other} for given in (came, here))
        raise ValueError(
            f"This state was saved with {saved} and the world has {world}; make a world with the "
            "same settings, models and starts."
        )
    if len(state.seeds) != len(now.seeds):
        raise ValueError(
            f"Expected one state a row, {len(now.seeds)} of them, got {len(state.seeds)}; pass as "
            "many `rows`, or choose with state.take(...)."
        )
    shapes = [[tuple(np.shape(part)) for part in _arrays(each[1:])] for each in (state, now)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The arrays of this state have shapes {shapes[0]} and the world keeps {shapes[1]}; "
            "make a world with the same models and the same kind of starts."
        )


def _arrays(value: Any) -> Iterator[Any]:
    if not isinstance(value, tuple):
        yield value
        return
    for part in value:
        yield from _arrays(part)
