"""What the machine lends to this process."""

from __future__ import annotations

import os

import pytest

from wm_gym.machine import cores


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cores() == 3


@pytest.mark.parametrize(("counted", "found"), [(4, 4), (None, 1)])
def test_where_no_mask_is_known_all_cores_count(monkeypatch, counted, found):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert cores() == found
