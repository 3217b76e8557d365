"""What is told of episodes beside their pictures: columns by name, and how a cube is turned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from wm_gym.data.measurements import faces, measured, measurements, observed, velocity


def turned(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    """A quaternion x, y, z, w."""
    half = np.radians(degrees) / 2
    unit = np.array(axis) / np.linalg.norm(axis)
    return np.array([*np.sin(half) * unit, np.cos(half)])


def times(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Quaternion product: q first, then p."""
    (px, py, pz, pw), (qx, qy, qz, qw) = p, q
    return np.array(
        [
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
            pw * qw - px * qx - py * qy - pz * qz,
        ]
    )


def quarter_turns() -> list[np.ndarray]:
    """The 24 turns of a cube onto itself, each at least once."""
    axes = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    turns = [turned(axis, 90 * k) for axis in axes for k in range(4)]
    return [
        times(times(a, b), c) for a, b, c in itertools.product(turns[:4], turns[4:8], turns[8:])
    ]


def test_a_cube_at_45_degrees_by_hand():
    # Edges along (1, 1, 0), (-1, 1, 0) over sqrt 2 and (0, 0, 1): x^4 is 2 / 4, x^3 y is 1/4 - 1/4.
    found = faces(turned((0, 0, 1), 45)[None])
    assert found == pytest.approx(np.array([[0.5, 0.5, 1, 0, 0, 0, 0, 0, 0]]), abs=1e-6)
    # By 22.5 degrees x^3 y is c^3 s - s^3 c = sin(90) / 4.
    found = faces(turned((0, 0, 1), 22.5)[None])
    assert found[0, 3:5] == pytest.approx([0.25, -0.25], abs=1e-6)


def test_poses_that_look_the_same_are_told_the_same():
    pose = turned((1, 2, 3), 31)
    same = np.stack([times(pose, turn) for turn in quarter_turns()])
    assert len(np.unique(np.abs(same).round(6), axis=0)) > 3
    assert faces(same) == pytest.approx(np.repeat(faces(pose[None]), 64, axis=0), abs=1e-6)
    assert faces(same).dtype == np.float32 and faces(same).shape == (64, 9)


def test_poses_that_look_different_are_told_apart():
    poses = [turned(axis, 40) for axis in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, 1, -1))]
    told = faces(np.stack(poses))
    apart = np.abs(told[:, None] - told[None]).max(-1) + np.eye(5)
    assert apart.min() > 0.05


def test_columns_stand_side_by_side_and_some_are_made_into_others():
    pose = turned((0, 0, 1), 45).astype(np.float32)
    low_dim = {
        "hand": np.array([[1, 2], [3, 4]], np.float32),
        "object": np.stack([np.concatenate([[7, 8, 9], pose])] * 2).astype(np.float32),
    }
    found = measurements(low_dim, ("object[:3]", "hand", "faces:object[3:7]"), 2, "It")
    assert found[:, :5].tolist() == [[7, 8, 9, 1, 2], [7, 8, 9, 3, 4]]
    assert found[1, 5:8] == pytest.approx([0.5, 0.5, 1]) and found.dtype == np.float32


def state(quaternion: list[float], velocity: list[float]) -> np.ndarray:
    """MuJoCo's of a Panda at rest and one body: time, 9 and 7 positions, 9 and 6 velocities."""
    return np.array([1.5, *[0.1] * 9, 7, 8, 9, *quaternion, *[0.2] * 9, *velocity])


def test_an_object_turns_in_the_axes_of_the_world_by_hand():
    half = np.sqrt(0.5)  # w, x, y, z of a quarter about z: the body's x is the world's y
    told = velocity(np.stack([state([half, 0, 0, half], [1, 2, 3, 4, 5, 6])]))
    assert told[0] == pytest.approx([1, 2, 3, -5, 4, 6]) and told.dtype == np.float32
    # Half a turn about x, then one of 120 degrees about (1, 1, 1), which takes x to y to z to x.
    poses = [state([0, 1, 0, 0], [0, 0, 0, 4, 5, 6]), state([0.5] * 4, [0, 0, 0, 4, 5, 6])]
    assert velocity(np.stack(poses))[:, 3:] == pytest.approx(np.array([[4, -5, -6], [6, 4, 5]]))


def test_states_tell_how_an_object_moves_where_nothing_else_does(make_episode):
    states = np.stack([state([1, 0, 0, 0], [t, 0, 0, 0, 0, 2]) for t in range(4)])
    told = measured(make_episode(t=3, states=states), ("object_velocity",))
    assert told.tolist() == [[t, 0, 0, 0, 0, 2] for t in range(4)]
    own = {"object_velocity": np.ones((4, 6), np.float32)}
    assert observed(make_episode(t=3, states=states, low_dim=own)) == own


def test_states_of_another_task_tell_nothing(make_episode):
    """Other numbers, or as many, among which the object (at 7, 8, 9) does not stand."""
    states = np.stack([state([1, 0, 0, 0], [0, 0, 0, 0, 0, 2])] * 4)
    elsewhere = {"object": np.tile(np.float32([7, 8, 9.02, 0, 0, 0, 1]), (4, 1))}
    near = {"object": np.tile(np.float32([7, 8, 9.009, 0, 0, 0, 1]), (4, 1))}
    assert "object_velocity" in observed(make_episode(t=3, states=states, low_dim=near))
    for given, low_dim, came in (
        (None, {}, "none"),
        (states[:, :-1], {}, "31 numbers"),
        (states, elsewhere, "32 numbers"),
    ):
        episode = make_episode(t=3, states=given, low_dim=low_dim)
        with pytest.raises(ValueError, match=f"expected 32 numbers, .* got {came}. Record either"):
            measured(episode, ("object_velocity",))


def test_a_measurement_that_is_no_number_is_named(make_episode):
    told = np.zeros((4, 2), np.float32)
    episode = make_episode(t=3, low_dim={"hand": told})
    assert measured(episode, ("hand[:1]",)).tolist() == [[0]] * 4
    told[2, 1] = np.nan
    assert measured(episode, ("hand[:1]",)).tolist() == [[0]] * 4  # it is not asked for
    with pytest.raises(ValueError, match="3 steps long, .* no finite number at step 2, among"):
        measured(episode, ("hand",))


def test_what_is_not_recorded_is_named():
    with pytest.raises(ValueError, match="It holds no object; it has \\['hand'\\]"):
        measurements({"hand": np.zeros((2, 2), np.float32)}, ("faces:object[3:7]",), 2, "It")
    with pytest.raises(ValueError, match="Unknown 'cubes' in 'cubes:hand'; expected faces"):
        measurements({"hand": np.zeros((2, 2), np.float32)}, ("cubes:hand",), 2, "It")
