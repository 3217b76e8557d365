"""World models of a few ten thousand weights on 16-pixel pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig
from wm_gym.world_model.transformer import VideoTransformerConfig


@pytest.fixture
def tiny() -> WorldModelConfig:
    body = {"body": ("hand", "fingers"), "body_size": 3}
    shape = {"outer": 8, "width": 8, "vector": 16, "draw": (8, 8, 8), "embed": 16}
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
        shape = {"outer": 8, "width": 8, "vector": 64, "draw": (8, 8, 8), "embed": 8}
        return WorldModel(
            WorldModelConfig(image_size=16, max_chunk=4, **shape, body=("x",), body_size=1)
        )

    return make


@pytest.fixture(scope="session")
def tiny_video() -> VideoTransformerConfig:
    """16 pixels are 4 x 4 places of 4 channels, and 2 x 2 tokens."""
    return VideoTransformerConfig(
        image_size=16,
        depth=1,
        width=32,
        heads=2,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        scaling_factor=1.0,
    )


@pytest.fixture(scope="session")
def clip() -> Callable[[str, int], Episode]:
    """Make an episode from its source and seed: a grey square goes left or right as it is told."""

    def make(source: str, seed: int, t: int = 10) -> Episode:
        actions = np.zeros((t, 7), np.float32)
        actions[:, 0] = np.random.default_rng(seed).choice([-1, 1], t)
        frames = np.full((t + 1, 16, 16, 3), 60, np.uint8)
        x = 4
        for i in range(t + 1):
            frames[i, 4:12, x : x + 8] = 200
            x = int(np.clip(x + 4 * actions[min(i, t - 1), 0], 0, 8))
        return Episode(frames, actions, np.zeros(t, bool), source=source)

    return make
