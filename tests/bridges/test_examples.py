"""The examples that use Stable-Baselines3 run as they are, on scripted worlds and few steps."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium as gym
import pytest

pytest.importorskip("stable_baselines3")

from tests.bridges.worlds import NEVER, Large

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["sb3_ppo", "sb3_sac"])
def test_an_example_trains_in_the_imagined_world_and_is_judged_in_the_real_one(
    name, tmp_path, monkeypatch, capsys
):
    made = []

    def make_vec(id, num_envs, backend, autoreset_mode, split, **options):
        made.append((id, backend, split))
        wins = [1 if backend == "real" else NEVER] * 2  # so that the two can be told apart
        return Large(wins, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gym, "make_vec", make_vec)
    source = (EXAMPLES / f"{name}.py").read_text()
    source = re.sub(r"(STEPS|DECISIONS) = [\d_]+", r"\1 = 8", source)
    source = source.replace("learning_starts=512", "learning_starts=4")
    exec(compile(source, name, "exec"), {"__name__": "__main__"})
    lift = "wm_gym/Lift-v0"
    assert made == [(lift, "imagined", "train"), (lift, "real", "validation")]
    assert "100% of 16 real episodes lift the cube" in capsys.readouterr().out
