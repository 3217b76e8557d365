"""Fingertips and cubes, against hands and cubes whose axes are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from wm_gym.data.measurements import faces
from wm_gym.data.symmetry import JOINTS, LAST_JOINT, MIRRORED_JOINTS
from wm_gym.world_model.contact import finger_axis, rounded_distance


def axis(*angles: float) -> list[float]:
    joints = torch.tensor(angles, dtype=torch.double)
    return finger_axis(joints.cos(), joints.sin()).tolist()


def test_fingers_of_a_stretched_arm_open_an_eighth_of_a_turn_aside():
    """All joints at 0: frames roll by -1 + 1 + 1 - 1 + 1 + 1 = 2 quarters, so the hand looks down.

    There y points to the other side: the fingers open along x and against y.
    """
    assert axis(0, 0, 0, 0, 0, 0, 0) == pytest.approx([0.5**0.5, -(0.5**0.5), 0])


def test_the_first_joint_turns_all_and_the_last_the_other_way_of_a_hand_that_looks_down():
    eighth = np.pi / 4
    assert axis(eighth, 0, 0, 0, 0, 0, 0) == pytest.approx([1, 0, 0])
    assert axis(0, 0, 0, 0, 0, 0, eighth) == pytest.approx([0, -1, 0])
    assert axis(0, 0, 0, 0, 0, 0, -eighth) == pytest.approx([1, 0, 0])


def test_a_wrist_that_is_bent_lets_one_finger_down():
    """The sixth joint turns about -y of a stretched arm: by a quarter, what was along x rises."""
    assert axis(0, 0, 0, 0, 0, np.pi / 2, 0) == pytest.approx([0, -(0.5**0.5), 0.5**0.5])


def test_cosines_and_sines_need_no_scale():
    joints = torch.randn(3, JOINTS)
    told = finger_axis(1.1 * joints.cos(), 1.1 * joints.sin())
    torch.testing.assert_close(told, finger_axis(joints.cos(), joints.sin()))
    torch.testing.assert_close(told.norm(dim=-1), torch.ones(3))


def test_fingers_of_a_mirrored_arm_open_as_in_a_mirror():
    """Left and right change places, too: what is along the axis is against its image."""
    joints = np.random.default_rng(0).normal(size=(5, JOINTS))
    image = joints.copy()
    image[:, MIRRORED_JOINTS] *= -1
    image[:, 6] += LAST_JOINT
    before, after = (
        finger_axis(*map(torch.from_numpy, (np.cos(j), np.sin(j)))) for j in (joints, image)
    )
    torch.testing.assert_close(after, before * torch.tensor([-1.0, 1, -1]))


def turned(rotation: Rotation) -> torch.Tensor:
    return torch.from_numpy(faces(rotation.as_quat()[None]))[0]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ([0.02, 0, 0], 0.02),  # the middle of a face
        ([0.02, -0.02, 0], 0.02 * 2**0.25),  # of an edge
        ([0.02, 0.02, 0.02], 0.02 * 3**0.25),  # a corner
        ([0, 0, 0], 0.001),
    ],
)
def test_distance_from_a_cube_that_stands_straight(place, expected):
    away = torch.tensor(place)
    assert rounded_distance(away, turned(Rotation.identity())).item() == pytest.approx(expected)


def test_distance_from_a_turned_cube_is_that_in_its_own_axes():
    rotations = Rotation.random(20, random_state=0)
    places = np.random.default_rng(0).normal(size=(20, 3))
    told = rounded_distance(torch.from_numpy(places), torch.from_numpy(faces(rotations.as_quat())))
    expected = (rotations.inv().apply(places) ** 4).sum(1) ** 0.25
    assert told.numpy() == pytest.approx(expected, rel=1e-5)


def test_a_fingertip_at_the_middle_still_has_a_gradient():
    away = torch.zeros(3, requires_grad=True)
    rounded_distance(away, turned(Rotation.identity())).backward()
    assert away.grad.isfinite().all()
