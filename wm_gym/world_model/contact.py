"""Where a Panda's fingertips are, and how far from a cube: what decides whether they meet it.

A hand that leans by 12 degrees, as half of recorded play does, has one fingertip 8 mm lower than
the other when it is open; a cube that is turned by 45 degrees is 8 mm wider. Networks that are told
joints and moments do not work that out from a few hundred episodes, and grasps are decided by less.
"""

from __future__ import annotations

import torch
from torch import Tensor

# How far each of a Panda's seven frames is rolled about x from the one before, in quarter turns
# (modified Denavit-Hartenberg parameters, Franka Control Interface documentation).
ROLLS = (0, -1, 1, 1, -1, 1, 1)


def finger_axis(cos: Tensor, sin: Tensor) -> Tensor:
    """Direction in which a Panda's fingers open, in the axes of its base: unit vectors (..., 3).

    cos, sin: (..., 7) of its joints' angles, up to a scale: what a network says is none exactly.
    The hand is mounted an eighth of a turn before the last frame.
    """
    size = torch.hypot(cos, sin).clamp_min(1e-6)
    c, s = (cos / size).unbind(-1), (sin / size).unbind(-1)
    x = y = torch.full_like(c[0], 0.5**0.5)
    z = torch.zeros_like(x)
    for joint in reversed(range(len(ROLLS))):
        x, y = c[joint] * x - s[joint] * y, s[joint] * x + c[joint] * y
        if ROLLS[joint]:
            y, z = -ROLLS[joint] * z, ROLLS[joint] * y
    return torch.stack([x, y, z], dim=-1)


def rounded_distance(away: Tensor, faces: Tensor) -> Tensor:
    """How far a place is from a cube's middle if the cube's edges were rounded, (...).

    The 4-norm in the cube's own axes a, b and c, ((a.d)^4 + (b.d)^4 + (c.d)^4)^(1/4): at the middle
    of a face half an edge, at a corner 1.3 times that, where the straight distance is 1.7 times.

    away: d (..., 3), the place from the cube's middle, in metres; faces: (..., 9), how the cube is
    turned, as `wm_gym.data.measurements.faces` says it. Its moments are all that the fourth power
    depends on, and it is linear in them: those of the others follow, as a, b and c are orthonormal.
    """
    x, y, z = away.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    powers = [
        xx * xx + 3 * (yy * zz - xx * yy - xx * zz),
        yy * yy + 3 * (xx * zz - xx * yy - yy * zz),
        zz * zz + 3 * (xx * yy - xx * zz - yy * zz),
        4 * x * y * (xx - 3 * zz),
        4 * x * y * (yy - 3 * zz),
        4 * x * z * (xx - 3 * yy),
        4 * x * z * (zz - 3 * yy),
        4 * y * z * (yy - 3 * xx),
        4 * y * z * (zz - 3 * xx),
    ]
    same = 3 * (xx * yy + xx * zz + yy * zz)
    fourth = same + (torch.stack(powers, dim=-1) * faces).sum(-1)
    return fourth.clamp_min(1e-12).sqrt().sqrt()  # a millimetre at least, for the gradient
