"""Measurements of an episode side by side: observations as recorded, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from wm_gym.data.episode import Episode

VELOCITY = "object_velocity"
VELOCITY_SIZE = 6  # along x, y and z in m/s, about them in rad/s, all of the world
PANDA = 9  # its joints and fingers
# MuJoCo's state of a Panda and a free body: the time; where the Panda is, then the body, as x, y, z
# and a quaternion w, x, y, z; how fast the Panda is, then the body.
POSE_AT = 1 + PANDA
STATE_SIZE = POSE_AT + 7 + PANDA + 6
ALIKE = 0.01  # metres: closer than that, an object is where a state has its body


def measured(episode: Episode, names: Sequence[str]) -> np.ndarray:
    """`measurements` of an episode, float32 (t + 1, p); ValueError also where one is no number."""
    whose = f"An episode of {episode.source!r}"
    low_dim = observed(episode)
    if VELOCITY not in low_dim and VELOCITY in {key_and_columns(name)[0] for name in names}:
        states = episode.states
        raise ValueError(
            f"{whose} holds no {VELOCITY}, and its states do not tell: expected {STATE_SIZE} "
            "numbers, MuJoCo's of a Panda and one free body whose place is that in `object`; got "
            f"{'none' if states is None else f'{states.shape[1]} numbers'}. Record either, or take "
            "a world model that does without: --preset nano."
        )
    found = measurements(low_dim, names, len(episode) + 1, whose)
    if not np.isfinite(found).all():
        step = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise ValueError(
            f"{whose}, {len(episode)} steps long, has a measurement that is no finite number at "
            f"step {step}, among {', '.join(names)}. Record it again, or leave it out."
        )
    return found


def measurements(
    low_dim: Mapping[str, np.ndarray], names: Sequence[str], rows: int, whose: str
) -> np.ndarray:
    """The observations `names` side by side, float32 (rows, p); ValueError says what is missing.

    A name is a key of `low_dim`, or some numbers of one: "object[:3]" for its first three. In front
    of such a name stands, where there is one, what of DERIVED is made of it: "faces:object[3:7]".
    """
    keyed = [_parts(name) for name in names]
    missing = dict.fromkeys(key for _, key, _ in keyed if key not in low_dim)
    if missing:
        raise ValueError(
            f"{whose} holds no {', '.join(missing)}; it has {sorted(low_dim) or 'pictures alone'}. "
            "Record it with these observations, or take a world model that does without: --preset "
            "nano needs no object, small no measurements at all."
        )
    columns = [DERIVED[made](low_dim[key][:, _columns(part)]) for made, key, part in keyed]
    return np.concatenate([np.zeros((rows, 0), np.float32), *columns], axis=1)


def observed(episode: Episode) -> Mapping[str, np.ndarray]:
    """`Episode.low_dim`, with `object_velocity` where the simulator's states alone tell it.

    They do of a Panda and one object, as in robosuite's Lift: STATE_SIZE numbers, among which
    stands where the object is.
    """
    low_dim, states = episode.low_dim, episode.states
    if VELOCITY in low_dim or states is None or states.shape[1] != STATE_SIZE:
        return low_dim
    place = states[:, POSE_AT : POSE_AT + 3]
    if "object" in low_dim and not np.abs(place - low_dim["object"][:, :3]).max() < ALIKE:
        return low_dim
    return {**low_dim, VELOCITY: velocity(states)}


def velocity(states: np.ndarray) -> np.ndarray:
    """How an object moves and turns in the axes of the world: float32 (t, VELOCITY_SIZE).

    states: float64 (t, STATE_SIZE). MuJoCo tells how a body turns in its own axes; of a cube, which
    looks alike in 24 poses, these would be 24 answers.
    """
    w, x, y, z = states[:, POSE_AT + 3 : POSE_AT + 7].T
    along, spin = np.split(states[:, -6:], 2, axis=1)
    axis = np.stack([x, y, z], axis=1)
    twice = 2 * np.cross(axis, spin)
    turned = spin + w[:, None] * twice + np.cross(axis, twice)  # s + 2 w (q x s) + 2 q x (q x s)
    return np.concatenate([along, turned], axis=1).astype(np.float32)


def faces(quaternions: np.ndarray) -> np.ndarray:
    """How a cube is turned, of quaternions x, y, z, w (t, 4): float32 (t, 9).

    The same numbers for the 24 poses in which a cube looks the same, and others for all others:
    those moments of the directions a, b, c of its edges from which all of the fourth order follow,
    such as a_x^3 a_y + b_x^3 b_y + c_x^3 c_y.
    """
    x, y, z, w = quaternions.astype(np.float64).T
    edges = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )  # (3 coordinates, 3 edges, t)
    alone = [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    powers = np.array([*alone, *_mixed(0, 1), *_mixed(0, 2), *_mixed(1, 2)])
    moments = (edges[None] ** powers[:, :, None, None]).prod(1).sum(1)  # (9, t)
    return moments.T.astype(np.float32)


DERIVED: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"": lambda columns: columns, "faces": faces}
)
"""What may be made of some recorded numbers (t, q), (t, p)."""


def key_and_columns(name: str) -> tuple[str, slice]:
    """Where the numbers that a name asks for are recorded: "faces:object[3:7]" in object, 3:7."""
    _, key, part = _parts(name)
    return key, _columns(part)


def _parts(name: str) -> tuple[str, str, str]:
    """What is made of it, key, and slice of a name: "faces", "object" and "3:7]"."""
    key, _, part = name.partition("[")
    made, _, key = key.rpartition(":")
    if made not in DERIVED:
        raise ValueError(
            f"Unknown {made!r} in {name!r}; expected {', '.join(filter(None, DERIVED))} or "
            "nothing before the key."
        )
    return made, key, part


def _mixed(i: int, j: int) -> list[list[int]]:
    """Exponents of i^3 j and of i j^3."""
    eye = np.eye(3, dtype=int)
    return [(3 * eye[i] + eye[j]).tolist(), (eye[i] + 3 * eye[j]).tolist()]


def _columns(part: str) -> slice:
    edges = part.rstrip("]").split(":") if part else ("", "")
    if len(edges) != 2 or not all(edge.isdigit() for edge in edges if edge):
        raise ValueError(
            f'Name a measurement by its key, or by its key and a slice such as "object[:3]"; got '
            f"[{part} after the key."
        )
    return slice(*(int(edge) if edge else None for edge in edges))
