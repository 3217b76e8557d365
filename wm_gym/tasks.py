"""What a task is: one frozen record per task, shared by the real and the imagined world."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Camera:
    """A fixed camera: MuJoCo's name for it, its place, what it looks at, its field of view."""

    name: str
    position: tuple[float, float, float]
    """Metres, world frame."""
    target: tuple[float, float, float]
    """The point at the centre of the picture; metres, world frame."""
    fovy: float
    """Vertical field of view; degrees."""


@dataclass(frozen=True, slots=True)
class Task:
    """Everything about a task that does not depend on which world plays it."""

    name: str
    instruction: str
    """What a language-conditioned policy is told."""
    simulator: str
    """The robosuite environment behind `backend="real"`."""
    horizon: int
    """Control steps (20 Hz) until an episode is truncated."""
    camera: Camera
    image_size: int = 64
    """Height and width of a picture; pixels."""
    action_dim: int = 7
    """OSC_POSE deltas (6) and the gripper (1), all in [-1, 1]."""
    placement: float = 0.0
    """Objects start within this distance of the table's centre on either axis; metres."""
    object_at: int = 10
    """Where in a simulator state the object's x stands, y after it: behind the time, a Panda's 7
    joints and its 2 fingers."""


TASKS = {
    "Lift": Task(
        name="Lift",
        instruction="lift the red cube",
        simulator="Lift",
        horizon=64,
        # robosuite's own agentview shows the cube 4 pixels wide at 64 px, less than the error that
        # makes a grasp fail. The same view point through a longer lens makes it 10.
        camera=Camera("agentview", position=(0.5, 0.0, 1.35), target=(-0.05, 0.0, 0.9), fovy=31.0),
        placement=0.10,
    ),
}


def get_task(name: str) -> Task:
    """Return the task called `name`; raises ValueError with the nearest known name otherwise."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(str(name), TASKS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown task {name!r}; known tasks: {', '.join(sorted(TASKS))}.{hint}")
