"""The command `wm-gym agree`: who plays under which noise, what is written, how it goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from policies.base import Policy
from tests.fakes import imagined
from tests.trainers.toy import ToyEnv, ToyPolicy
from tests.trainers.two_worlds import HALF, Pusher
from trainers import audit as audit_module
from trainers.agree import NOISE, AgreeConfig, NoisyPolicy, agree, checkpoints, settle
from trainers.cli import main


def winner(count: int) -> Pusher:
    """Wins from the brightest `count` of the 5 starts.

    Start s ends at the level 100 + s + 74 + count after 64 steps, and 178.5 is a success.
    """
    return Pusher((74 + count) / 64)


@pytest.fixture
def three(world):
    """Three policies that win from 1, 3 and 5 of 5 starts; the real world asks for a level more."""
    world.policies = {f"a/{count}": winner(count) for count in (1, 3, 5)}
    world.predicate = HALF + 1 / 255
    return world


def settings(**options) -> AgreeConfig:
    given = {"policies": ("a/1", "a/3", "a/5"), "noise": (0.0,), "episodes": 5, "workers": 3}
    return AgreeConfig(**(given | {"out": Path("out")} | options))


def report(**options) -> dict:
    config = settings(**options)
    agree(config)
    return json.loads((config.out / "agreement.json").read_text())


def rates(found: dict, world: str) -> list[float]:
    return [row[world]["rate"] for row in found["policies"]]


def test_every_policy_plays_from_the_same_starts_in_both_worlds(three):
    found = report()
    assert rates(found, "imagined") == [0.2, 0.6, 1.0]
    assert rates(found, "real") == [0.0, 0.4, 0.8]
    assert found["policies"][1]["imagined_success"] == [False, False, True, True, True]
    assert found["policies"][1]["real_success"] == [False, False, False, True, True]
    assert found["policies"][1]["bias"]["points"] == pytest.approx(20)


def test_agreement_is_that_of_the_policies_played(three):
    found = report()["agreement"]
    assert (found["policies"], found["starts"]) == (3, 5)
    assert (found["pearson"], found["mmrv"]) == (1.0, 0.0)
    assert found["bias_points"] == pytest.approx(20)
    assert found["calibration_intercept"] == pytest.approx(-0.2)


def test_a_success_ends_an_episode_and_counts(three):
    three.policies["a/5"] = Pusher(2.0)  # at the level of success after 40 steps of 64
    found = report(policies=("a/5",), noise=(0.0, 1e-6, 2e-6))
    assert rates(found, "imagined") == [1.0, 1.0, 1.0]
    assert len(three.played["imagined"]) == 3 * 5  # decisions of 8 steps


def test_both_worlds_play_under_the_same_noise(three):
    three.policies["a/1"], three.grip = Pusher(0.0), 0.5  # nobody wins, nobody stops
    three.predicate = 1.0
    three.judge.threshold = 1.0
    report(policies=("a/1",), noise=(0.0, 0.1, 2.0))
    first, second = (np.stack(three.played[name]) for name in ("imagined", "real"))
    assert first.shape == (3 * 8, 5, 8, 7) and np.array_equal(first, second)
    assert not first[:8].any()
    assert np.unique(first[8:16]).size > 0.9 * 8 * 5 * 8 * 7  # new at every step of every start
    assert first[8:16].std() == pytest.approx(0.1, rel=0.05)
    assert np.abs(first[16:]).max() == 1.0  # clipped


def test_policies_play_greedily(three):
    report()
    assert {greedy for *_, greedy in three.policies["a/1"].told} == {True}


def test_noise_is_a_function_of_seed_start_and_step():
    env = imagined(3, chunk=8, autoreset_mode="disabled")

    def actions(starts, seed=0, steps=0, noise=0.1):
        obs, _ = env.reset(seed=0, options={"start": np.array(starts)})
        for _ in range(steps):
            obs, *_ = env.step(np.zeros((3, 8, 7), np.float32))
        return NoisyPolicy(Pusher(0.0), noise, seed, env).act(obs, env.instructions).action

    one = actions([0, 1, 2])
    assert torch.equal(actions([2, 0, 1]), one[[2, 0, 1]])
    assert torch.allclose(actions([0, 1, 2], noise=0.2), 2 * one)
    for other in (one[[1, 2, 0]], actions([0, 1, 2], seed=1), actions([0, 1, 2], steps=1)):
        assert not (other == one).any()


def test_a_noisy_policy_is_a_policy_that_speaks_of_its_decision():
    env, inside = ToyEnv(2), ToyPolicy()
    torch.nn.init.normal_(inside.table)
    obs, _ = env.reset(seed=[0, 1], options={"start": np.array([0, 1])})
    noisy = NoisyPolicy(inside, 0.3, 0, env)
    assert isinstance(noisy, Policy) and list(noisy.parameters()) == [inside.table]
    quiet, loud = (player.act(obs, [], greedy=True) for player in (inside, noisy))
    assert torch.equal(quiet.sample, loud.sample) and not torch.equal(quiet.action, loud.action)
    assert torch.equal(noisy.log_prob(obs, [], loud.sample), loud.log_prob)


def test_an_interrupted_command_goes_on_with_the_next_policy(three, monkeypatch):
    def fail(*args, **options):
        raise KeyboardInterrupt

    act = Pusher.act
    monkeypatch.setattr(three.policies["a/5"], "act", fail)
    with pytest.raises(KeyboardInterrupt):
        report()
    assert not Path("out/agreement.json").exists()
    for name in ("a/1", "a/3"):
        monkeypatch.setattr(three.policies[name], "act", fail)  # whoever plays again is caught
    monkeypatch.setattr(three.policies["a/5"], "act", act.__get__(three.policies["a/5"]))
    assert rates(report(), "real") == [0.0, 0.4, 0.8]


def test_a_finished_command_is_shown_again_without_playing(three, capsys):
    first, shown = report(), capsys.readouterr().out
    three.made.clear()
    again = report()
    assert not three.made and capsys.readouterr().out == shown
    assert again["policies"] == first["policies"]


def test_results_are_not_taken_for_those_of_other_weights(three):
    report()
    with torch.no_grad():
        three.policies["a/3"].levels += 1
    with pytest.raises(ValueError, match=r"another config .*weights\..* choose another folder"):
        report()


def test_worlds_are_closed(three):
    report()
    assert [name for name, _ in three.made] == ["imagined", "real"] * 3
    assert all(env.unwrapped.closed for _, env in three.made)


@pytest.mark.parametrize(
    ("policies", "noises"), [(1, NOISE), (2, NOISE[:5]), (4, NOISE[:3]), (9, NOISE[:2]), (10, (0,))]
)
def test_without_a_word_on_noise_there_are_ten_policies(monkeypatch, policies, noises):
    names = [f"lift/policy_{i}" for i in range(policies)]
    monkeypatch.setattr(audit_module, "bundled", lambda: names)
    found = settle(AgreeConfig())
    assert (found.policies, found.noise) == (tuple(names), tuple(noises))
    assert (found.world_model, found.success) == ("lift", "lift")


def test_a_run_also_gives_its_checkpoints(tmp_path):
    for name in ("policy_base", "policy_improved_0"):
        (tmp_path / name).mkdir()
    for seed in (0, 1):
        stage = tmp_path / f"training/grpo_{seed}"
        for name in ("00005", "00010"):
            (stage / "policies" / name).mkdir(parents=True)
        (stage / "config.json").write_text('{"iterations": 10}')
    # The last one of seed 0 is policy_improved_0; seed 1 has not come so far.
    kept = ("grpo_0/policies/00005", "grpo_1/policies/00005", "grpo_1/policies/00010")
    assert checkpoints(tmp_path) == tuple(str(tmp_path / "training" / name) for name in kept)
    found = settle(AgreeConfig(run=tmp_path)).policies
    named = tuple(str(tmp_path / name) for name in ("policy_base", "policy_improved_0"))
    assert found == named + checkpoints(tmp_path)
    assert settle(AgreeConfig(run=tmp_path, policies=("p",))).policies == ("p",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": ("a/1", "a/3")}, "at least 3 policies, got 2 under 1 noise; name more"),
        ({"noise": (0.0, -0.1)}, r"noises of at least 0, got \(0.0, -0.1\); mend --noise"),
        ({"noise": (0.0, 0.1, 0.1)}, "different noises"),
        ({"noise": (float("nan"),)}, "different noises of at least 0"),
        ({"episodes": 0}, "episodes must be an integer at least 1"),
        ({"episodes": 6}, "5 validation starts for 6 episodes"),
        ({"policies": ("a/1", "a/1", "a/3")}, "every policy once"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(three, options, message):
    with pytest.raises(ValueError, match=message):
        report(**options)
    assert not Path("out").exists() and not three.made


def test_the_command_writes_its_report_its_picture_and_its_table(three, monkeypatch, capsys):
    arguments = "agree --policies a/1 a/3 a/5 --noise 0 1e-6 --episodes 5 --workers 3 --out out"
    monkeypatch.setattr(sys, "argv", ["wm-gym", *arguments.split(), "--split", "test"])
    main()
    assert three.asked == ("Lift", "test", None)
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 0 60.0 % [23.1, 88.2] (n = 5) 40.0 % [11.8, 76.9] (n = 5) +20.0 points" in printed
    assert "Pearson's r 1.000 of 6 policies, 95 % - over policies" in printed
    assert "MMRV 0.000 (by the other convention 0.000). Bias +20.0 points." in printed
    assert "real = -0.200 + 1.000 x imagined." in printed
    assert printed.endswith("Written to out: agreement.json, agreement.png")
    assert Image.open("out/agreement.png").width == 768  # 6.4 inches at 120 pixels an inch
    found = json.loads(Path("out/agreement.json").read_text())
    assert found["command"].startswith("wm-gym agree --policies") and found["machine"]
    assert (found["task"], found["split"], found["world_model"]) == ("Lift", "test", "lift")
    names = [(row["policy"], row["noise"]) for row in found["policies"]]
    assert names == [(name, noise) for name in "135" for noise in (0.0, 1e-6)]
    assert set(found["policies"][0]["played"]) == {"commit", "date", "seconds"}
    assert found["weights"]["policies"].keys() == set("135")
