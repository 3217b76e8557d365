"""A run's folder: config, metrics, checkpoints, stages; whole or not there."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from wm_gym import runs
from wm_gym.runs import Run


@dataclass(frozen=True)
class Config:
    """Stand-in."""

    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


def test_the_config_is_written(tmp_path):
    Run(tmp_path / "run", Config())
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert found == {"rate": 0.1, "sizes": [1, 2]}


def test_an_existing_run_is_not_overwritten(tmp_path):
    Run(tmp_path / "run", Config())
    with pytest.raises(FileExistsError, match="--resume"):
        Run(tmp_path / "run", Config())


def test_resuming_wants_the_same_config(tmp_path):
    Run(tmp_path, Config())
    Run(tmp_path, Config(), resume=True)
    with pytest.raises(ValueError, match=r"rate: 0\.1 there, 0\.2 now"):
        Run(tmp_path, Config(rate=0.2), resume=True)


def test_a_run_may_be_moved_and_go_on_with_other_workers(tmp_path):
    Run(tmp_path / "a", {"rate": 0.1, "out": "a", "workers": 2})
    (tmp_path / "a").rename(tmp_path / "b")
    Run(tmp_path / "b", {"rate": 0.1, "out": "b", "workers": None}, resume=True)
    with pytest.raises(ValueError, match=r"config \(rate: 0\.1 there, 0\.2 now\)"):
        Run(tmp_path / "b", {"rate": 0.2, "out": "b", "workers": None}, resume=True)


def test_metrics_are_lines_of_json(tmp_path):
    run = Run(tmp_path)
    run.log(1, {"train/loss": torch.tensor(0.5)})
    run.log(2, {"train/loss": 0.25})
    assert run.metrics() == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.25}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_line_cut_short_is_left_out(tmp_path):
    run = Run(tmp_path)
    run.log(1, {"a": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "a"')
    assert run.metrics() == [{"step": 1, "a": 1.0}]


def test_rewind_forgets_later_steps(tmp_path):
    run = Run(tmp_path)
    for step in range(4):
        run.log(step, {"a": step})
    run.rewind(2)
    assert [record["step"] for record in run.metrics()] == [0, 1]


def test_checkpoints_come_back(tmp_path):
    run = Run(tmp_path)
    assert run.load() is None
    run.save({"weight": torch.arange(3), "iteration": 7})
    state = run.load()
    assert state["iteration"] == 7 and state["weight"].tolist() == [0, 1, 2]


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path):
    run = Run(tmp_path)
    run.save({"iteration": 1})
    with pytest.raises(Exception, match="pickle"):
        run.save({"iteration": lambda: None})
    assert run.load() == {"iteration": 1}
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]


def test_a_stage_is_done_once(tmp_path):
    calls = []

    def work() -> dict:
        calls.append(1)
        return {"success": 0.5}

    first = Run(tmp_path).once("clone", work)
    again = Run(tmp_path, resume=True).once("clone", work)
    assert calls == [1] and first == again
    assert again["success"] == 0.5 and again["seconds"] >= 0


def test_a_stage_that_fails_is_done_again(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.once("clone", _interrupted)
    assert run.once("clone", dict).keys() == {"seconds", "peak_memory"}


@pytest.mark.skipif(not runs.CLEAR_REFS.exists(), reason="this system tells no peaks")
def test_a_stage_reports_the_most_memory_that_it_held(tmp_path):
    run, size = Run(tmp_path), 256 * 2**20

    def hold() -> None:
        np.ones(size, np.uint8)  # given back at once

    def hold_then_rest() -> None:
        hold()
        run.once("rest", dict)

    large, small = run.once("large", hold), run.once("small", dict)
    around = run.once("around", hold_then_rest)
    for held, little in ((large, small), (around, run.once("rest", dict))):
        assert held["peak_memory"] - little["peak_memory"] == pytest.approx(size, rel=0.1)


def test_where_the_system_says_nothing_of_memory_it_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    monkeypatch.setattr(runs, "STATUS", tmp_path / "missing" / "status")
    assert Run(tmp_path / "run").once("clone", dict)["peak_memory"] == 0


def test_stages_have_folders_of_their_own(tmp_path):
    run = Run(tmp_path, Config())
    run.stage("clone").save({"a": 1})
    assert run.load() is None
    assert Run(tmp_path, Config(), resume=True).stage("clone").load() == {"a": 1}


def _interrupted() -> dict:
    raise KeyboardInterrupt
