"""Checks at the door of a world: what came is what was expected, or an error says the mend."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

if TYPE_CHECKING:
    from wm_gym.data.episode import Episode

DTYPES = ("float32", "bfloat16")  # that policies and world models may compute in
OPTIONS = ("reset_mask", "start", "frames", "actions")


def to_numpy(value: Any) -> np.ndarray:
    """Bring a tensor or anything array-like to the host, without a copy where possible.

    bfloat16 becomes float32: numpy has no such numbers.
    """
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.float() if value.dtype == torch.bfloat16 else value
    return value.detach().cpu().numpy()


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Return `value`; raises ValueError where it is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    return value


def check_count(name: str, value: Any, most: int | None = None) -> int:
    """Return a positive integer; raises ValueError otherwise, or where it is over `most`."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or (most is not None and count > most):
        limit = "at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} must be an integer {limit}, got {value!r}.")
    return count


def check_not_negative(name: str, value: float) -> None:
    """Raise ValueError for a number below 0."""
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}.")


def check_workers(workers: int | None) -> None:
    """Raise ValueError where so many simulator processes cannot be; None is one a core."""
    if workers is not None:
        check_count("workers", workers)


def check_share(name: str, value: Any) -> float:
    """Return a number between 0 and 1, neither of them; raises ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}.")
    return float(value)


def check_limit(name: str, value: Any) -> float:
    """Return a number above 0, or infinity for None; raises ValueError otherwise."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, Real) or not value > 0:
        raise ValueError(f"{name} must be a number above 0, or None, got {value!r}.")
    return float(value)


def check_unset(name: str, value: Any, default: Any, instead: str) -> None:
    """Raise ValueError where an option is set that follows another one."""
    if value != default:
        raise ValueError(
            f"{name} follows {instead}: set that, and leave {name} out; got {value!r}."
        )


def check_pair(world_model: Any, success: Any) -> None:
    """Raise ValueError where one of two models is named that were trained together, alone."""
    if (world_model is None) != (success is None):
        given, other = ("world_model", "success") if success is None else ("success", "world_model")
        raise ValueError(
            f"A success classifier reads what the world model says that it was trained with: got "
            f"{given} without {other}. Name both, or neither for those that are bundled."
        )


def check_size(episodes: Sequence[Episode], size: int) -> None:
    """Raise ValueError where pictures of episodes are not as large as a world model draws them."""
    found = {e.frames.shape[1:3] for e in episodes}
    if found != {(size, size)}:
        raise ValueError(
            f"The world model draws pictures of {size} x {size}; the episodes have "
            f"{', '.join(f'{h} x {w}' for h, w in sorted(found)) or 'none'}. Pass episodes of its "
            "size, or take a world model of theirs."
        )


def check_block(actions: torch.Tensor, most: int) -> None:
    """Raise ValueError where a world model is given a block of less than 1 or over `most` actions.

    actions: (n, k, a).
    """
    if not 1 <= actions.shape[1] <= most:
        raise ValueError(
            f"A block has 1 to {most} actions, got {actions.shape[1]}; split longer ones."
        )


def parse_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Read "NextStep", "next_step", "NEXT_STEP" or the member itself, and so on for all three."""
    if isinstance(mode, AutoresetMode):
        return mode
    for member in AutoresetMode:
        if str(mode).replace("_", "").lower() == member.value.lower():
            return member
    names = ", ".join(repr(member.value) for member in AutoresetMode)
    raise ValueError(f"autoreset_mode must be one of {names}, got {mode!r}.")


def check_actions(
    actions: Any, shape: tuple[int, ...], strict: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return actions clipped to [-1, 1] (float32) and where they were outside (bool), both fresh.

    Raises ValueError for another shape, for values that are no finite numbers and, where
    `strict`, for values outside the box.
    """
    actions = to_numpy(actions)
    if actions.shape != shape:
        n, *chunk, size = shape
        what = f"a chunk of {chunk[0]} actions" if chunk else "one action"
        raise ValueError(
            f"Actions must have shape {shape}, got {actions.shape}: pass {what} of {size} values "
            "for each environment."
        )
    try:
        actions = actions.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Actions must be numbers, got dtype {actions.dtype}.") from error
    if not np.isfinite(actions).all():
        rows = np.unique(np.argwhere(~np.isfinite(actions))[:, 0]).tolist()
        raise ValueError(
            f"Actions must be finite numbers in [-1, 1], got NaN or infinity in rows {rows}; look "
            "for an overflow in the policy."
        )
    outside = np.abs(actions) > 1
    if strict and outside.any():
        raise ValueError(
            f"Actions must lie in [-1, 1], got {outside.sum()} values outside (largest magnitude "
            f"{np.abs(actions).max():.4g}); clip them, or leave strict_actions off."
        )
    return actions.clip(-1, 1), outside


def check_options(options: dict[str, Any] | None) -> dict[str, Any]:
    """Return a shallow copy of reset options; raises ValueError for unknown or clashing ones."""
    if not isinstance(options, dict | None):
        raise ValueError(f"Reset options must be a dict, got {options!r}.")
    options = {k: v for k, v in (options or {}).items() if v is not None}
    if unknown := [key for key in options if key not in OPTIONS]:
        raise ValueError(f"Unknown reset options {unknown}; known ones: {', '.join(OPTIONS)}.")
    if "start" in options and "frames" in options:
        raise ValueError("Expected `start` or `frames` in the reset options, got both; drop one.")
    if "actions" in options and "frames" not in options:
        raise ValueError("The reset option `actions` goes with `frames`; pass both or neither.")
    return options


def check_seeds(seed: Any, n: int) -> list[int | None]:
    """Return one seed, or None, a row: s gives s, s + 1, ...; a sequence is taken as it is."""
    try:
        if seed is None:
            return [None] * n
        if np.ndim(seed) == 0:
            seeds = [operator.index(seed) + row for row in range(n)]
        else:
            seeds = [None if s is None else operator.index(s) for s in seed]
    except TypeError as error:
        raise ValueError(f"seed must be an integer, None, or {n} of them, got {seed!r}.") from error
    if len(seeds) != n or any(s is not None and not 0 <= s < 2**63 for s in seeds):
        raise ValueError(
            f"Expected {n} seeds, one an environment, each None or from 0 to 2**63 - 1; got {seed}."
        )
    return seeds


def check_mask(mask: Any, n: int) -> np.ndarray:
    """Return the rows to reset as bool (n,): all of them where `mask` is None."""
    if mask is None:
        return np.ones(n, bool)
    mask = to_numpy(mask)
    if mask.dtype != np.bool_ or mask.shape != (n,) or not mask.any():
        raise ValueError(
            f"options['reset_mask'] must be bool of shape ({n},) with at least one True, got "
            f"{mask.dtype} {mask.shape} with {np.count_nonzero(mask)} set."
        )
    return mask


def check_rows(rows: Any, n: int) -> np.ndarray:
    """Return the numbers of rows, int64 (m,), fresh: all n of them where `rows` is None."""
    if rows is None:
        return np.arange(n)
    rows = to_numpy(rows)
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise ValueError(
            f"rows must be a list of at least one integer, got {rows.dtype} {rows.shape}; "
            "np.flatnonzero(mask) makes one of a mask."
        )
    if wrong := rows[(rows < 0) | (rows >= n)].tolist():
        raise ValueError(f"rows must lie in 0..{n - 1}, got {wrong}.")
    return rows.astype(np.int64)


def check_starts(starts: Any, rows: np.ndarray, n: int, size: int) -> np.ndarray | None:
    """Return the starts asked for `rows`, int64 (m,), from one entry an environment, or None."""
    if starts is None:
        return None
    starts = to_numpy(starts)
    if starts.shape != (n,) or starts.dtype.kind not in "iu":
        raise ValueError(
            f"options['start'] must hold {n} integers, one an environment (those of rows outside "
            f"reset_mask are not read), got {starts.dtype} {starts.shape}."
        )
    starts = starts[rows].astype(np.int64)
    if wrong := starts[(starts < 0) | (starts >= size)].tolist():
        raise ValueError(f"Starts must lie in 0..{size - 1} (this split's pool), got {wrong}.")
    return starts


def check_frames(
    frames: Any, actions: Any, n: int, image_shape: tuple[int, ...], action_dim: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return pictures to begin from, uint8 (n, T, H, W, 3), and actions (n, T - 1, 7) or None."""
    frames = to_numpy(frames)
    if (
        frames.dtype != np.uint8
        or frames.ndim != 5
        or frames.shape != (n, frames.shape[1] or 1, *image_shape)
    ):
        expected = ", ".join(map(str, (n, "T", *image_shape)))
        raise ValueError(
            f"options['frames'] must be uint8 ({expected}), got {frames.dtype} {frames.shape}; "
            "resize pictures to the environment's, and give every environment as many."
        )
    if actions is not None:
        shape = (n, frames.shape[1] - 1, action_dim)
        actions = check_actions(actions, shape, strict=False)[0]
    return frames, actions
