"""Parts of the convolutional denoiser whose effect can be said in a sentence."""

from __future__ import annotations

import pytest
import torch

from wm_gym.world_model.denoiser import Attention, Fourier, Residual


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for weights in module.parameters():
        torch.nn.init.normal_(weights, std=0.3, generator=generator)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("block", [lambda x: Residual(8, 8, 4)(x, torch.ones(2, 4)), Attention(8)])
def test_a_new_block_changes_nothing(block):
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x), x)


def test_a_residual_block_listens_to_its_condition_row_by_row():
    block, x = randomise(Residual(8, 8, 4)), torch.randn(2, 8, 4, 4)
    condition = torch.ones(2, 4)
    before = block(x, condition)
    condition[1] = -1
    after = block(x, condition)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_attention_carries_every_place_to_every_other():
    block, x = randomise(Attention(8)), torch.randn(1, 8, 4, 4, requires_grad=True)
    block(x)[0, 0, 0, 0].backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_attention_does_not_care_for_the_order_of_places():
    block, x = randomise(Attention(8)), torch.randn(1, 8, 4, 4)
    turned = block(x.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(turned, block(x))


def test_values_that_are_near_are_embedded_apart():
    embed = randomise(Fourier(16))
    a, b, c = embed(torch.tensor([0.0, 0.02, 1.0]))
    assert embed(torch.tensor([0.5])).shape == (1, 16)
    assert not torch.allclose(a, b, atol=1e-2) and not torch.allclose(a, c, atol=1e-2)
