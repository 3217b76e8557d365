"""One recorded episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One recorded episode of t control steps; raises ValueError when its arrays disagree."""

    frames: np.ndarray  # (t + 1, H, W, 3) uint8, before the first action to after the last;
    # (t + 1, 0, 0, 3) where nobody filmed
    actions: np.ndarray  # (t, 7) float32, as played
    success: np.ndarray  # (t,) bool, the simulator's predicate after each action
    states: np.ndarray | None = None  # (t + 1, d) float64 simulator states
    source: str = "demonstrations"
    """Who acted: "demonstrations", "play", "rollouts", "validation", ..."""
    start: int = -1
    """Index into the pool of starts; -1 when it is not from one."""
    seed: int = -1
    model_file: str | None = None
    """The simulator's model (MJCF XML), for exact replay."""
    low_dim: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Observations that are no pictures, by robomimic's keys, (t + 1, d) float32 each."""
    robot: str = ""
    """Who moved, by robosuite's name ("Panda"; "Panda, Sawyer" for two); "" where nobody says."""

    def __post_init__(self) -> None:
        """Check dtypes and lengths."""
        t = len(self.actions)
        if t == 0:
            raise ValueError("An episode needs at least one action; got none.")
        wanted = {
            "frames": (self.frames, np.uint8, (t + 1, *self.frames.shape[1:3], 3)),
            "actions": (self.actions, np.float32, (t, *self.actions.shape[1:2])),
            "success": (self.success, np.bool_, (t,)),
        }
        if self.states is not None:
            wanted["states"] = (self.states, np.float64, (t + 1, *self.states.shape[1:2]))
        for key, rows in self.low_dim.items():
            wanted[f"low_dim[{key!r}]"] = (rows, np.float32, (t + 1, *rows.shape[1:2]))
        for name, (array, dtype, shape) in wanted.items():
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"Episode.{name} must be {np.dtype(dtype)} {shape} for {t} actions; "
                    f"got {array.dtype} {array.shape}."
                )

    def __len__(self) -> int:
        """Control steps."""
        return len(self.actions)

    @property
    def succeeded(self) -> bool:
        """Whether the task was ever done."""
        return bool(self.success.any())

    @property
    def first_success(self) -> int | None:
        """Index of the first action after which the task was done, or None."""
        return int(self.success.argmax()) if self.succeeded else None
