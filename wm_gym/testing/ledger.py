"""What the contract says that every row is, followed from call to call."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from wm_gym.checks import to_numpy
from wm_gym.testing.calls import leaves, require

INFO = {
    "success": "b",
    "success_probability": "f",
    "uncertainty": "f",
    "elapsed_steps": "i",
    "start": "i",
    "active": "b",
    "clipped": "i",
    "played": "i",
}
"""What info holds, and of which kind: numpy's `dtype.kind`."""
LASTING = ("success", "success_probability", "uncertainty", "elapsed_steps", "start")


class Ledger:
    """Follows a world made with `horizon=2 * chunk + 1` from its first reset on.

    Its methods take what the calls returned, as `flat` names it, and raise AssertionError.
    """

    def __init__(self, env: VectorEnv, mode: AutoresetMode, chunk: int) -> None:
        self.mode, self.chunk, self.horizon = mode, chunk, 2 * chunk + 1
        self.unsure = getattr(env.unwrapped, "max_uncertainty", math.inf)
        self.ends = not getattr(env.unwrapped, "ignore_terminations", False)
        self.over = np.zeros(env.num_envs, bool)  # rows that wait for their reset
        self.last: dict[str, np.ndarray] = {}

    def reset(self, mask: np.ndarray, told: dict[str, np.ndarray]) -> None:
        """Enter a reset of the rows in `mask`."""
        self.over = self.over & ~mask
        now = before_autoreset(told)
        require(now["active"] == ~self.over, "After a reset `active` is False in rows that wait.")
        self._begun(mask, now)
        for name, before in self.last.items():
            same = now[name][~mask] == before[~mask]
            require(same, f"A masked reset leaves `{name}` of the other rows alone.")
        self._keep(now)

    def step(self, told: dict[str, np.ndarray]) -> None:
        """Enter a step."""
        active, ended = ~self.over, told["terminated"] | told["truncated"]
        self._check_final(ended, told)
        now = before_autoreset(told)
        played = now["played"]
        require(now["active"] == active, "`active` is False in rows that wait for a reset.")
        require(
            ((played == 0) & (told["reward"] == 0) & ~ended)[~active],
            "A row that waits for its reset plays nothing, pays 0 and reports both flags False.",
        )
        require(
            ((played >= 1) & (played <= self.chunk))[active],
            f"A live row plays 1 to {self.chunk} control steps, got {played}.",
        )
        self._check_episode(active, now, told)
        if "frames" in now:
            self._check_frames(active, now)
        self._autoreset(ended, {key.removeprefix("info."): v for key, v in told.items()})

    def _check_episode(self, active: np.ndarray, now: dict, told: dict) -> None:
        elapsed, before = now["elapsed_steps"], self.last["elapsed_steps"]
        require(
            ((elapsed == before + now["played"]) & (elapsed <= self.horizon))[active],
            "`elapsed_steps` counts the control steps of the episode, up to the horizon.",
        )
        require((now["success"] >= self.last["success"])[active], "A success is not taken back.")
        first = active & now["success"] & ~self.last["success"]
        require(told["reward"] == first, "The reward is 1 on the first success, and else 0.")
        require(told["terminated"] == (first & self.ends), "`terminated` is the first success.")
        out = (elapsed >= self.horizon) | (now["uncertainty"] > self.unsure)
        require(
            told["truncated"] == (active & ~told["terminated"] & out),
            "`truncated` is the horizon, in control steps, or an `uncertainty` of more than "
            "`max_uncertainty`, without a success.",
        )

    def _check_frames(self, active: np.ndarray, now: dict) -> None:
        shape = (len(active), self.chunk, *now["image"].shape[1:])
        frames, mask = now["frames"], np.arange(self.chunk) < now["played"][:, None]
        require(frames.shape == shape, f"`frames` has shape {shape}, got {frames.shape}.")
        require(np.array_equal(now["frames_mask"], mask), "`frames_mask` marks what was played.")
        require(frames[active, -1] == now["image"][active], "The last of `frames` is the picture.")

    def _check_final(self, ended: np.ndarray, told: dict) -> None:
        if self.mode is not AutoresetMode.SAME_STEP or not ended.any():
            masks = told.get("info._final_obs", False), told.get("info._final_info", False)
            require(not np.any(masks), "`final_obs` is for SameStep, and for rows that ended.")
            return
        for name in ("_final_obs", "_final_info"):
            same = np.array_equal(told.get(f"info.{name}"), ended)
            require(same, f"The mask `{name}` is True in the rows that ended.")
        for name, value in told.items():
            final = _final(name)
            if final:
                same = final in told and told[final].shape == value.shape
                require(same, f"`{final}` has a row for every environment, as `{name}` has.")

    def _autoreset(self, ended: np.ndarray, after: dict[str, Any]) -> None:
        after["image"] = after["obs.image"]
        if self.mode is AutoresetMode.DISABLED:
            for name, before in self.last.items():
                same = after[name][self.over] == before[self.over]
                require(same, f"A frozen row keeps its `{name}`.")
            self.over = self.over | ended
        elif self.mode is AutoresetMode.NEXT_STEP:
            self._begun(self.over, after)
            self.over = ended
        else:
            self._begun(ended, after)
        self._keep(after)

    def _begun(self, rows: np.ndarray, now: dict[str, np.ndarray]) -> None:
        fresh = (now["elapsed_steps"] == 0) & ~now["success"] & (now["played"] == 0)
        require(fresh[rows], "A row that was reset has played nothing and not succeeded.")

    def _keep(self, now: dict[str, np.ndarray]) -> None:
        self.last = {name: now[name] for name in ("image", *LASTING)}


def before_autoreset(told: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return `image` and what info says, in SameStep as they were before rows began anew."""
    ended = told["terminated"] | told["truncated"] if "reward" in told else np.zeros(1, bool)
    found = {}
    for name, value in told.items():
        final = _final(name)
        if final:
            rows = ended.reshape(-1, *[1] * (value.ndim - 1))
            found[name.rpartition(".")[2]] = np.where(rows, told.get(final, value), value)
    return found


def _final(name: str) -> str | None:
    """Where SameStep keeps the last of an array of obs or info."""
    part, _, rest = name.partition(".")
    own = rest and not rest.startswith(("_", "final_"))
    return f"info.final_{part}.{rest}" if own else None


def check_arrays(env: VectorEnv, result: tuple) -> None:
    """Check that all arrays are of one kind, with numbers, one row an environment."""
    n, found = env.num_envs, leaves(result)
    kind = type(found["obs.image"])
    for name, value in found.items():
        require(
            kind in (np.ndarray, torch.Tensor) and type(value) is kind,
            f"All is arrays or all is tensors; `{name}` is a {type(value).__name__}, the picture "
            f"a {kind.__name__}.",
        )
        array = to_numpy(value)
        require(
            array.dtype.kind in "biuf" and array.shape[:1] == (n,),
            f"`{name}` holds numbers, one row an environment, got {array.dtype} {array.shape}.",
        )
    wanted = {f"info.{name}": letter for name, letter in INFO.items()}
    if "reward" in found:
        wanted |= {"reward": "f", "terminated": "b", "truncated": "b"}
    for name, letter in wanted.items():
        require(name in found, f"There is no `{name}`.")
        array = to_numpy(found[name])
        require(
            array.shape == (n,) and array.dtype.kind == letter,
            f"`{name}` has shape ({n},) and dtype kind {letter!r}, got {array.dtype} "
            f"{array.shape}.",
        )
    image, shape = to_numpy(found["obs.image"]), env.observation_space["image"].shape
    require(
        image.dtype == np.uint8 and image.shape == shape,
        f"Pictures are uint8 {shape}, got {image.dtype} {image.shape}.",
    )
