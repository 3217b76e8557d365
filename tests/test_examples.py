"""The examples run as they are, but for how much they play; those of SB3 are in bridges/."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest

from policies import TokenVLA
from tests.fakes import ScriptedEnv, fake_pool

EXAMPLES = Path(__file__).parents[1] / "examples"
NEVER = 99


def play(name: str, **changes: str) -> None:
    """Run an example with parts of its text replaced, each of which must be there."""
    source = (EXAMPLES / f"{name}.py").read_text()
    for old, new in changes.items():
        assert old in source
        source = source.replace(old, new)
    exec(compile(source, name, "exec"), {"__name__": "__main__"})


class Seen(ScriptedEnv):
    """Pictures of 64 pixels, as the bundled policy wants them."""

    def picture(self, rows: np.ndarray, elapsed: np.ndarray) -> np.ndarray:
        return super().picture(rows, elapsed).repeat(8, axis=1).repeat(8, axis=2)


def test_imagined_robots_are_filmed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    play("imagine", **{"num_envs=16": "num_envs=4", "range(6)": "range(2)"})
    film = iio.imread("imagined.mp4", plugin="FFMPEG")
    assert len(film) == 17 and film.std() > 1  # the first picture, and two chunks of 8


def test_the_same_policy_plays_in_both_worlds(monkeypatch, capsys):
    made = []

    def make_vec(id, num_envs, backend, chunk, split, autoreset_mode):
        made.append((id, backend, split))
        wins = [1 if backend == "imagined" or row < 3 else NEVER for row in range(num_envs)]
        pool = fake_pool(size=16, image_size=64)
        return Seen(wins, chunk=chunk, starts=pool, autoreset_mode=autoreset_mode)

    monkeypatch.setattr(gym, "make_vec", make_vec)
    play("swap_worlds")
    lift = "wm_gym/Lift-v0"
    assert made == [(lift, "imagined", "validation"), (lift, "real", "validation")]
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "imagined: 16 of 16 episodes lift the cube",
        "real: 3 of 16 episodes lift the cube",
    ]


def test_a_policy_practises_in_a_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = "iterations=1, max_attempts=1, min_kept=0.0, eval_episodes=8"
    play("train_grpo", **{"iterations=5": short, "128": "16", "64": "8"})
    lines = Path("runs/train_grpo/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert json.loads(lines[1])["rollout/episodes"] == 16
    assert TokenVLA.from_pretrained("runs/train_grpo/policy").chunk == 8


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short_and_say_what_they_show(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60 and lines[0].startswith('"""')
