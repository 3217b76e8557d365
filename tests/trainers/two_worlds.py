"""An imagined and a true world of fakes, in which pushing makes the picture brighter."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from policies.base import Act
from tests.fakes import FakeSuccess, FakeWorldModel
from wm_gym.success.classifier import pad_features

HALF = 178.5 / 255  # a picture of level 179 is a success, one of 178 is not


class Judge(FakeSuccess):
    """Also looks at whole videos."""

    def watch(self, latents):
        return self.probability(pad_features(self.embed(latents), 8))


class Slippery(FakeWorldModel):
    """The true world: what the actions do there, times `grip`."""

    def __init__(self, grip: float) -> None:
        super().__init__()
        self.grip = grip

    def imagine(self, memory, actions, noise):
        return super().imagine(memory, self.grip * actions, noise)


class Pusher(nn.Module):
    """Makes the imagined picture `levels` brighter at every step, whatever it sees."""

    def __init__(self, levels: float, chunk: int = 8) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor(levels))
        self.config, self.chunk, self.told = SimpleNamespace(chunk=chunk), chunk, []
        self.event_steps = torch.arange(chunk)

    def act(self, obs, instructions, *, greedy=False, generator=None):
        self.told.append((obs["image"][:, 0, 0, 0].tolist(), instructions, greedy))
        action = torch.zeros(len(obs["image"]), self.chunk, 7)
        action[..., 0] = self.levels / 12.75  # FakeWorldModel adds 12.75 levels times this
        return Act(action, action, action)
