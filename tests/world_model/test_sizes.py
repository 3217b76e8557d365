"""What the sizes cost, against formulas written down by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wm_gym.world_model import sizes
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig
from wm_gym.world_model.sizes import SIZES, Costs, costs, flop, short, weights
from wm_gym.world_model.transformer import VideoTransformer, VideoTransformerConfig

TINY = VideoTransformerConfig(
    image_size=32,
    memory=3,
    max_chunk=5,
    depth=2,
    width=16,
    heads=2,
    block_out_channels=(8, 8, 8),
    layers_per_block=1,
    sampling_steps=3,
)
TINY_RECURRENT = WorldModelConfig(
    image_size=16, outer=8, width=8, vector=16, draw=(8, 8, 8), embed=16
)


@pytest.fixture(scope="module")
def paper() -> Costs:
    return costs(SIZES["paper"])


# Counting.


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(3, 5), (7, 3), 2 * 7 * 3 * 5),
        (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 8, 8), 2 * 2 * 64 * 5 * 3 * 9),
        (nn.GRUCell(3, 5), (7, 3), 2 * 7 * (3 + 5) * 15),
    ],
)
def test_flop_by_hand(module, shape, expected):
    x = torch.zeros(shape, device="meta")
    assert flop(lambda: module.to("meta")(x)) == expected


@pytest.mark.parametrize("masked", [False, True])
def test_flop_of_attention_by_hand(masked):
    """Two products of 5 queries with 6 keys of 4 numbers, in 2 x 3 heads; a mask saves nothing."""
    q, k = torch.zeros(2, 3, 5, 4, device="meta"), torch.zeros(2, 3, 6, 4, device="meta")
    mask = torch.ones(5, 6, dtype=torch.bool, device="meta") if masked else None
    count = flop(lambda: F.scaled_dot_product_attention(q, k, k, attn_mask=mask))
    assert count == 2 * 2 * (2 * 3) * (5 * 6 * 4)


def test_flop_in_a_new_count_begin_at_zero():
    x, linear = torch.zeros(7, 3, device="meta"), nn.Linear(3, 5, device="meta")
    assert [flop(lambda: linear(x)) for _ in range(2)] == [210, 210]


# A video transformer by its formulas.


def layer_weights(c: VideoTransformerConfig) -> int:
    """In each of two blocks 4 d^2 of attention and 8 d^2 of a perceptron, biases, two norms."""
    d = c.width
    return 2 * (12 * d**2 + 9 * d + 2 * d // c.heads) + 12 * d


def transformer_weights(c: VideoTransformerConfig) -> int:
    d, p = c.width, c.latent_channels * c.patch**2
    ends = (p * d + d) + (d * p + p) + (c.tokens + 1 + c.memory) * d
    level = (256 * d + d) + (d * d + d)
    action = (2 * 7 * 4 * d + 4 * d) + (4 * d * d + d)
    told = (12 * d * d + 12 * d) + (2 * d * d + 2 * d)
    return c.depth * layer_weights(c) + ends + level + action + told


def block_flop(c: VideoTransformerConfig) -> int:
    """Known frames pass once and new ones `sampling_steps` times."""
    d, s, p = c.width, c.tokens, c.latent_channels * c.patch**2
    known, k, calls = 1 + c.memory, c.max_chunk, c.sampling_steps
    # Of a frame that passes: 24 d^2 of products a token, attention within it, and at the ends.
    each = c.depth * (2 * 24 * d**2 * s + 4 * s * s * d) + 2 * s * p * d + 2 * 12 * d * d
    along = 4 * s * d * (known * known + calls * k * (known + k)) * c.depth
    new = 2 * s * d * p + 2 * d * 2 * d + 2 * (2 * 7 * 4 * d + 4 * d * d)
    level = 2 * (256 * d + d * d)
    return (known + calls * k) * each + along + calls * k * new + (1 + calls) * level


@pytest.mark.parametrize("steps", [1, 3])
def test_a_small_transformer_costs_what_its_formulas_say(steps):
    config = replace(TINY, sampling_steps=steps)
    counted, model = costs(config), VideoTransformer(config)
    assert counted.weights == weights(model)
    assert counted.weights - counted.autoencoder == transformer_weights(config)
    assert counted.frame_flop == block_flop(config) // 5
    # Three recent frames and the first, of 4 x 8 x 8 numbers in float32.
    assert counted.row_bytes == 4 * 256 * 4
    kept = model.remember(torch.zeros(1, 4, 256)).pasts
    assert counted.cache_bytes == 2 * sum(past.key.numel() + past.value.numel() for past in kept)


def test_drawing_is_counted_by_the_pictures_size():
    """Twice the edge: four times the convolutions, and attention that grows faster."""
    small, large = (costs(replace(TINY, image_size=s)).picture_flop for s in (32, 64))
    assert 4 < large / small < 4.5


def test_a_recurrent_model_keeps_its_latent_and_no_cache():
    counted, model = costs(TINY_RECURRENT), WorldModel(TINY_RECURRENT)
    assert counted.weights == weights(model) and counted.autoencoder == counted.cache_bytes == 0
    assert counted.row_bytes == 4 * TINY_RECURRENT.latent_size
    # A transition is at least its two 3x3 convolutions of 8 channels on 2 x 2 places.
    assert counted.frame_flop > 2 * 2 * (4 * 8 * 8 * 9)
    # Several times that on 8 x 8 places, in the renderer.
    assert counted.picture_flop > 2 * 64 * 2 * (8 * 8 * 9)


# The sizes.


def test_the_derived_sizes_of_the_paper_by_hand():
    # 256 pixels halved three times are 32 places, 16 x 16 tokens of 2 x 2; 4 x 32 x 32 numbers.
    config = SIZES["paper"]
    assert (config.side, config.tokens, config.latent_size) == (32, 256, 4096)


def test_the_paper_is_of_the_papers_size(paper):
    """STDiT3-XL/2 without its text: 56 blocks of 12 x 1152^2 weights, and what goes around them."""
    config = SIZES["paper"]
    assert config.depth * 24 * config.width**2 == 891_813_888
    assert paper.weights - paper.autoencoder == transformer_weights(config)
    assert paper.autoencoder == 83_653_863  # as published for Stable Diffusion and SDXL
    assert 0.9e9 < paper.weights < 1.2e9
    assert paper.frame_flop == block_flop(config) // 8


def test_the_memory_of_the_paper_by_hand(paper):
    # Five latents of 4 x 32 x 32 numbers; 28 layers of 5 x 256 tokens, 1152 numbers twice.
    assert paper.row_bytes == 5 * 4096 * 4
    assert paper.cache_bytes == 28 * 5 * 256 * 1152 * 2 * 2
    expected = 2 * paper.weights + 3 * (81_920 + 165_150_720)
    assert paper.memory_bytes(3) == expected


def test_small_fits_one_gpu():
    assert 50e6 < costs(SIZES["small"]).weights < 100e6


@pytest.mark.parametrize(
    ("number", "text"), [(1221.9, "1,220"), (0.04145, "0.0415"), (96.5, "96.5"), (0.0, "0")]
)
def test_numbers_are_written_with_three_digits(number, text):
    assert short(number) == text


def test_the_table_has_a_line_a_size(monkeypatch):
    made = {
        "one": Costs(3_000_000, 0, 41_454_848, 2_340_000_000, 34_304, 0),
        "two": Costs(1_002_000_000, 83_653_863, 1_221_916_575_744, 10**9, 81_920, 165_150_720),
    }
    configs = {"one": TINY_RECURRENT, "two": TINY}
    monkeypatch.setattr(sizes, "SIZES", configs)
    monkeypatch.setattr(sizes, "costs", lambda c: made["one" if c is TINY_RECURRENT else "two"])
    lines = sizes.table(rows=10).splitlines()
    assert lines[0].startswith("| size | pictures | weights |")
    assert lines[0].endswith("| weights and 10 rows |")
    assert {line.count("|") for line in lines} == {11}
    assert lines[2:] == [
        "| one | 16 px | 3 M | 0 M | 0.0415 | 2.34 | 6 MB | 34.3 kB | 0 MB | 0.00634 GB |",
        "| two | 32 px | 1,000 M | 83.7 M | 1,220 | 1 | 2,000 MB | 81.9 kB | 165 MB | 3.66 GB |",
    ]
