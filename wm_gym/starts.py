"""Starts: the paired initial conditions (simulator state and first picture) of a task, by split."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wm_gym.files import replacing
from wm_gym.tasks import get_task

SPLITS = ("train", "validation", "test")
FILE_NAME = "starts.npz"
ROBOT = "robot0_"  # how the keys of what a robot measures of itself begin
LOW_DIM = "low_dim/"  # before the key of a measurement in files


@dataclass(frozen=True, slots=True, eq=False)
class StartPool:
    """The starts of one split; index s means the same start in the real and the imagined world."""

    frames: np.ndarray
    """(s, H, W, 3) uint8, the first picture."""
    states: np.ndarray
    """(s, d) float64, the flattened simulator state behind it."""
    task: str
    split: str
    past: np.ndarray | None = None
    """(s, T - 1, H, W, 3) uint8, the pictures before, oldest first, where starts lie in the middle
    of an episode; for the imagined world alone, and `states` may be NaN."""
    low_dim: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the robot measures of itself there, float32 (s, d) each, by robomimic's keys; NaN where
    that is not known. Without it the imagined world reads it from the pictures."""

    def __post_init__(self) -> None:
        """Check shapes and dtypes; raises ValueError."""
        frames, states = self.frames, self.states
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            raise ValueError(
                f"Start frames must be uint8 (s, H, W, 3) with s >= 1, got {frames.dtype} "
                f"{frames.shape}; record them again."
            )
        if states.dtype != np.float64 or states.ndim != 2 or len(states) != len(frames):
            raise ValueError(
                f"Start states must be float64 ({len(frames)}, d), one a frame, got {states.dtype} "
                f"{states.shape}; record them again."
            )
        for key, rows in self.low_dim.items():
            if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != len(frames):
                raise ValueError(
                    f"Start measurements {key!r} must be float32 ({len(frames)}, d), one row a "
                    f"frame, got {rows.dtype} {rows.shape}; record them again."
                )
        past = self.past
        if past is None:
            return
        wanted = (len(frames), *past.shape[1:2], *frames.shape[1:])
        if past.dtype != np.uint8 or past.shape != wanted:
            raise ValueError(f"Start pasts must be uint8 {wanted}, got {past.dtype} {past.shape}.")

    def __len__(self) -> int:
        """Count the starts."""
        return len(self.frames)

    def fingerprint(self) -> str:
        """Tell pools apart by what their starts are, for what refers to these by their numbers."""
        found = hashlib.sha256()
        for array in (self.states, self.frames, self.past):
            found.update(b"" if array is None else np.ascontiguousarray(array))
        for key, rows in sorted(self.low_dim.items()):
            found.update(key.encode() + np.ascontiguousarray(rows).tobytes())
        return found.hexdigest()[:16]


def bundle(task: str) -> Path:
    """Return the folder of what comes with the package for a task; ValueError if unknown."""
    return Path(__file__).parent / "assets" / get_task(task).name.lower()


def load_starts(task: str, split: str, folder: Path | str | None = None) -> StartPool:
    """Read one split of a task's starts, from the bundled file or from `folder`/starts.npz.

    Raises ValueError for an unknown task or split and for a damaged or foreign file,
    FileNotFoundError where there is none.
    """
    bundled = bundle(task)
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; expected one of {', '.join(SPLITS)}.")
    path = (bundled if folder is None else Path(folder).expanduser()) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"No starts for task {task!r} at {path}; pass the folder that holds {FILE_NAME} as "
            "`starts`, or write one with wm_gym.save_starts."
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            prefix = f"{split}_{LOW_DIM}"
            low_dim = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
            parts = arrays[f"{split}_frames"], arrays[f"{split}_states"]
            return StartPool(*parts, task, split, low_dim=low_dim)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} does not hold the {split} starts of task {task!r} ({error}); expected arrays "
            f"{split}_frames and {split}_states as wm_gym.save_starts writes them."
        ) from error


def starts_for(task: str, split: str, given: StartPool | Path | str | None) -> StartPool:
    """Return a pool as it is given, or what `load_starts` reads.

    Raises ValueError where the pool is of another task or split, and what `load_starts` does.
    """
    if not isinstance(given, StartPool):
        return load_starts(task, split, given)
    if (given.task, given.split) != (task, split):
        raise ValueError(
            f"Expected starts of task {task!r} and split {split!r}, got a pool of {given.task!r} "
            f"and {given.split!r}; pass task={given.task!r} and split={given.split!r}, or another "
            "pool."
        )
    return given


def save_starts(pools: Sequence[StartPool], folder: Path | str) -> Path:
    """Write the splits of one task to `folder`/starts.npz, all or nothing, and return the path.

    Raises ValueError where two pools share a task-and-split, belong to different tasks, or hold
    the same simulator state: the splits are disjoint. So it does for starts in the middle of an
    episode, which the file has no place for: draw these anew, with `with_moments`.
    """
    if len({pool.task for pool in pools}) != 1 or len({p.split for p in pools}) != len(pools):
        names = [f"{pool.task}/{pool.split}" for pool in pools]
        raise ValueError(f"Expected distinct splits of one task, got {names}; save tasks apart.")
    states = np.concatenate([pool.states for pool in pools])
    if np.isnan(states).any() or any(pool.past is not None for pool in pools):
        raise ValueError(
            "Expected starts with simulator states and without a past, got moments of recorded "
            "episodes; save the pool from before with_moments, and the moments by save_moments."
        )
    if len(np.unique(states, axis=0)) != len(states):
        raise ValueError(
            f"{len(states) - len(np.unique(states, axis=0))} of {len(states)} starts repeat "
            "another one; draw every start of every split anew."
        )
    arrays = {f"{pool.split}_frames": pool.frames for pool in pools}
    arrays |= {f"{pool.split}_states": pool.states for pool in pools}
    for pool in pools:
        arrays |= {f"{pool.split}_{LOW_DIM}{key}": rows for key, rows in pool.low_dim.items()}
    path = Path(folder).expanduser() / FILE_NAME
    with replacing(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path
