"""Episodes in a mirror, by hand; tests/real has the simulator's word on them."""

from __future__ import annotations

import numpy as np
import pytest

from wm_gym.data.symmetry import KEYS, check_mirrored, mirrored
from wm_gym.world_model.presets import PRESETS


def measured() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One moment: the hand 0.6 m before the base at (-0.5, 0.1), a cube turned by 90 degrees."""
    angles = np.array([[0.0, 0.2, 0.3, -2.0, 0.4, 3.0, 0.5]])
    half = np.sqrt(0.5)
    low_dim = {
        "robot0_eef_pos": [[0.1, 0.1, 1.0]],
        "object": [[-0.5, 0.3, 0.8, 0.0, 0.0, half, half, 9.0]],
        "robot0_joint_pos_cos": np.cos(angles),
        "robot0_joint_pos_sin": np.sin(angles),
        "robot0_joint_vel": [[1.0, 2, 3, 4, 5, 6, 7]],
        "robot0_gripper_qpos": [[0.03, -0.01]],
        "robot0_gripper_qvel": [[0.5, -0.25]],
        "object_velocity": [[1.0, 2, 3, 4, 5, 6]],
        "robot0_eef_quat": [[0.0, 0, 0, 1]],
    }
    found = {key: np.array(rows, np.float32) for key, rows in low_dim.items()}
    return found, np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0]], np.float32)


def angles(low_dim: dict[str, np.ndarray]) -> list[float]:
    cos, sin = low_dim["robot0_joint_pos_cos"][0], low_dim["robot0_joint_pos_sin"][0]
    return np.arctan2(sin, cos).tolist()


def test_a_mirror_by_hand():
    found, actions = mirrored(*measured(), 0.1)
    assert found["robot0_eef_pos"][0].tolist() == pytest.approx([0.1, 0.1, 1.0])
    half = np.sqrt(0.5)
    assert found["object"][0].tolist() == pytest.approx([-0.5, -0.1, 0.8, 0, 0, -half, half])
    assert angles(found) == pytest.approx([0, 0.2, -0.3, -2, -0.4, 3, np.pi / 2 - 0.5])
    assert found["object_velocity"][0].tolist() == [1, -2, 3, -4, 5, -6]
    assert found["robot0_joint_vel"][0].tolist() == [-1, 2, -3, 4, -5, 6, -7]
    assert found["robot0_gripper_qpos"][0].tolist() == pytest.approx([0.01, -0.03])
    assert found["robot0_gripper_qvel"][0].tolist() == [0.25, -0.5]
    assert actions[0].tolist() == pytest.approx([0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 1])


def test_there_and_back():
    low_dim, actions = measured()
    back, played = mirrored(*mirrored(low_dim, actions, 0.1), 0.1)
    np.testing.assert_allclose(played, actions, atol=1e-6)
    for key in KEYS:
        wanted = low_dim[key][:, :7]  # the last number of `object` is of the task
        np.testing.assert_allclose(back[key], wanted, atol=1e-6, err_msg=key)


def test_an_episode_is_not_changed_and_may_know_of_no_object():
    low_dim, actions = measured()
    before = {key: rows.copy() for key, rows in low_dim.items()}
    found, played = mirrored(low_dim, actions, 0.1)
    assert played.dtype == np.float32 and {rows.dtype for rows in found.values()} == {played.dtype}
    assert all(np.array_equal(low_dim[key], rows) for key, rows in before.items())
    assert set(found) == set(KEYS)
    del low_dim["object"], low_dim["object_velocity"]
    assert set(mirrored(low_dim, actions, 0.0)[0]) == set(KEYS) - {"object", "object_velocity"}


@pytest.mark.parametrize("size", [3, 12])
def test_velocities_of_other_objects_are_not_shown(size):
    low_dim, actions = measured()
    low_dim["object_velocity"] = np.ones((1, size), np.float32)
    assert set(mirrored(low_dim, actions, 0.0)[0]) == set(KEYS) - {"object_velocity"}


@pytest.mark.parametrize("name", ["robot0_eef_quat", "object", "object[7:10]", "object[:8]"])
def test_what_a_mirror_does_not_show_is_refused(name):
    check_mirrored(PRESETS["nano-object"].body)
    with pytest.raises(ValueError, match="do not hold .*motion.no-mirrored"):
        check_mirrored(("robot0_eef_pos", name))


def test_an_episode_of_no_panda_is_refused():
    low_dim, actions = measured()
    less = {key: rows[:, :6] if "joint" in key else rows for key, rows in low_dim.items()}
    with pytest.raises(ValueError, match=r"episode with joints \[6\]"):
        mirrored(less, actions, 0.0)
    del low_dim["robot0_joint_vel"]
    with pytest.raises(ValueError, match="episode with no robot0_joint_vel"):
        mirrored(low_dim, actions, 0.0)
