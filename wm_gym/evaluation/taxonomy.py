"""What went wrong where an imagined success is a real failure, by rules on positions.

The rules are asked in the order of `KINDS`; the first that holds names the failure. Imagined
positions are read from imagined pictures, which is good to a few millimetres.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

KINDS = {
    "vanished_or_doubled": "the imagined object shrinks to a fifth of its area, or doubles",
    "moved_by_itself": "the imagined object moves before the imagined gripper comes near",
    "gripper_drift": "when the imagined object is lifted, real and imagined gripper are apart",
    "late": "the real object is in the air at the end, but not high enough",
    "slipped": "the real object was in the air, and fell",
    "never_grasped": "the real object never left the table",
}
AREA = (0.2, 2.0)  # of the first picture's
MOVED, NEAR = 0.015, 0.06  # metres; farther than NEAR no finger can touch a 4 cm cube
APART = 0.015  # metres between two hands: half of a cube, less the fingers' play
LIFTED = 0.01  # metres over where the object began


class Track(NamedTuple):
    """Where things were in t + 1 pictures of an episode, metres."""

    hand: np.ndarray
    """(t + 1, 3)"""
    object: np.ndarray
    """(t + 1, 3)"""


def failure(real: Track, imagined: Track, area: np.ndarray, step: int) -> str:
    """Name what went wrong in an episode that was imagined to succeed at control step `step`.

    `area` (t + 1,): how many pixels of each imagined picture are the object. Returns one of KINDS.
    """
    return next(kind for kind, holds in _rules(real, imagined, area, step).items() if holds)


def red(frames: np.ndarray) -> np.ndarray:
    """Count the red pixels of pictures, uint8 (..., H, W, 3): nothing but Lift's cube is red."""
    level = frames.astype(np.int16)
    return (level[..., 0] - level[..., 1:].max(-1) > 60).sum((-2, -1))


def _rules(real: Track, imagined: Track, area: np.ndarray, step: int) -> dict[str, bool]:
    share = area[step] / max(1, area[0])
    moved = np.linalg.norm(imagined.object - imagined.object[0], axis=1) > MOVED  # (t + 1,)
    near = np.linalg.norm(imagined.hand - imagined.object, axis=1) < NEAR
    up = imagined.object[:, 2] - imagined.object[0, 2] > LIFTED
    lift = int(up[: step + 1].argmax()) if up[: step + 1].any() else step
    height = real.object[:, 2] - real.object[0, 2]
    return {
        "vanished_or_doubled": not AREA[0] <= share <= AREA[1],
        "moved_by_itself": bool((moved & ~np.maximum.accumulate(near))[: step + 1].any()),
        "gripper_drift": bool(np.linalg.norm(real.hand[lift] - imagined.hand[lift]) > APART),
        "late": bool(height[-1] > LIFTED),
        "slipped": bool((height > LIFTED).any()),
        "never_grasped": True,
    }
