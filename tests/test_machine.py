"""What the machine lends to this process."""

from __future__ import annotations

import os

import pytest

from wm_gym import machine
from wm_gym.machine import cores


@pytest.fixture(autouse=True)
def cgroup(monkeypatch, tmp_path):
    """A container whose limits are not written yet."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return tmp_path


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cores() == 3


@pytest.mark.parametrize(("counted", "found"), [(4, 4), (None, 1)])
def test_where_no_mask_is_known_all_cores_count(monkeypatch, counted, found):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert cores() == found


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),  # one and a half: a second one is worth its half
        ({"cpu.max": "max 100000\n"}, 3),
        ({"cpu.max": "6400000 100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_container_may_be_lent_less_time_than_cores(monkeypatch, cgroup, files, found):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    for name, text in files.items():
        (cgroup / name).parent.mkdir(exist_ok=True)
        (cgroup / name).write_text(text)
    assert cores() == found
