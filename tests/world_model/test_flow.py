"""Rectified flow: times, noise, and Euler steps that fit on a napkin."""

from __future__ import annotations

import pytest
import torch

from wm_gym.world_model.flow import add_noise, draw_times, sample


def test_the_given_share_of_times_is_pure_noise_and_the_rest_uniform():
    times = draw_times(20_000, 0.6, torch.Generator().manual_seed(0))
    assert (times == 1).float().mean().item() == pytest.approx(0.6, abs=0.015)
    rest = times[times < 1]
    assert 0 < rest.min() < 0.01 and rest.max() > 0.99
    assert rest.mean().item() == pytest.approx(0.5, abs=0.015)
    assert rest.std().item() == pytest.approx(12**-0.5, abs=0.01)


@pytest.mark.parametrize(("pure", "expected"), [(1.0, True), (0.0, False)])
def test_all_or_none_of_the_times_may_be_pure_noise(pure, expected):
    assert ((draw_times(500, pure) == 1) == expected).all()


def test_a_time_is_never_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, generator: torch.zeros(n))  # the least it gives
    assert draw_times(2, 0.0).tolist() == [1, 1]


def test_times_repeat_with_the_generator():
    a, b, c = (draw_times(8, 0.5, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_noise_is_mixed_in_by_each_rows_time():
    clean, noise = torch.full((3, 2, 1, 1, 1), 4.0), torch.full((3, 2, 1, 1, 1), -2.0)
    mixed = add_noise(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert mixed.flatten(1).tolist() == [[4, 4], [2.5, 2.5], [-2, -2]]


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_an_oracle_is_believed_in_any_number_of_steps(steps):
    clean = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    found = sample(lambda noisy, time: clean, torch.randn(2, 3, 4), steps)
    assert torch.equal(found, clean)


@pytest.mark.parametrize("steps", [2, 4])
def test_what_an_oracle_is_shown_lies_on_the_straight_line(steps):
    clean, noise = torch.randn(2, 5), torch.randn(2, 5)
    shown = []
    sample(lambda noisy, time: shown.append((noisy, time)) or clean, noise, steps)
    for step, (noisy, time) in enumerate(shown):
        assert time.tolist() == [1 - step / steps] * 2
        torch.testing.assert_close(noisy, add_noise(clean, noise, time))


def test_two_euler_steps_by_hand():
    # From 1 at t = 1, with half of what is shown as the prediction: x = 0.5, velocity 0.5, so 0.75
    # at t = 1/2; there x = 0.375, which the second step of 1/2 reaches.
    found = sample(lambda noisy, time: noisy / 2, torch.tensor([[1.0]]), 2)
    assert found.tolist() == [[0.375]]


def test_the_prediction_may_depend_on_the_time():
    # x = t: at t = 1, 3 - 1/2 (3 - 1) / 1 = 2; then the prediction 1/2 itself.
    found = sample(lambda noisy, time: time[:, None].expand_as(noisy), torch.tensor([[3.0]]), 2)
    assert found.tolist() == [[0.5]]


def test_the_noise_is_left_alone():
    noise = torch.ones(1, 3)
    sample(lambda noisy, time: noisy / 2, noise, 3)
    assert noise.tolist() == [[1, 1, 1]]
