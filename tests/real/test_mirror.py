"""Episodes in a mirror, played by the simulator: it measures what is written down."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from wm_gym.data.measurements import VELOCITY, velocity
from wm_gym.data.symmetry import KEYS, mirrored
from wm_gym.tasks import get_task

pytestmark = pytest.mark.sim
MIDDLE = 0.0


def place(sim, low_dim: dict[str, np.ndarray]) -> None:
    """Put robot and cube at rest as measured, and make that the posture the arm is drawn to."""
    sim.sample_start(seed=0)
    parts = sim._parts()
    qpos, controller = parts[0], sim.robot.controller
    for part in parts[1:5]:
        part[:] = 0
    qpos[:7] = np.arctan2(low_dim["robot0_joint_pos_sin"], low_dim["robot0_joint_pos_cos"])
    qpos[7:9] = low_dim["robot0_gripper_qpos"]
    qpos[9:16] = low_dim["object"][[0, 1, 2, 6, 3, 4, 5]]  # MuJoCo's quaternions begin with w
    controller.initial_joint[:] = qpos[:7]
    sim.set_state(sim.get_state())
    controller.goal_ori[:] = controller.ee_ori_mat


def told(sim) -> dict[str, np.ndarray]:
    return sim.low_dim() | {VELOCITY: velocity(sim.get_state()[None, : sim.physics_size])[0]}


def play(sim, actions: np.ndarray) -> dict[str, np.ndarray]:
    found = [told(sim)]
    for action in actions:
        sim.step(action)
        found.append(told(sim))
    return {key: np.stack([row[key] for row in found]) for key in KEYS}


def reach_and_grasp(sim) -> np.ndarray:
    """Actions (26, 7) of a servo: over the cube, down, with a twist, and close."""
    taken = []
    for t in range(26):
        now = sim.low_dim()
        away = now["object"][:3] - now["robot0_eef_pos"] + [0, 0, 0.08 * (t < 10)]
        action = np.array([*np.clip(10 * away, -1, 1), 0.1, -0.1, 0.2 * (t < 10), 1 - 2 * (t < 20)])
        taken.append(action.astype(np.float32).round(3))
        sim.step(taken[-1])
    return np.array(taken)


def test_the_simulator_agrees():
    from wm_gym.real.simulation import Simulation

    with closing(Simulation(get_task("Lift"))) as sim:
        sim.sample_start(seed=5)
        first = sim.low_dim()
        place(sim, first)
        state = sim.get_state()
        actions = reach_and_grasp(sim)
        sim.set_state(state)
        recorded = play(sim, actions)
        expected, taken = mirrored(recorded, actions, MIDDLE)
        place(sim, {key: rows[0] for key, rows in expected.items()})
        found = play(sim, taken)
    moved = np.abs(expected["robot0_eef_pos"] - expected["robot0_eef_pos"][0]).max()
    assert moved > 0.1 and np.ptp(expected["robot0_gripper_qpos"][:, 0]) > 0.01
    # A Panda's two sides are not quite the same: a few tenths of a millimetre once it touches.
    assert np.abs(found["robot0_eef_pos"] - expected["robot0_eef_pos"]).max() < 1e-3
    assert np.abs(found["object"][:, :3] - expected["object"][:, :3]).max() < 2e-3
    assert np.abs(found["robot0_joint_pos_sin"] - expected["robot0_joint_pos_sin"]).max() < 5e-3
    gap = np.abs(found["robot0_gripper_qpos"] - expected["robot0_gripper_qpos"])
    assert gap.max() < 2e-3
    turn, expected_turn = found["object"][:, 3:7], expected["object"][:, 3:7]
    assert np.abs(turn - expected_turn).max() < 5e-4 and np.ptp(expected_turn, axis=0)[1] > 0.01
    drift = np.abs(found[VELOCITY] - expected[VELOCITY])
    assert drift[:, :3].max() < 1e-3 and drift[:, 3:].max() < 2e-2
    assert (np.ptp(expected[VELOCITY], axis=0) > [7e-3] * 3 + [0.1] * 3).all()
