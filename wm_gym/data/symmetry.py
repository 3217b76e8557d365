"""What a robot would have measured had all happened in a mirror.

A Panda is alike on both sides, and neither a table nor a cube knows where left is. So each recorded
episode tells of one that was not recorded; only its pictures are missing. What stands fixed on a
table (pegs, bins) breaks the symmetry.

A Panda turns about its first joint, too, but copies that are turned mislead: OSC draws the arm to
the posture that an episode begins in, which would have to be turned with it, and at play it is not.
In robosuite a hand turned by 0.1 is 2 to 3 mm off after 10 steps. A mirror leaves that posture
nearly where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from wm_gym.data.measurements import VELOCITY, VELOCITY_SIZE, key_and_columns

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
    VELOCITY,
)
POSE = 7  # numbers of `object` that are its place and quaternion; what follows depends on the task
Measured = dict[str, np.ndarray]


def check_mirrored(names: Sequence[str]) -> None:
    """Raise ValueError where a mirror does not show `names`, what `measurements` is asked for."""
    for name in names:
        key, columns = key_and_columns(name)
        if key not in KEYS or (key == "object" and (columns.stop or POSE + 1) > POSE):
            raise ValueError(
                f"Mirrored episodes do not hold {name!r}, only {', '.join(KEYS)}, and of the "
                f"object [:{POSE}]. Name others in the world model's `body`, or learn without "
                "them: --world-model.motion.no-mirrored."
            )


def check_robot(name: str) -> None:
    """Raise ValueError where a robot is known to be another; "": nobody knows."""
    if name not in ("", "Panda"):
        raise ValueError(
            f"Which joints turn round in a mirror is known of a Panda, got episodes of {name}. "
            "Learn without a mirror: --world-model.motion.no-mirrored."
        )


def mirrored(
    low_dim: Mapping[str, np.ndarray], actions: np.ndarray, y: float
) -> tuple[Measured, np.ndarray]:
    """Show an episode of a Panda in the upright mirror that holds its base, at `y`, in metres.

    low_dim: robomimic's keys, (t + 1, d) float32; those of KEYS come back, of `object` its place
    and quaternion. actions (t, 7): of OSC_POSE, and the gripper's. Raises ValueError for an episode
    that is no Panda's.
    """
    found = known(low_dim)
    for key in PLACES:
        if key in found:
            found[key][:, 1] = 2 * y - found[key][:, 1]
    if "object" in found:
        found["object"][:, [3, 5]] *= -1  # a mirror turns rotations about x and z round
    if VELOCITY in found:
        found[VELOCITY][:, [1, 3, 5]] *= -1
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
    missing = [key for key in KEYS if key not in low_dim and key.startswith("robot0_")]
    joints = {low_dim[key].shape[1] for key in KEYS if "joint" in key and key in low_dim}
    if missing or joints != {JOINTS}:
        told = f"no {', '.join(missing)}" if missing else f"joints {sorted(joints)}"
        raise ValueError(
            f"What a Panda measures can be mirrored, {JOINTS} joints among it; got an episode with "
            f"{told}. Learn without a mirror: --world-model.motion.no-mirrored."
        )
    found = {key: low_dim[key].copy() for key in KEYS if key in low_dim}
    if "object" in found:
        found["object"] = found["object"][:, :POSE]
    if VELOCITY in found and found[VELOCITY].shape[1] != VELOCITY_SIZE:
        del found[VELOCITY]  # of how many objects, or of what, nobody knows
    return found
