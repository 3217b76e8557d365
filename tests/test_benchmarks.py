"""The benchmark of the environment's own cost, on fakes: what it times and what it writes."""

from __future__ import annotations

import json

import gymnasium as gym
import pytest
import torch

from benchmarks import env_overhead
from benchmarks.env_overhead import OverheadConfig, bare_call, frozen, main, overhead
from tests.fakes import FakeSuccess, FakeWorldModel, fake_pool
from wm_gym.imagined import ImaginedVectorEnv


@pytest.fixture
def model(monkeypatch) -> FakeWorldModel:
    """A world model that counts its calls, in every world that is made."""
    model = FakeWorldModel()

    def make_vec(id, **options):
        assert id == "wm_gym/Lift-v0"
        fakes = {"world_model": model, "success": FakeSuccess(0.0), "starts": fake_pool()}
        return ImaginedVectorEnv("Lift", **fakes, **options)

    monkeypatch.setattr(gym, "make_vec", make_vec)
    return model


def test_the_bare_call_imagines_all_rows_once(model):
    with torch.inference_mode():
        call = bare_call(env_overhead.make(OverheadConfig(chunk=4), 3, horizon=4))
        call()
    assert model.rows_imagined == [3]


@pytest.mark.parametrize(("deterministic", "rows"), [(False, 3), (True, 1)])
def test_rows_are_all_played_in_every_step_and_in_one_call_unless_exact(model, deterministic, rows):
    # Every picture is a success to this classifier, and still no row ends or is reset.
    row = overhead(OverheadConfig(chunk=2, seconds=0.01, repeats=1), 3, deterministic)
    assert set(model.rows_imagined) == {3, rows}
    assert list(row) == ["num_envs", "chunk", "model_seconds", "env_seconds", "overhead"]
    assert row["overhead"] == pytest.approx(row["env_seconds"] / row["model_seconds"] - 1)
    assert row["env_seconds"] > row["model_seconds"] > 0


def test_three_quarters_are_finished_while_one_plays(model):
    found = frozen(OverheadConfig(chunk=2, frozen_envs=8, repeats=1))
    assert model.rows_imagined == [8] + [8, 2] * 4
    assert found["ratio"] == found["quarter_seconds"] / found["full_seconds"]


def test_the_file_is_what_the_issue_publishes(model, tmp_path):
    path = tmp_path / "env_overhead.json"
    main(OverheadConfig(num_envs=(1, 2), seconds=0.01, repeats=1, frozen_envs=4, path=path))
    written = json.loads(path.read_text())
    assert {"command", "commit", "machine", "date", "rows", "frozen"} <= written.keys()
    assert [row["num_envs"] for row in written["rows"]] == [1, 2]
    assert written["rows"][0].keys() == written["deterministic_rows"][0].keys()
    assert set(written["frozen"]) == {"full_seconds", "quarter_seconds", "ratio"}
