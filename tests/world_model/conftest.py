"""World models of a few ten thousand weights on 16-pixel pictures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig


@pytest.fixture
def tiny() -> WorldModelConfig:
    body = {"body": ("hand", "fingers"), "body_size": 3}
    shape = {"outer": 8, "width": 8, "vector": 16, "draw": (8, 8), "embed": 16}
    return WorldModelConfig(image_size=16, **shape, **body)


@pytest.fixture
def model(tiny) -> WorldModel:
    """New models draw their mean picture and nothing else; this one has random layers instead."""
    model = WorldModel(tiny)
    generator = torch.Generator().manual_seed(0)
    wide = {id(weights) for weights in model.transition.motion.parameters()}
    for weights in model.parameters():
        std = 0.05 if id(weights) in wide else 0.2  # a body would run away
        torch.nn.init.normal_(weights, std=std, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small() -> Callable[[int], WorldModel]:
    """Make a new model from a seed, small enough to train; its body is one number, x."""

    def make(seed: int) -> WorldModel:
        torch.manual_seed(seed)
        shape = {"outer": 8, "width": 8, "vector": 64, "draw": (8, 8), "embed": 8}
        return WorldModel(
            WorldModelConfig(image_size=16, max_chunk=4, **shape, body=("x",), body_size=1)
        )

    return make
