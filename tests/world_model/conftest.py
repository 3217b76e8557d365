"""A world model of forty thousand weights on 16-pixel pictures, its layers far from zero."""

from __future__ import annotations

import pytest
import torch

from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig


@pytest.fixture
def tiny() -> WorldModelConfig:
    return WorldModelConfig(image_size=16, outer=8, width=8, vector=16, draw=(8, 8), embed=16)


@pytest.fixture
def model(tiny) -> WorldModel:
    """New models draw their mean picture and nothing else; this one has random layers instead."""
    model = WorldModel(tiny)
    generator = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.2, generator=generator)
    return model.eval().requires_grad_(False)
