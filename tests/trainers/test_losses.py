"""Losses, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.losses import (
    clipped_policy_loss,
    group_advantage,
    masked_mean,
    token_cross_entropy,
)


def test_advantage_of_one_success_in_four():
    # mean 1/4, unbiased std sqrt((9/16 + 3/16) / 3) = 1/2: (1 - 1/4) / (1/2) = 1.5, else -0.5
    advantage, keep = group_advantage(torch.tensor([0.0, 1.0, 0.0, 0.0]), group_size=4)
    torch.testing.assert_close(advantage, torch.tensor([-0.5, 1.5, -0.5, -0.5]), atol=1e-5, rtol=0)
    assert keep.tolist() == [True]


def test_groups_are_standardised_apart():
    advantage, _ = group_advantage(torch.tensor([0.0, 1.0, 1.0, 1.0]), group_size=2)
    root = math.sqrt(0.5)  # mean 1/2, unbiased std sqrt(1/2)
    expected = torch.tensor([-0.5 / root, 0.5 / root, 0.0, 0.0])
    torch.testing.assert_close(advantage, expected, atol=1e-5, rtol=0)


def test_groups_outside_the_bounds_are_dropped():
    rewards = torch.zeros(4, 10)
    rewards[1, 0] = rewards[2, :9] = rewards[3] = 1  # means 0, 0.1, 0.9, 1
    _, keep = group_advantage(rewards.flatten(), group_size=10, keep_low=0.1, keep_high=0.9)
    assert keep.tolist() == [False, True, True, False]


def test_ragged_groups_are_refused():
    with pytest.raises(ValueError, match="5 returns cannot be split into groups of 2"):
        group_advantage(torch.zeros(5), group_size=2)


def test_clipped_loss_by_hand():
    ratio = torch.tensor([[1.5, 1.1], [0.5, 1.5]])
    advantage = torch.tensor([1.0, -1.0])
    # row 0: min(1.5, 1.28) and 1.1 -> mean 1.19; row 1: min(-0.5, -0.8) and -1.5 -> mean -1.15
    result = clipped_policy_loss(
        ratio.log(), torch.zeros(2, 2), advantage, torch.ones(2, 2, dtype=torch.bool)
    )
    assert result.loss.item() == pytest.approx(-(1.19 - 1.15) / 2, abs=1e-6)
    assert result.clip_fraction.item() == 0.5  # 1.5 up and 0.5 down
    # mean of r - 1 - log r: 0.0945349, 0.0046898, 0.1931472, 0.0945349
    assert result.approx_kl.item() == pytest.approx(0.0967267, abs=1e-6)


def test_loss_averages_tokens_then_trajectories():
    # one token of ratio 1 and advantage 1 weighs as much as three of advantage -1: the mean is 0
    mask = torch.tensor([[True, False, False], [True, True, True]])
    zeros = torch.zeros(2, 3)
    result = clipped_policy_loss(zeros, zeros, torch.tensor([1.0, -1.0]), mask)
    assert result.loss.item() == 0.0


def test_masked_tokens_have_no_gradient_even_if_infinite():
    log_prob = torch.tensor([[0.0, 90.0]], requires_grad=True)
    old = torch.tensor([[0.0, -math.inf]])
    result = clipped_policy_loss(log_prob, old, torch.tensor([2.0]), torch.tensor([[True, False]]))
    result.loss.backward()
    assert log_prob.grad.tolist() == [[-2.0, 0.0]]


def test_clipped_tokens_have_no_gradient():
    log_prob = torch.tensor([[math.log(1.5), 0.0]], requires_grad=True)
    result = clipped_policy_loss(
        log_prob, torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2, dtype=torch.bool)
    )
    result.loss.backward()
    assert log_prob.grad.tolist() == [[0.0, -0.5]]


def test_masked_mean_of_an_empty_row_is_zero():
    x, mask = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[True, True], [False, False]])
    assert masked_mean(x, mask).tolist() == [2.0, 0.0]


def test_cross_entropy_by_hand_ignores_masked_tokens():
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)], [9.0, 0.0]]])
    token, mask = torch.tensor([[0, 1, 1]]), torch.tensor([[True, True, False]])
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert token_cross_entropy(logits, token, mask).item() == pytest.approx(expected)


def test_neighbours_share_the_target():
    # weights exp(-d^2 / 2) at d = 1, 0, 1, normalised: 0.27406862, 0.45186276, 0.27406862
    logits = torch.tensor([[[0.0, 1.0, 2.0]]])
    log_p = logits.log_softmax(-1)[0, 0]
    expected = -(log_p * torch.tensor([0.27406862, 0.45186276, 0.27406862])).sum()
    loss = token_cross_entropy(
        logits, torch.tensor([[1]]), torch.ones(1, 1, dtype=torch.bool), neighbours=1.0
    )
    torch.testing.assert_close(loss, expected)
