"""CUDA graphs: elsewhere the call itself, on a GPU the same values and gradients."""

from __future__ import annotations

import pytest
import torch

from wm_gym.world_model.graphs import recorded


def test_without_a_gpu_it_is_the_call_itself():
    assert recorded(torch.add, torch.ones(2), torch.ones(2)) is torch.add


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_is_recorded_gives_new_values_and_gradients_for_new_inputs():
    weight = torch.nn.Parameter(torch.tensor(3.0, device="cuda"))

    def call(x: torch.Tensor) -> torch.Tensor:
        weight.grad = None
        loss = (weight * x).sum()
        loss.backward()
        return loss.detach()

    again = recorded(call, torch.ones(2, device="cuda"))
    for x in (5.0, 7.0):
        assert again(torch.full((2,), x, device="cuda")).item() == 6 * x
        assert weight.grad.item() == 2 * x  # not added up
