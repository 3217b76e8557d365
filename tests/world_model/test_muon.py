"""Muon: what an update looks like, by hand and by singular values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wm_gym.world_model.muon import Muon, by_kind, orthogonal


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step(weights: Tensor, *gradients: Tensor, **settings: float) -> Tensor:
    """Take a step a gradient; returns the change of `weights`, which it leaves alone."""
    moved = weights.clone().requires_grad_()
    optimizer = Muon([moved], **({"lr": 0.1, "weight_decay": 0.0} | settings))
    for gradient in gradients:
        moved.grad = gradient.clone()
        optimizer.step()
    return moved.detach() - weights


def quintic(values: Tensor) -> Tensor:
    """Map singular values, given their norm, as five rounds of the published polynomial do."""
    values = values.double() / values.double().norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


# The orthogonal part of a matrix.


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (8, 200), (1, 30)])
def test_singular_values_come_near_one_and_keep_their_vectors(shape):
    matrix = drawn(*shape)
    found = orthogonal(matrix)
    assert found.shape == shape and found.dtype == torch.float32
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ found @ v.T  # diagonal, were bfloat16 exact
    expected = quintic(values).float()
    assert 0.6 < expected.min() and expected.max() < 1.3
    torch.testing.assert_close(turned, torch.diag(expected), atol=0.05, rtol=0)


def test_singular_values_far_apart_come_together():
    u, v = (torch.linalg.qr(drawn(8, 8, seed=s))[0] for s in (1, 2))
    matrix = u @ torch.diag(torch.tensor([100.0, 50, 30, 20, 15, 10, 8, 5])) @ v
    found = torch.linalg.svdvals(orthogonal(matrix))
    assert found.min() > 0.6 and found.max() < 1.3


@pytest.mark.parametrize("factor", [2**-10, 2**10])  # powers of 2 round alike
def test_the_size_of_a_matrix_does_not_matter(factor):
    matrix = drawn(8, 16)
    assert torch.equal(orthogonal(factor * matrix), orthogonal(matrix))


def test_nothing_comes_of_nothing():
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


# Steps.


@pytest.mark.parametrize("shape", [(32, 32), (32, 128), (128, 32)])
def test_an_update_has_the_size_of_adams(shape):
    moved = step(drawn(*shape), 1e-4 * drawn(*shape, seed=1), lr=0.1)
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.2)


def test_a_step_goes_against_the_gradient_by_hand():
    # One row has one singular value, its length; 0.1 x 0.2 x sqrt(4) is 0.04.
    moved = step(torch.zeros(1, 4), torch.tensor([[3.0, 0, -4.0, 0]]), lr=0.1)
    assert 0.6 < moved.norm() / 0.04 < 1.3
    direction = torch.tensor([[-0.6, 0, 0.8, 0]])
    torch.testing.assert_close(moved / moved.norm(), direction, atol=0.02, rtol=0)


def test_momentum_is_nesterovs():
    first, second = drawn(6, 9, seed=1), drawn(6, 9, seed=2)
    moved = step(torch.zeros(6, 9), first, second, lr=0.5)
    before = step(torch.zeros(6, 9), first, lr=0.5)
    mean = 0.95 * 0.05 * first + 0.05 * second
    update = 0.05 * second + 0.95 * mean
    expected = before - 0.5 * 0.2 * 3 * orthogonal(update)
    torch.testing.assert_close(moved, expected, atol=5e-3, rtol=0)


def test_weights_decay_by_the_rate_even_where_the_gradient_is_zero():
    weights = drawn(4, 4)
    moved = step(weights, torch.zeros(4, 4), lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(moved, -0.05 * weights)


def test_a_convolution_is_a_matrix_of_its_outputs_and_the_rest():
    weights, gradient = drawn(6, 4, 3, 3), drawn(6, 4, 3, 3, seed=1)
    moved = step(weights, gradient)
    assert torch.equal(moved.view(6, 36), step(weights.view(6, 36), gradient.view(6, 36)))
    values = torch.linalg.svdvals(moved.view(6, 36)) / (0.1 * 0.2 * 6)
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(3, 6, 9), (3, 9, 6)])
def test_a_stack_of_matrices_is_moved_one_by_one(shape):
    weights, gradient = (
        drawn(*shape),
        drawn(*shape, seed=1) * torch.tensor([1.0, 9, 0.1])[:, None, None],
    )
    moved = step(weights, gradient)
    for one, start, slope in zip(moved, weights, gradient, strict=True):
        torch.testing.assert_close(one, step(start, slope), atol=1e-3, rtol=0)


def test_weights_without_a_gradient_stay():
    one, other = drawn(3, 3).requires_grad_(), drawn(3, 3).requires_grad_()
    optimizer = Muon([one, other], lr=0.1)
    one.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(other, drawn(3, 3)) and not torch.equal(one, drawn(3, 3))


@pytest.mark.parametrize("shape", [(5,), ()])
def test_vectors_and_scalars_are_refused(shape):
    weights = [torch.zeros(2, 3, requires_grad=True), torch.zeros(shape, requires_grad=True)]
    with pytest.raises(ValueError, match=r"2 or more dimensions, got shapes \[\(5?,?\)\].*AdamW"):
        Muon(weights, lr=0.1)


def test_saved_momentum_goes_on_where_it_was():
    gradients = [drawn(4, 6, seed=s) for s in range(3)]
    whole = step(torch.zeros(4, 6), *gradients)
    weights = torch.zeros(4, 6, requires_grad=True)
    first = Muon([weights], lr=0.1, weight_decay=0.0)
    for gradient in gradients[:2]:
        weights.grad = gradient
        first.step()
    second = Muon([weights], lr=9.0)
    second.load_state_dict(first.state_dict())
    weights.grad = gradients[2]
    second.step()
    assert torch.equal(weights.detach(), whole)


def test_least_squares_are_found():
    inputs, truth = drawn(64, 12), drawn(12, 5, seed=1)
    weights = torch.zeros(12, 5, requires_grad=True)
    optimizer = Muon([weights], lr=0.2, weight_decay=0.0)
    for i in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - i / 200)
        optimizer.zero_grad()
        (inputs @ weights - inputs @ truth).square().mean().backward()
        optimizer.step()
    assert (weights - truth).square().mean().sqrt() < 0.02  # from 1


def test_maps_have_muon_and_all_else_that_is_learnt_adamw():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 5), nn.Embedding(6, 5), nn.Linear(5, 2)
    )
    module[4].requires_grad_(False)
    muon, adamw = by_kind(module, 0.1, 0.02)
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    shapes = [[tuple(p.shape) for p in o.param_groups[0]["params"]] for o in (muon, adamw)]
    assert shapes == [[(4, 3, 3, 3), (5, 4)], [(4,), (4,), (4,), (5,), (6, 5)]]
    rates = [(o.param_groups[0]["lr"], o.param_groups[0]["weight_decay"]) for o in (muon, adamw)]
    assert rates == [(0.1, 0.02), (0.05, 0.02)]
