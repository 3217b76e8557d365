"""The memory gives rows away and takes them back."""

from __future__ import annotations

import torch

from wm_gym.world_model.memory import Memory


def memory(rows: int = 2) -> Memory:
    """Row r is [10 r, 10 r + 1]."""
    return Memory(10.0 * torch.arange(rows)[:, None] + torch.tensor([0, 1]))


def test_rows_are_taken_in_any_order_and_as_often_as_asked():
    taken = memory(3).take(torch.tensor([2, 0, 2]))
    assert taken.state.tolist() == [[20, 21], [0, 1], [20, 21]]


def test_taken_rows_are_fresh():
    whole = memory()
    whole.take(torch.tensor([0, 1])).state.zero_()
    assert whole.state.tolist() == [[0, 1], [10, 11]]


def test_rows_are_put_back_where_they_belong():
    whole, other = memory(3), memory(3).take(torch.tensor([1, 0]))
    whole.put(torch.tensor([0, 2]), other)
    assert whole.state.tolist() == [[10, 11], [10, 11], [0, 1]]


def test_put_copies():
    whole, other = memory(2), memory(1)
    whole.put(torch.tensor([1]), other)
    other.state.fill_(7)
    assert whole.state.tolist() == [[0, 1], [0, 1]]
