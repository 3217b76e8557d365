"""Playing episodes with a policy in any Gymnasium vector environment, for training and for scores.

Only `make_env` asks which world it is. Rows of our environments freeze when their episode ends
(DISABLED autoreset); whatever another environment does with a finished row is ignored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Generator, Tensor
from tqdm.auto import tqdm

import wm_gym  # noqa: F401  registers the environments
from policies.base import Act, Policy
from wm_gym.checks import DTYPES, check_choice
from wm_gym.tasks import get_task

FOREIGN_STARTS = 2**20  # starts of an environment without a pool are seeds: take them from these


@dataclass(frozen=True, slots=True)
class Batch:
    """Trajectories of n rows over T decisions; rows of one group are neighbours."""

    images: Tensor  # (T, n, H, W, 3) uint8, what the policy saw
    sample: Tensor  # (T, n, ...) opaque
    active: Tensor  # (T, n) bool: the row was still playing
    played: Tensor  # (T, n) int64: control steps really played of the chunk
    success: Tensor  # (n,) bool
    finish_step: Tensor  # (n,) int64: control steps until the end of the episode (or success)
    instructions: list[str]

    def token_mask(self, event_steps: Tensor) -> Tensor:
        """Events that were really played, (T, n, events): none after success, end or horizon."""
        before_end = event_steps < self.played.unsqueeze(-1)  # (T, n, events)
        return before_end & self.active.unsqueeze(-1)

    def take(self, rows: Tensor) -> Batch:
        """Keep these rows (LongTensor), cut to the decisions that any of them played."""
        active = self.active[:, rows]
        t = int(active.any(1).sum())
        return Batch(
            images=self.images[:t, rows],
            sample=self.sample[:t, rows],
            active=active[:t],
            played=self.played[:t, rows],
            success=self.success[rows],
            finish_step=self.finish_step[rows],
            instructions=[self.instructions[i] for i in rows.tolist()],
        )


def join(batches: Sequence[Batch]) -> Batch:
    """Put batches side by side; shorter ones are filled up with inactive decisions."""
    t = max(len(batch.active) for batch in batches)

    def joined(name: str) -> Tensor:
        parts = [getattr(batch, name) for batch in batches]
        if parts[0].ndim == 1:  # one entry a row
            return torch.cat(parts)
        return torch.cat([torch.cat([p, p.new_zeros(t - len(p), *p.shape[1:])]) for p in parts], 1)

    names = [field.name for field in fields(Batch) if field.name != "instructions"]
    told = [text for batch in batches for text in batch.instructions]
    return Batch(instructions=told, **{name: joined(name) for name in names})


class Evaluation(NamedTuple):
    """One row a start, in the order asked for."""

    success: np.ndarray  # (s,) bool
    length: np.ndarray  # (s,) int64, control steps


def make_env(task: str, backend: str, num_envs: int, **options: Any) -> gym.vector.VectorEnv:
    """Make rows of either world as trainers want them: finished rows wait for their group."""
    name = f"wm_gym/{get_task(task).name}-v0"
    options = {"chunk": 8, "autoreset_mode": "disabled"} | options
    return gym.make_vec(name, num_envs=num_envs, backend=backend, **options)


def count_starts(env: gym.vector.VectorEnv) -> int:
    """How many different starts `start_groups` may be asked for."""
    return len(env.unwrapped.pool) if has_starts(env) else FOREIGN_STARTS


def has_starts(env: gym.vector.VectorEnv) -> bool:
    """Whether `options={"start": ...}` is understood, as in both of our worlds."""
    return hasattr(env.unwrapped, "pool")


def start_groups(
    env: gym.vector.VectorEnv,
    starts: Sequence[int],
    group_size: int,
    seed: int,
    mask: np.ndarray | None = None,
) -> dict[str, Any]:
    """Reset so that row i begins at starts[i // group_size]; returns the first observation.

    Environments with a pool of starts get start indices, and seeds that differ from row to row, so
    that members of a group share a start but no noise. Any other gets its starts as repeated seeds.
    `mask` (n,) bool leaves the other rows as they are, where there is a pool.
    """
    rows = np.repeat(np.asarray(starts, dtype=np.int64), group_size)  # (n,)
    if len(rows) != env.num_envs:
        raise ValueError(
            f"{len(starts)} groups of {group_size} need {len(rows)} environments, got "
            f"{env.num_envs}; make num_envs a multiple of group_size and give one start a group."
        )
    if not has_starts(env):
        return env.reset(seed=rows.tolist())[0]
    options = {"start": rows} if mask is None else {"start": rows, "reset_mask": mask}
    return env.reset(seed=draw_seeds(len(rows), seed), options=options)[0]


def draw_seeds(count: int, *words: int) -> list[int]:
    """`count` seeds below 2**31 that are a pure function of the words (all >= 0)."""
    return (np.random.SeedSequence(words).generate_state(count) >> 1).tolist()


def collect(
    policy: Policy,
    env: gym.vector.VectorEnv,
    starts: Sequence[int],
    group_size: int,
    *,
    seed: int = 0,
    dtype: str = "float32",
    progress: bool = False,
) -> Batch:
    """Play one episode a row, members of a group from the same start, and keep what was decided.

    `starts` has one entry a group: num_envs / group_size of them. Everything drawn is a pure
    function of `seed`, for environments whose noise is.
    """
    n = env.num_envs
    _check(policy, env)
    if getattr(env.unwrapped, "ignore_terminations", False):
        raise ValueError(
            "Nothing is learnt from what follows a success, and this environment plays it; make it "
            "without ignore_terminations."
        )
    obs = start_groups(env, starts, group_size, seed)
    instructions = instructions_of(env)
    generator = _generator(policy, seed)
    done, won = np.zeros(n, bool), np.zeros(n, bool)
    length = np.zeros(n, np.int64)
    kept: dict[str, list[Tensor]] = defaultdict(list)
    bar = tqdm(total=n, desc="episodes", unit="ep", disable=not progress, leave=False, delay=3)
    while not done.all():
        image, active = torch.as_tensor(obs["image"]), ~done
        with torch.inference_mode(), autocast(policy, dtype):  # not the environment
            decision = act_where(active, policy, obs, instructions, generator=generator)
        obs, reward, terminated, truncated, info = env.step(_for_env(decision.action, obs, env))
        played = _played(info, policy.chunk, active)
        won |= active & (_array(reward) > 0)
        done |= active & (_array(terminated) | _array(truncated) | won)
        length += played
        kept["images"].append(image.clone())
        kept["sample"].append(decision.sample.clone())
        kept["active"].append(torch.from_numpy(active))
        kept["played"].append(torch.from_numpy(played))
        bar.update(int(done.sum()) - bar.n)
    bar.close()
    stacked = {name: torch.stack(items) for name, items in kept.items()}
    return Batch(
        **stacked,
        success=torch.from_numpy(won),
        finish_step=torch.from_numpy(length),
        instructions=instructions,
    )


def act_where(
    active: np.ndarray,
    policy: Policy,
    obs: Mapping[str, Any],
    instructions: Sequence[str],
    **options: Any,
) -> Act:
    """Decide for rows that are `active`, (n,) bool, alone; the others get zeros."""
    rows = np.flatnonzero(active)
    if len(rows) == len(active):
        return policy.act(obs, instructions, **options)
    decided = policy.act(
        {name: values[rows] for name, values in obs.items()},
        [instructions[i] for i in rows],
        **options,
    )

    def spread(part: Tensor) -> Tensor:
        return part.new_zeros(len(active), *part.shape[1:]).index_copy_(
            0, torch.from_numpy(rows).to(part.device), part
        )

    return Act(*map(spread, decided))


def evaluate(
    policy: Policy,
    env: gym.vector.VectorEnv,
    starts: Sequence[int],
    *,
    seed: int = 0,
    dtype: str = "float32",
    progress: bool = True,
) -> Evaluation:
    """Play every start once, greedily, in waves of `num_envs`; success is ever being rewarded.

    Rows that a last, smaller wave leaves over stay frozen and cost nothing; only where there are
    fewer starts than environments do the rows left over play starts again, uncounted.
    """
    n = env.num_envs
    _check(policy, env)
    instructions = instructions_of(env)
    success, length = np.zeros(len(starts), bool), np.zeros(len(starts), np.int64)
    bar = tqdm(total=len(starts), desc="evaluate", unit="ep", disable=not progress, leave=False)
    for first in range(0, len(starts), n):
        wave = starts[first : first + n]
        count = len(wave)
        mask = np.arange(n) < count if first else None
        obs = start_groups(env, np.resize(wave, n), 1, draw_seeds(1, seed, first, 1)[0], mask)
        done, won, steps = np.arange(n) >= count, np.zeros(n, bool), np.zeros(n, np.int64)
        while not done.all():
            with torch.inference_mode(), autocast(policy, dtype):  # not the environment
                action = policy.act(obs, instructions, greedy=True).action
            obs, reward, terminated, truncated, info = env.step(_for_env(action, obs, env))
            steps += _played(info, policy.chunk, ~done)
            won |= ~done & (_array(reward) > 0)
            done |= _array(terminated) | _array(truncated)
            bar.update(first + int(done[:count].sum()) - bar.n)
        success[first : first + count] = won[:count]
        length[first : first + count] = steps[:count]
        bar.set_postfix(success=f"{success[: first + count].mean():.2f}")
    bar.close()
    return Evaluation(success, length)


def instructions_of(env: gym.vector.VectorEnv) -> list[str]:
    """What each row is told; empty for environments that say nothing."""
    return list(getattr(env.unwrapped, "instructions", [""] * env.num_envs))


def device_of(policy: Policy) -> torch.device:
    """Where a policy computes: where its first parameter lies."""
    return next(policy.parameters()).device  # type: ignore[attr-defined]


def autocast(policy: Policy, dtype: str) -> AbstractContextManager:
    """Mixed precision on the policy's device; "float32" gives none."""
    device, dtype = device_of(policy).type, check_choice("dtype", dtype, DTYPES)
    return torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32")


def _generator(policy: Policy, *words: int) -> Generator:
    return Generator(device=device_of(policy)).manual_seed(draw_seeds(1, *words, 2)[0])


def _check(policy: Policy, env: gym.vector.VectorEnv) -> None:
    if has_starts(env) and env.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP:
        raise ValueError(
            "Episodes are told by their last step, which SameStep keeps for final_info; make the "
            "environment with autoreset_mode='disabled'."
        )
    shape = env.single_action_space.shape or ()
    chunk = shape[0] if len(shape) == 2 else 1
    if chunk != policy.chunk:
        raise ValueError(
            f"The policy decides {policy.chunk} steps at once, the environment plays {chunk} a "
            f"step; make it with chunk={policy.chunk}."
        )


def _for_env(action: Tensor, obs: dict[str, Any], env: gym.vector.VectorEnv) -> Any:
    action = action.reshape(env.action_space.shape)
    return action if isinstance(obs["image"], Tensor) else action.cpu().numpy()


def _played(info: dict[str, Any], chunk: int, active: np.ndarray) -> np.ndarray:
    return _array(info["played"]) * active if "played" in info else chunk * active


def _array(x: Any) -> np.ndarray:
    return x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
