"""Sizes of world models."""

from __future__ import annotations

from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import PRESETS, WorldModelConfig


def test_derived_sizes_by_hand():
    config = WorldModelConfig(image_size=32, patch=2)
    assert (config.channels, config.size) == (12, 16)


def test_nano_fits_under_ten_megabytes_in_half_precision():
    model = WorldModel(PRESETS["nano"])
    assert sum(p.numel() for p in model.parameters()) * 2 < 10e6
    assert model.noise_shape(3) == (3, 48, 16, 16)
