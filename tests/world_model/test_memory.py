"""The memory: it moves on, gives rows away and takes them back."""

from __future__ import annotations

import torch

from wm_gym.world_model.memory import Memory


def memory(rows: int = 2) -> Memory:
    """Row r has the anchor 10 r and the recent frames 10 r + 1, 2, 3, 4."""
    anchor = 10.0 * torch.arange(rows).view(rows, 1, 1, 1)
    return Memory(anchor, anchor[:, None] + torch.arange(1, 5).view(1, 4, 1, 1, 1))


def values(memory: Memory) -> list:
    return [[a.item(), *r.flatten().tolist()] for a, r in zip(*memory, strict=True)]


def frames(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)[..., None, None, None]


def test_new_frames_push_out_the_oldest_and_leave_the_anchor():
    after = memory().advance(frames([5.0], [15.0]))
    assert values(after) == [[0, 2, 3, 4, 5], [10, 12, 13, 14, 15]]


def test_more_frames_than_it_holds_leave_the_last_ones():
    after = memory(1).advance(frames([5.0, 6.0, 7.0, 8.0, 9.0, 10.0]))
    assert values(after) == [[0, 7, 8, 9, 10]]


def test_advancing_leaves_the_memory_before_as_it_was():
    before = memory()
    after = before.advance(frames([5.0], [15.0]))
    after.recent.zero_()
    assert values(before) == values(memory())


def test_rows_are_taken_in_any_order_and_as_often_as_asked():
    taken = memory(3).take(torch.tensor([2, 0, 2]))
    assert values(taken) == [[20, 21, 22, 23, 24], [0, 1, 2, 3, 4], [20, 21, 22, 23, 24]]


def test_taken_rows_are_fresh():
    whole = memory()
    part = whole.take(torch.tensor([0, 1]))
    part.anchor.zero_(), part.recent.zero_()
    assert values(whole) == values(memory())


def test_rows_are_put_back_where_they_belong():
    whole, other = memory(3), memory(3).take(torch.tensor([1, 0]))
    whole.put(torch.tensor([0, 2]), other)
    assert values(whole) == [[10, 11, 12, 13, 14], [10, 11, 12, 13, 14], [0, 1, 2, 3, 4]]


def test_put_copies():
    whole, other = memory(2), memory(1)
    whole.put(torch.tensor([1]), other)
    other.anchor.fill_(7), other.recent.fill_(7)
    assert values(whole)[1] == [0, 1, 2, 3, 4]
