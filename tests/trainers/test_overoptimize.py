"""The command `wm-gym overoptimize`: what is practised, what is played, where the worlds part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.trainers.two_worlds import Pusher
from trainers import overoptimize as module
from trainers.agree import AgreeConfig, compared
from trainers.audit import Models
from trainers.grpo import GRPOConfig
from trainers.overoptimize import (
    OveroptimizeConfig,
    misleads_at,
    overoptimize,
    parts_at,
    repeat,
    strict,
)
from wm_gym.evaluation.statistics import wilson
from wm_gym.runs import Run
from wm_gym.success.classifier import SuccessClassifier, SuccessConfig

N = 40
# Of 40 episodes each: how many succeed in imagination and really, by iteration.
PLAYED = {0: (20, 18), 10: (28, 26), 20: (36, 24), 30: (40, 12)}
# Of the same actions in both worlds: how many of the first 20 episodes, which fail in the
# simulator, succeed in imagination. The other 20 succeed in both.
HALLUCINATED = {0: 1, 10: 2, 20: 5, 30: 20}


def outcomes(iteration: int) -> dict[str, list[bool]]:
    return {
        world: [i < successes for i in range(N)]
        for world, successes in zip(("imagined", "real"), PLAYED[iteration], strict=True)
    }


@pytest.fixture
def lab(monkeypatch, tmp_path) -> SimpleNamespace:
    """A finished run, and practice that keeps a policy every ten iterations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "check_robosuite", lambda: None)
    Run("lift", {"task": "Lift", "seed": 5, "imagined_envs": 8, "moments": 0, "budget": 128})
    here = SimpleNamespace(practised=[], played=[], limits=[])
    judge = SuccessClassifier(SuccessConfig(threshold=0.6, hold_k=8, hold_n=8))

    def practise(wmpo, base, settings, stage, success, max_uncertainty):
        here.limits.append(max_uncertainty)
        here.practised.append((wmpo, base.folder, settings, success.config))
        for iteration in range(settings.eval_every, settings.iterations + 1, settings.eval_every):
            (stage.folder / "policies" / f"{iteration:05d}").mkdir(parents=True)
        return None, {"episodes": 9}

    def play_both(agree, policy, noise, models, pool):
        here.played.append((policy, noise, agree.episodes, models.success.config.threshold))
        return outcomes(int(policy.removeprefix("policy_base") or 0))

    monkeypatch.setattr(module, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(module, "load_world_model", lambda path, device: torch.nn.Linear(1, 1))
    monkeypatch.setattr(module, "fingerprint", lambda model: "f")
    monkeypatch.setattr(SuccessClassifier, "from_pretrained", lambda path, device: judge)
    monkeypatch.setattr(module.TokenVLA, "from_pretrained", lambda path, device: path.name)
    monkeypatch.setattr(module, "first_starts", lambda agree: agree.starts)
    monkeypatch.setattr(module, "practise", practise)

    def repeat(agree, policy, models, pool):
        hallucinated = HALLUCINATED[int(policy.removeprefix("policy_base") or 0)]
        real = [i >= 20 for i in range(N)]
        return {"real": real, "imagined": [i < hallucinated or done for i, done in enumerate(real)]}

    monkeypatch.setattr(module, "play_both", play_both)
    monkeypatch.setattr(module, "repeat", repeat)
    return here


def settings(**options) -> OveroptimizeConfig:
    given = {"run": Path("lift"), "iterations": 30, "every": 10, "episodes": N, "out": Path("out")}
    return OveroptimizeConfig(**(given | options))


def test_every_kept_policy_plays_in_both_worlds_and_the_worlds_part(lab, capsys):
    overoptimize(settings())
    found = json.loads(Path("out/overoptimize.json").read_text())
    assert [r["iteration"] for r in found["rows"]] == [0, 10, 20, 30]
    assert [r["bias"]["points"] for r in found["rows"]] == pytest.approx([5, 5, 30, 70])
    # 12 of 40 differ after 20 iterations, 2 before: 25 points, and 2.4 standard errors are 16.
    assert found["parts_at"] == 20
    assert [name for name, *_ in lab.played] == ["policy_base", "00010", "00020", "00030"]
    assert "Imagined success has become optimistic at iteration 20." in capsys.readouterr().out
    assert Path("out/overoptimize.png").stat().st_size > 1000


def test_outcomes_of_the_same_actions_may_differ_sooner_than_rates(lab, capsys):
    overoptimize(settings())
    found = json.loads(Path("out/overoptimize.json").read_text())
    shares = [r["replayed"]["hallucinated_success_rate"] for r in found["rows"]]
    assert [share["successes"] for share in shares] == [1, 2, 5, 20]
    assert {share["n"] for share in shares} == {20}
    assert [r["replayed"]["missed_success_rate"]["rate"] for r in found["rows"]] == [0] * 4
    assert [r["replayed"]["paired_accuracy"]["rate"] for r in found["rows"]] == pytest.approx(
        [39 / 40, 38 / 40, 35 / 40, 20 / 40]
    )
    # 5 of 20 may be as many as 1 of 20, 20 of 20 not.
    assert found["misleads_at"] == 30
    told = capsys.readouterr().out
    assert "Failures are imagined as successes more often at iteration 30." in told
    assert "25.0 % [11.2, 46.9] (n = 20)" in told


def shares(*told: tuple[int, int] | None) -> list[dict]:
    """Rows of a practice: of how many failures how many were imagined as successes."""
    found = [t and wilson(*t)._asdict() for t in told]
    return [
        {"iteration": 10 * i, "replayed": {"hallucinated_success_rate": share}}
        for i, share in enumerate(found)
    ]


def test_policies_without_failures_do_not_mislead():
    assert misleads_at(shares((0, 20), None, (0, 20))) is None
    assert misleads_at(shares((0, 20), None, (12, 20))) == 20
    assert misleads_at(shares(None, (12, 20))) is None  # more than what?
    assert misleads_at(shares((1, 20))) is None


def test_one_of_many_policies_that_errs_more_may_be_chance():
    """2 of 40 and 10 of 40: 20 points more, [4, 35] at 95 %, [-1, 40] at a level for ten rows."""
    assert misleads_at(shares((2, 40), (10, 40))) == 10
    assert misleads_at(shares((2, 40), (10, 40), *[(2, 40)] * 9)) is None


def test_the_simulator_repeats_what_was_imagined(world):
    """Start s has level 100 + s; imagined it gains 1.2 a step, really half of that; 178.5 wins."""
    world.grip, policy = 0.5, Pusher(1.2)
    config = AgreeConfig(episodes=5, workers=3)
    models = Models(world.model, world.judge, {}, {})
    pool = replace(world.pool, split="validation")  # as the command plays
    found = repeat(config, policy, models, pool)
    # After 64 steps 176.8 + s and 138.4 + s.
    assert found == {"imagined": [False, False, True, True, True], "real": [False] * 5}
    assert np.array_equal(*(np.stack(world.played[name]) for name in ("imagined", "real")))
    assert len(world.played["real"]) == 8
    world.grip = 2.0
    found = repeat(config, policy, models, pool)
    assert found == {"imagined": [False, False, True, True, True], "real": [True] * 5}


def test_waves_play_every_start_once(world, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 2)
    models = Models(world.model, world.judge, {}, {})
    found = repeat(AgreeConfig(episodes=5, workers=3), Pusher(1.2), models, world.pool)
    assert found["imagined"] == found["real"] == [False, False, True, True, True]


def test_it_practises_in_the_runs_world_for_as_long_as_is_said(lab):
    overoptimize(settings(seed=3))
    ((wmpo, folder, grpo, paid),) = lab.practised
    assert (wmpo.seed, wmpo.imagined_envs, wmpo.moments, folder) == (5, 8, 0, Path("lift"))
    assert not wmpo.unanimous
    assert (grpo.iterations, grpo.eval_every, grpo.seed) == (30, 10, 3)
    assert (paid.threshold, paid.hold_k, paid.hold_n) == (0.6, 8, 8) and lab.limits == [None]


def test_practice_may_be_paid_by_a_stricter_rule_that_does_not_judge(lab):
    overoptimize(settings(threshold=0.95, hold=16, max_uncertainty=2.0, unanimous=True))
    ((wmpo, *_, paid),) = lab.practised
    assert wmpo.unanimous
    assert (paid.threshold, paid.hold_k, paid.hold_n) == (0.95, 16, 16)
    assert {threshold for *_, threshold in lab.played} == {0.6}
    found = json.loads(Path("out/overoptimize.json").read_text())
    assert lab.limits == [2.0]
    rule = {"threshold": 0.95, "hold_k": 16, "hold_n": 16}
    assert found["paid"] == {**rule, "max_uncertainty": 2.0, "unanimous": True}


@pytest.mark.parametrize(
    ("of_run", "asked", "paid"),
    [({}, None, False), ({"unanimous": True}, None, True), ({"unanimous": True}, False, False)],
)
def test_success_is_unanimous_as_in_the_run_unless_told_otherwise(lab, of_run, asked, paid):
    given = json.loads(Path("lift/config.json").read_text())
    Path("lift/config.json").write_text(json.dumps({**given, **of_run}))
    overoptimize(settings(unanimous=asked))
    assert lab.practised[0][0].unanimous == paid
    assert json.loads(Path("out/overoptimize.json").read_text())["paid"]["unanimous"] == paid
    assert json.loads(Path("out/training/grpo/config.json").read_text())["unanimous"] == paid


def test_a_finished_command_is_shown_again_without_practice_or_play(lab):
    overoptimize(settings())
    once = len(lab.played)
    overoptimize(settings())
    assert len(lab.practised) == 1 and len(lab.played) == once


def test_a_stricter_classifier_has_the_same_weights():
    classifier = SuccessClassifier(SuccessConfig())
    other = strict(classifier, 0.9, None)
    assert (other.threshold, other.hold_k, other.hold_n) == (0.9, 2, 3)
    features = torch.randn(1, 8, 64)
    assert torch.equal(other.eval().logits(features), classifier.eval().logits(features))
    assert classifier.threshold == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be an integer at least 1, got 0"),
        ({"hold": 0}, "hold must be an integer at least 1, got 0"),
        ({"threshold": 0.0}, "threshold must lie between 0 and 1, got 0.0"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1, got 1.0"),
        ({"max_uncertainty": -1.0}, "max_uncertainty must be a number above 0"),
        ({"grpo": GRPOConfig(warmup=0)}, "grpo.warmup must be an integer at least 1, got 0"),
        ({"grpo": GRPOConfig(group_size=3)}, r"multiple of grpo.group_size \(3\), got 8"),
        ({"grpo": GRPOConfig(iterations=7)}, "grpo.iterations follows iterations: .*; got 7"),
        ({"grpo": GRPOConfig(eval_every=7)}, "grpo.eval_every follows every: .*; got 7"),
        ({"grpo": GRPOConfig(seed=7)}, "grpo.seed follows seed: .*; got 7"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(lab, options, message):
    with pytest.raises(ValueError, match=message):
        overoptimize(settings(**options))
    assert not Path("out").exists() and not lab.practised


def test_worlds_that_differ_from_the_start_and_no_more_later_do_not_part():
    biased = compared(real=[i < 20 for i in range(N)], imagined=[True] * N)
    assert parts_at([{"iteration": 0, **biased}, {"iteration": 10, **biased}]) is None


def test_worlds_part_by_the_starts_that_they_part_on():
    """4 of 40 more, all on starts that agreed before; then as many that cancel."""
    begun = compared(real=[False] * N, imagined=[False] * N)
    later = compared(real=[False] * N, imagined=[i < 4 for i in range(N)])
    assert parts_at([{"iteration": 0, **begun}, {"iteration": 10, **later}]) == 10
    swapped = compared(real=[i < 4 for i in range(N)], imagined=[4 <= i < 8 for i in range(N)])
    assert parts_at([{"iteration": 0, **begun}, {"iteration": 10, **swapped}]) is None
