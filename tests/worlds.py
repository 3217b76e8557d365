"""Both worlds on fakes, made alike, and what it means that two of their answers are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from tests.fakes import SIZE, FakeMembers, FakeSuccess, FakeWorldModel, fake_pool, imagined
from wm_gym.contract import WorldVectorEnv
from wm_gym.real import vector
from wm_gym.real.vector import RealVectorEnv
from wm_gym.real.worker import Playback
from wm_gym.tasks import TASKS


class Ladder:
    """A pool of simulators in which a state [x] climbs by the first action value.

    A picture is filled with the x that it shows, plus 100; 103 and above is a success.
    """

    def __init__(self, task, workers, full_meshes, timeout) -> None:
        """Take what SimulationPool takes."""
        self.workers, self.timeout, self.closed = workers, timeout, False
        self.requests, self.labels = [], []

    def map(self, name, requests, labels):
        """Play all requests, in order."""
        assert name == "play"
        self.labels.append(labels)
        self.requests.append([(state.copy(), *rest) for state, *rest in requests])
        return [self.play(*request) for request in requests]

    def play(self, state, actions, stop_on_success, every_frame):
        """Answer as Worker.play does."""
        before, levels, success = state[0] + 100, [], []
        for action in actions:
            state = state + round(float(action[0]))
            levels.append(state[0] + 100)
            success.append(state[0] >= 3)
            if stop_on_success and success[-1]:
                break
        shown = np.array(levels if every_frame else levels[-1:], np.uint8)
        frames = np.broadcast_to(shown[:, None, None, None], (len(shown), SIZE, SIZE, 3))
        track = np.array([before, *levels])[:, None]
        return Playback(state, frames, np.array(success), track, {"level": track.astype("f4")})

    def close(self):
        """Remember it."""
        self.closed = True


SMALL = replace(TASKS["Lift"], image_size=SIZE)
"""The task that ladders draw."""


def ladder(num_envs: int = 1, **options: Any) -> RealVectorEnv:
    """Make a real world of ladders: start s shows the level 100 + s and has the state [s]."""
    pool = mock.patch.object(vector, "SimulationPool", Ladder)
    with pool, mock.patch.dict(TASKS, Lift=SMALL):
        return RealVectorEnv("Lift", num_envs, **{"starts": fake_pool()} | options)


def noisy(num_envs: int = 1, **options: Any) -> WorldVectorEnv:
    """Make an imagined world in which noise, the memory and two verdicts of three all matter."""
    model = FakeWorldModel(noise=0.3, mix=0.1)
    success = FakeSuccess(threshold=0.4, hold_k=2, hold_n=3)
    options = {"world_model": model, "success": success, "deterministic": True} | options
    return imagined(num_envs, **options)


def unanimous(num_envs: int = 1, **options: Any) -> WorldVectorEnv:
    """Make the same where two members must have seen a success, too."""
    model = FakeMembers(noise=0.3, mix=0.1)
    return noisy(num_envs, **{"world_model": model, "unanimous": True} | options)


WORLDS = {"real": ladder, "imagined": noisy, "unanimous": unanimous}


def flat(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """Name every array of nested dictionaries and tuples, and bring it to numpy."""
    if not isinstance(value, dict | tuple | list):
        return {name: np.asarray(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, item in items:
        found |= flat(item, f"{name}.{key}".lstrip("."))
    return found


def assert_same(came: Any, wanted: Any) -> None:
    """Compare what reset, step or get_state returned, to the bit."""
    came, wanted = flat(came), flat(wanted)
    assert came.keys() == wanted.keys()
    for key, array in wanted.items():
        assert np.array_equal(came[key], array), key


def random_actions(env: WorldVectorEnv, steps: int, seed: int = 0) -> list[np.ndarray]:
    """Draw actions for all rows, float32, one array a step."""
    rng = np.random.default_rng(seed)
    shape = (steps, *env.action_space.shape)
    return list(rng.uniform(-1, 1, shape).astype(np.float32))
