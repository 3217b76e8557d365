"""Sizes of world models."""

from __future__ import annotations

from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import PRESETS, WorldModelConfig


def test_derived_sizes_by_hand():
    # 32 pixels are 4 cells of 8: 16 cells of 10 channels, and 7.
    config = WorldModelConfig(image_size=32, width=10, vector=7)
    assert (config.side, config.latent_size) == (4, 167)


def test_nano_fits_under_ten_megabytes_in_half_precision():
    model = WorldModel(PRESETS["nano"])
    assert sum(p.numel() for p in model.parameters()) * 2 < 10e6
    assert model.noise_shape(3) == (3, 384)
