"""A world model of a few thousand weights on 16-pixel pictures, its layers far from zero."""

from __future__ import annotations

import pytest
import torch

from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig


@pytest.fixture
def tiny() -> WorldModelConfig:
    return WorldModelConfig(image_size=16, widths=(16, 16, 8), embed=16)


@pytest.fixture
def model(tiny) -> WorldModel:
    """New models leave the last frame as it is; this one has random output layers as well."""
    model = WorldModel(tiny)
    generator = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.1, generator=generator)
    return model.eval().requires_grad_(False)
