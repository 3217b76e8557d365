"""What a robot would have measured had all happened turned about its base, or in a mirror.

A Panda is alike on both sides and turns about its first joint, and neither a table nor a cube knows
where left is. So each recorded episode tells of many that were not recorded; only their pictures
are missing. What stands fixed on a table (pegs, bins) breaks both symmetries.

Copies are as good as recordings up to the posture that OSC draws the arm to, the one that an
episode begins in: it would have to be turned or mirrored, too, and at play it is not. In robosuite
a hand turned by 0.1 without it is 2 to 3 mm off after 10 steps and 5 after 20; a mirrored one up to
1 and 4, as episodes begin nearly straight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from wm_gym.data.measurements import key_and_columns

WIDEST = 0.2  # radians: the posture that the arm is drawn to has a front
JOINTS = 7
MIRRORED_JOINTS = (0, 2, 4, 6)
LAST_JOINT = np.pi / 2  # what the last joint's angles on both sides add up to
PLACES = ("robot0_eef_pos", "object")  # these begin with a place
KEYS = (
    *PLACES,
    "robot0_joint_pos_cos",
    "robot0_joint_pos_sin",
    "robot0_joint_vel",
    "robot0_gripper_qpos",
    "robot0_gripper_qvel",
)
POSE = 7  # numbers of `object` that are its place and quaternion; what follows depends on the task
Measured = dict[str, np.ndarray]


def check_symmetric(names: Sequence[str]) -> None:
    """Raise ValueError where copies would not hold `names`, what `measurements` is asked for."""
    for name in names:
        key, columns = key_and_columns(name)
        if key not in KEYS or (key == "object" and (columns.stop or POSE + 1) > POSE):
            raise ValueError(
                f"Symmetric copies of an episode do not hold {name!r}, only {', '.join(KEYS)}, and "
                f"of the object [:{POSE}]. Name others in the world model's `body`, or learn "
                "without copies: --world-model.motion.copies 0."
            )


def symmetric(
    low_dim: Mapping[str, np.ndarray],
    actions: np.ndarray,
    base: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[Measured, np.ndarray]:
    """Turn an episode of a Panda with its base at x, y by a random angle; mirror every second one.

    low_dim: robomimic's keys, (t + 1, d) float32; those of KEYS come back, of `object` its place
    and quaternion. actions (t, 7): of OSC_POSE, and the gripper's; they may leave [-1, 1].
    """
    if rng.random() < 0.5:
        low_dim, actions = mirrored(low_dim, actions, base[1])
    return turned(low_dim, actions, base, rng.uniform(-WIDEST, WIDEST))


def turned(
    low_dim: Mapping[str, np.ndarray], actions: np.ndarray, base: tuple[float, float], angle: float
) -> tuple[Measured, np.ndarray]:
    """Turn an episode about the upright axis through the robot's base, radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    found = known(low_dim)
    for key in PLACES:
        if key in found:
            found[key][:, :2] = (found[key][:, :2] - base) @ turn.T + base
    if "object" in found:
        x, y, z, w = found["object"][:, 3:7].T.copy()
        c, s = np.cos(angle / 2), np.sin(angle / 2)
        found["object"][:, 3:7] = np.stack(
            [c * x - s * y, c * y + s * x, c * z + s * w, c * w - s * z], axis=1
        )
    first = np.stack([found[f"robot0_joint_pos_{wave}"][:, 0] for wave in ("cos", "sin")], axis=1)
    for wave, rows in zip(("cos", "sin"), turn @ first.T, strict=True):
        found[f"robot0_joint_pos_{wave}"][:, 0] = rows
    played = actions.copy()
    for begin in (0, 3):  # translation, rotation
        played[:, begin : begin + 2] = actions[:, begin : begin + 2] @ turn.T
    return found, played


def mirrored(
    low_dim: Mapping[str, np.ndarray], actions: np.ndarray, y: float
) -> tuple[Measured, np.ndarray]:
    """Show an episode in the upright mirror that holds the robot's base, at `y`."""
    found = known(low_dim)
    for key in PLACES:
        if key in found:
            found[key][:, 1] = 2 * y - found[key][:, 1]
    if "object" in found:
        found["object"][:, [3, 5]] *= -1  # a mirror turns rotations about x and z round
    cos, sin = found["robot0_joint_pos_cos"], found["robot0_joint_pos_sin"]
    angles = np.arctan2(sin, cos)
    angles[:, MIRRORED_JOINTS] *= -1
    angles[:, 6] += LAST_JOINT
    found["robot0_joint_pos_cos"] = np.cos(angles).astype(cos.dtype)
    found["robot0_joint_pos_sin"] = np.sin(angles).astype(sin.dtype)
    found["robot0_joint_vel"][:, MIRRORED_JOINTS] *= -1
    for key in ("robot0_gripper_qpos", "robot0_gripper_qvel"):  # left and right finger
        found[key] = -found[key][:, ::-1]
    played = actions.copy()
    played[:, [1, 3, 5]] *= -1
    return found, played


def known(low_dim: Mapping[str, np.ndarray]) -> Measured:
    """Those measurements whose symmetries are known, as fresh arrays; ValueError for no Panda's."""
    missing = [key for key in KEYS if key not in low_dim and key != "object"]
    joints = {low_dim[key].shape[1] for key in KEYS if "joint" in key and key in low_dim}
    if missing or joints != {JOINTS}:
        told = f"no {', '.join(missing)}" if missing else f"joints {sorted(joints)}"
        raise ValueError(
            f"Symmetric copies are made of what a Panda measures, {JOINTS} joints among it; got an "
            f"episode with {told}. Learn without copies: --world-model.motion.copies 0."
        )
    return {
        key: low_dim[key][:, : POSE if key == "object" else None].copy()
        for key in KEYS
        if key in low_dim
    }
