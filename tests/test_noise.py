"""Noise by counting: its numbers, its statistics, and that a row depends on nothing but itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wm_gym.noise import hash_counters, mix64, row_choice, row_keys, row_noise

WORD = (1 << 32) - 1


def noise(seeds, episodes=0, steps=0, shape=(2, 3, 4)) -> torch.Tensor:
    full = np.broadcast_arrays(np.asarray(seeds), episodes, steps)
    return row_noise(*(np.atleast_1d(x).astype(np.int64) for x in full), shape)


def test_mix64_is_the_published_splitmix64():
    # The first two outputs of the reference implementation's generator from state 0.
    state = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert [hex(x) for x in mix64(state).tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def reference_hash(counter: int, key: int) -> int:
    """The same hash on Python's integers."""
    x = (counter + (key & WORD)) & WORD
    x ^= x >> 16
    x = (x * 0x21F0AAAD & WORD) ^ (key >> 32)
    x ^= x >> 15
    x = x * 0xD35A2D97 & WORD
    return x ^ x >> 15


def test_hash_agrees_with_integer_arithmetic():
    keys = np.array([0, 1, 0xFEDCBA9876543210, 2**64 - 1], np.uint64)
    expected = [[reference_hash(j, int(key)) for j in range(5)] for key in keys]
    assert (hash_counters(keys, 5, "cpu").to(torch.int64) & WORD).tolist() == expected


def test_values_are_the_quantiles_that_the_hash_names():
    key = int(row_keys(*np.array([[7], [2], [5]]), stream=1)[0])
    words = [reference_hash(j, key) for j in range(2)]
    halves = np.array([half for word in words for half in (word & 0xFFFF, word >> 16)])
    expected = torch.special.ndtri(torch.from_numpy((halves + 0.5) / 65536))[:3]
    torch.testing.assert_close(noise(7, 2, 5, (3,))[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_a_standard_normal():
    x = noise(np.arange(16), 1, 3, (65536,)).double()  # 2**20 values
    # Standard errors of the four: 0.001, 0.0007, 0.0024, 0.0048.
    assert abs(x.mean()) < 0.004 and abs(x.std() - 1) < 0.003
    assert abs((x**3).mean()) < 0.01 and abs((x**4).mean() - 3) < 0.02
    assert 4 < x.abs().max() < 4.4
    share = (x.abs() > 1.959964).double().mean()
    assert abs(share - 0.05) < 0.001


@pytest.mark.parametrize(
    "rows", [(np.arange(64), 0, 0), (3, np.arange(64), 0), (3, 0, np.arange(64))]
)
def test_rows_that_differ_in_one_number_are_independent(rows):
    x = noise(*rows, shape=(8192,)).double()
    correlation = torch.corrcoef(x) - torch.eye(64)
    assert correlation.abs().max() < 5.5 / 8192**0.5  # 2016 pairs; 4 is expected
    squares = torch.corrcoef(x**2) - torch.eye(64)
    assert squares.abs().max() < 7 / 8192**0.5


def test_neighbouring_places_are_independent():
    x = noise(np.arange(8), shape=(65536,)).double()
    for lag in (1, 2, 3, 16, 256, 768):
        assert abs((x[:, lag:] * x[:, :-lag]).mean()) < 5 / x.numel() ** 0.5


def test_no_two_rows_draw_the_same_words_in_another_order():
    words = hash_counters(row_keys(np.arange(40), *np.zeros((2, 40), int), 1), 512, "cpu")
    assert len(words.unique()) >= words.numel() - 2  # 0.05 collisions are expected by chance


def test_a_row_does_not_depend_on_the_others_in_the_batch():
    batch = noise([5, 6, 7], [0, 4, 1], [8, 0, 3])
    assert torch.equal(noise(6, 4, 0)[0], batch[1])
    assert torch.equal(noise([7, 5], [1, 0], [3, 8]), batch[[2, 0]])


def test_a_place_does_not_depend_on_the_size_of_the_tensor():
    assert torch.equal(noise(3, shape=(7,)), noise(3, shape=(4, 5)).flatten(1)[:, :7])


def test_noise_is_float32_of_the_shape_asked_for_and_fresh():
    x = noise([1, 2], shape=(3, 5))
    assert x.shape == (2, 3, 5) and x.dtype == torch.float32
    x.zero_()
    assert noise([1, 2], shape=(3, 5)).abs().sum() > 0


def test_choices_are_uniform_and_repeatable():
    seeds, episodes = np.repeat(np.arange(100), 100), np.tile(np.arange(100), 100)
    choice = row_choice(seeds, episodes, 5)
    counts = np.bincount(choice, minlength=5)
    assert len(counts) == 5 and abs(counts - 2000).max() < 160  # 4 standard deviations
    assert np.array_equal(row_choice(seeds[37:38], episodes[37:38], 5), choice[37:38])
