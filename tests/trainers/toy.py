"""A vector environment of a few lines that keeps the contract's promises: starts, frozen rows."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Generator, Tensor, nn

from policies.base import Act


class ToyEnv(VectorEnv):
    """Succeeds at the first action whose first number has the sign that the picture shows.

    Start s shows a white picture where s is odd and a black one where it is even. Chunks of
    `chunk` actions, `horizon` control steps; rows freeze when their episode is over.
    """

    def __init__(
        self, num_envs: int, starts: int = 8, chunk: int = 2, horizon: int = 4, needed: float = 0.5
    ) -> None:
        self.num_envs, self.chunk, self.horizon, self.needed = num_envs, chunk, horizon, needed
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.pool = _Pool(starts)
        self.instructions = ["match the sign"] * num_envs
        self.single_observation_space = Dict({"image": Box(0, 255, (8, 8, 3), np.uint8)})
        self.single_action_space = Box(-1, 1, (chunk, 7), np.float32)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, num_envs
        )
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.episodes = 0
        self.seen: list = []

    def reset(self, *, seed=None, options=None):
        options = options or {}
        mask = options.get("reset_mask", np.ones(self.num_envs, bool))
        if mask.all():
            self.start = np.zeros(self.num_envs, np.int64)
            self.over = np.zeros(self.num_envs, bool)
            self.elapsed = np.zeros(self.num_envs, np.int64)
        self.start[mask] = np.asarray(options["start"])[mask]
        self.over[mask], self.elapsed[mask] = False, 0
        self.episodes += int(mask.sum())
        self.seen.append((tuple(seed), tuple(self.start)))
        return self._observe(), {}

    def step(self, action):
        assert action.shape == self.action_space.shape and isinstance(action, np.ndarray)
        active = ~self.over
        sign = np.where(self.start % 2, 1.0, -1.0)[:, None]
        hit = action[:, :, 0] * sign >= self.needed  # (n, k)
        won = active & hit.any(1)
        played = np.where(won, hit.argmax(1) + 1, self.chunk) * active
        self.elapsed += played
        truncated = active & ~won & (self.elapsed >= self.horizon)
        self.over |= won | truncated
        info = {"played": played, "active": active, "success": won}
        return self._observe(), won.astype(np.float64), won, truncated, info

    def _observe(self):
        value = np.where(self.start % 2, 255, 0).astype(np.uint8)
        return {
            "image": np.broadcast_to(value[:, None, None, None], (self.num_envs, 8, 8, 3)).copy()
        }


class ForeignEnv(gym.Env):
    """An ordinary environment: shows its seed, pays at the second step if told more than 0."""

    observation_space = Dict({"image": Box(0, 255, (8, 8, 3), np.uint8)})
    action_space = Box(-1, 1, (7,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.elapsed, self.shown = 0, seed or 0
        return self._observe(), {}

    def step(self, action):
        self.elapsed += 1
        won = self.elapsed == 2 and action[0] > 0
        return self._observe(), float(won), won, self.elapsed == 3, {}

    def _observe(self):
        return {"image": np.full((8, 8, 3), self.shown, np.uint8)}


class _Pool:
    def __init__(self, count: int) -> None:
        self.frames = np.zeros((count, 8, 8, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.frames)


class ToyPolicy(nn.Module):
    """A table: brightness of the picture (2) x events x 5 bins; the smallest token policy."""

    def __init__(self, chunk: int = 2) -> None:
        super().__init__()
        self.chunk, self.temperature = chunk, 1.0
        self.table = nn.Parameter(torch.zeros(2, chunk * 7, 5))
        self.register_buffer("event_steps", torch.arange(chunk * 7) // 7)

    def _log_p(self, obs) -> Tensor:
        bright = (torch.as_tensor(obs["image"]).flatten(1).float().mean(1) > 127).long()
        return (self.table[bright] / self.temperature).log_softmax(-1)

    def act(self, obs, instructions, *, greedy=False, generator: Generator | None = None) -> Act:
        log_p = self._log_p(obs)
        n = len(log_p)
        token = log_p.argmax(-1)
        if not greedy:
            token = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator).view(n, -1)
        action = (token.float() / 2 - 1).view(n, self.chunk, 7)  # -1, -0.5, 0, 0.5, 1
        return Act(action, token, log_p.gather(-1, token[..., None])[..., 0])

    def log_prob(self, obs, instructions, sample: Tensor) -> Tensor:
        return self._log_p(obs).gather(-1, sample[..., None])[..., 0]

    def save_pretrained(self, folder) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "table.pt")
