"""Saving and branching robosuite episodes in the middle of a grasp and lift."""

from __future__ import annotations

import numpy as np
import pytest

from tests.worlds import assert_same
from wm_gym.real import vector
from wm_gym.real.expert import ExpertConfig
from wm_gym.real.vector import RealVectorEnv
from wm_gym.starts import load_starts

START, CHUNK = 1, 4


@pytest.mark.sim
def test_an_expert_lifts_from_every_saved_state_as_it_did(simulations, monkeypatch):
    """All states that one episode passes are branches of a second world, played side by side."""
    monkeypatch.setattr(vector, "SimulationPool", lambda *_: simulations)
    options = {"chunk": CHUNK, "autoreset_mode": "Disabled", "return_frames": True}
    state = load_starts("Lift", "train").states[START]
    # Without noise no rotation is ever commanded, so the controller has to keep its goal.
    request = (state, ExpertConfig(noise=0.0), 0, 64, 0)
    (recording,) = simulations.map("demonstrate", [request])
    steps = -(-len(recording.actions) // CHUNK)
    actions = np.zeros((steps * CHUNK, 7), np.float32)
    actions[: len(recording.actions)] = recording.actions
    actions = actions.reshape(steps, 1, CHUNK, 7)

    env = RealVectorEnv("Lift", **options)
    env.reset(seed=0, options={"start": [START]})
    states, came = [], []
    for action in actions:
        states.append(env.get_state())
        came.append(env.step(action))
    assert [step[1][0] for step in came].count(1.0) == 1 and came[-1][2].tolist() == [True]
    played = np.concatenate([step[-1]["frames"][0][step[-1]["frames_mask"][0]] for step in came])
    assert np.array_equal(played, recording.frames[1:])

    branches = RealVectorEnv("Lift", steps, **options)
    branches.reset(seed=1)
    for row, saved in enumerate(states):
        branches.set_state(saved, [row])
    for step in range(steps):  # row r plays what followed after its state: action r + step
        ahead = np.minimum(np.arange(steps) + step, steps - 1)
        found = branches.step(actions[ahead, 0])
        for row in range(steps - step):
            assert_same(of_row(found, row), of_row(came[row + step], 0))
    assert_same(branches.get_state([0]), env.get_state())


def of_row(step: tuple, row: int) -> tuple:
    """Take one row of what `step` returned."""
    *arrays, info = step
    return (
        arrays[0]["image"][row],
        *(array[row] for array in arrays[1:]),
        {key: value[row] for key, value in info.items()},
    )
