import json
from contextlib import nullcontext
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from policies.base import Act
from policies.token import TokenVLA, TokenVLAConfig
from tests.fakes import ScriptedEnv, fake_pool
from trainers import bc, compare, grpo, wmpo
from trainers.rollout import device_of
from trainers.settings import USED_BY, WMPOConfig, check, open_run
from wm_gym.data import EpisodeWriter
from wm_gym.runs import Run
from wm_gym.success.training import SuccessTrainingConfig
from wm_gym.tasks import TASKS
from wm_gym.world_model.motion import MotionTrainingConfig
from wm_gym.world_model.reading import ReadingTrainingConfig
from wm_gym.world_model.training import WorldModelTrainingConfig


def test_a_stage_without_the_ones_before_it_says_which_is_missing(tmp_path):
    config = WMPOConfig(out=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no finished stage 'starts', which 'clone'"):
        wmpo.do("clone", config, wmpo.STAGES)


def test_a_finished_stage_is_not_done_again(tmp_path):
    config, calls = WMPOConfig(out=tmp_path), []
    stages = {"one": lambda c, r: calls.append("one") or {"n": 1}}
    first = wmpo.do("one", config, stages)
    assert wmpo.do("one", config, stages) == first and first["n"] == 1
    assert calls == ["one"]


def test_an_unknown_task_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="Unknown task 'Foo'"):
        wmpo.do("starts", WMPOConfig(task="Foo", out=tmp_path / "run"), wmpo.STAGES)
    assert not (tmp_path / "run").exists()


def test_an_unknown_preset_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="preset must be one of 'nano', .*'huge'"):
        wmpo.do("starts", WMPOConfig(preset="huge", out=tmp_path / "run"), wmpo.STAGES)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imagined_envs": 100}, r"imagined_envs .* multiple of grpo.group_size \(8\), got 100"),
        ({"grpo": grpo.GRPOConfig(eval_episodes=60)}, "grpo.eval_episodes .* multiple .* got 60"),
        ({"grpo": grpo.GRPOConfig(epochs=0)}, "grpo.epochs must be an integer at least 1, got 0"),
        ({"clone": bc.BCConfig(dtype="half")}, "clone.dtype must be one of"),
        ({"clone": bc.BCConfig(validate_every=0)}, "clone.validate_every must be an integer at"),
        (
            {"world_model": WorldModelTrainingConfig(validate_every=0)},
            "world_model.validate_every must be an integer at least 1, got 0",
        ),
        ({"budget": 1280}, "budget must be an integer from 1 to 512, got 1280"),
        ({"budget": 0}, "budget must be an integer from 1 to 512, got 0"),
        ({"demonstrations": 512}, "demonstrations must be an integer from 1 to 511, got 512"),
        ({"play": -1}, "play must be at least 0, got -1"),
        ({"unfilmed": -1}, "unfilmed must be at least 0, got -1"),
        ({"moments": -1}, "moments must be at least 0, got -1"),
        ({"clone": bc.BCConfig(steps=0)}, "clone.steps must be an integer at least 1, got 0"),
        ({"world_model": WorldModelTrainingConfig(held_out=0)}, "held_out must lie between 0 and"),
        (
            {"world_model": WorldModelTrainingConfig(weights={"rollout": 3.0})},
            "weights must be one of 'demonstrations', 'play', 'rollouts', got 'rollout'",
        ),
        ({"workers": 0}, "workers must be an integer at least 1, got 0"),
        (
            {"world_model": WorldModelTrainingConfig(reading=ReadingTrainingConfig(steps=0))},
            "world_model.reading.steps must be an integer at least 1, got 0",
        ),
        (
            {"world_model": WorldModelTrainingConfig(motion=MotionTrainingConfig(single=75))},
            "world_model.motion.single must be a share from 0 to 1, got 75",
        ),
        ({"success": SuccessTrainingConfig(folds=1)}, "success.folds must be at least 2, got 1"),
        (
            {"grpo": grpo.GRPOConfig(max_episodes=100)},
            "grpo.max_episodes must allow one wave of 128 episodes",
        ),
        ({"grpo_seeds": (1, 1)}, "grpo_seeds must be one or more different seeds"),
        ({"clone": bc.BCConfig(seed=1)}, "clone.seed follows seed: .*; got 1"),
        ({"world_model": WorldModelTrainingConfig(seed=2)}, "world_model.seed follows seed"),
        ({"success": SuccessTrainingConfig(seed=3)}, "success.seed follows seed"),
        ({"grpo": grpo.GRPOConfig(seed=4)}, "grpo.seed follows seed and grpo_seeds: .*; got 4"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        wmpo.do("starts", WMPOConfig(out=tmp_path / "run", **options), wmpo.STAGES)
    assert not (tmp_path / "run").exists()


def test_a_task_of_another_size_than_the_preset_draws_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "Large", replace(TASKS["Lift"], name="Large", image_size=128))
    with pytest.raises(ValueError, match="recorded at 128 x 128 .* 'nano-object' draws 64 x 64"):
        wmpo.do("starts", WMPOConfig(task="Large", out=tmp_path / "run"), wmpo.STAGES)
    assert not (tmp_path / "run").exists()


def test_every_start_may_be_asked_for_once():
    check(WMPOConfig(budget=512, play=0, demonstrations=512))


def test_more_play_than_starts_begins_where_it_began_before(tmp_path, monkeypatch):
    recorded = {}
    monkeypatch.setattr(wmpo, "simulations", lambda config: nullcontext())
    monkeypatch.setattr(wmpo, "load_starts", lambda *_: range(512))
    monkeypatch.setattr(
        wmpo,
        "record_expert",
        lambda *given, source, **told: recorded.update({source: (given[3].tolist(), told)}),
    )
    config = WMPOConfig(out=tmp_path, seed=3, play=600, demonstrations=7, unfilmed=514)
    report = wmpo.demonstrations(config, Run(tmp_path, config))
    (play, told), (demonstrated, _), (unfilmed, blind) = recorded.values()
    assert report == {"play": 600, "demonstrations": 7, "unfilmed": 514} and len(demonstrated) == 7
    assert play[505:] == play[:95] and sorted(play[:505] + demonstrated) == list(range(512))
    assert unfilmed == [*range(512), 0, 1]
    assert told["filmed"] and not blind["filmed"]
    assert told["seed"] == 3 != blind["seed"]  # else both would be the same play


def test_options_may_change_until_a_stage_that_follows_them_is_done(tmp_path):
    def do(stage, **options):
        wmpo.do(stage, WMPOConfig(out=tmp_path, **options), dict.fromkeys(wmpo.STAGES, nothing))

    for stage in ("starts", "demonstrations"):
        do(stage)
    do("clone", budget=64)
    with pytest.raises(ValueError, match=r"\(play: 580 there, 9 now; seed: 0 there, 1 now\)"):
        do("rollouts", budget=64, play=9, seed=1)
    do("rollouts", budget=64)
    with pytest.raises(ValueError, match="budget: 64 there, 128 now"):
        do("train-world-model", budget=128)
    warm, long = grpo.GRPOConfig(temperature=1.6), grpo.GRPOConfig(iterations=80)
    with pytest.raises(ValueError, match=r"grpo\.temperature: 1\.0 there, 1\.6 now"):
        do("train-world-model", budget=64, grpo=warm)  # rollouts were sampled at 1
    do("train-world-model", budget=64, grpo=long)
    noted = json.loads((tmp_path / "config.json").read_text())
    assert noted["budget"] == 64 and noted["grpo"]["iterations"] == 80


def nothing(config, run) -> dict:
    return {}


def test_a_refused_command_leaves_the_options_of_a_run_as_they_were(tmp_path):
    stages = dict.fromkeys(wmpo.STAGES, nothing)
    wmpo.do("starts", WMPOConfig(out=tmp_path), stages)
    with pytest.raises(FileNotFoundError, match="no finished stage 'demonstrations'"):
        wmpo.do("grpo", WMPOConfig(out=tmp_path, imagined_envs=64), stages)
    assert json.loads((tmp_path / "config.json").read_text())["imagined_envs"] == 128


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        (wmpo.demonstrations, {"play": 20}, "play: 580 there, 20 now"),
        (wmpo.rollouts, {"grpo": grpo.GRPOConfig(temperature=1.6)}, "temperature: 1.0 there, 1.6"),
        (wmpo.rollouts, {"budget": 64}, "budget: 128 there, 64 now"),
    ],
)
def test_an_interrupted_recording_goes_on_with_what_it_began_with(
    tmp_path, monkeypatch, stage, options, message
):
    def interrupted(*given, **told):
        raise KeyboardInterrupt

    monkeypatch.setattr(wmpo, "load_starts", interrupted)
    monkeypatch.setattr(TokenVLA, "from_pretrained", interrupted)
    config = WMPOConfig(out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stage(config, open_run(config))
    other = replace(config, **options)
    with pytest.raises(ValueError, match=message):
        stage(other, open_run(other))


def test_every_option_has_stages_that_follow_it():
    options = {field.name for field in fields(WMPOConfig)} - {"out", "workers", "task", "seed"}
    groups = {name.partition(".")[0] for name in USED_BY}
    assert groups == options
    assert {stage for stages in USED_BY.values() for stage in stages} < set(wmpo.STAGES)


def test_seeds_of_grpo_differ_in_nothing_else(tmp_path, monkeypatch):
    config = WMPOConfig(out=tmp_path)
    run = Run(tmp_path, config)
    monkeypatch.setattr(wmpo, "practise", lambda *given: (None, {}))
    monkeypatch.setattr(wmpo, "keep", lambda *given: None)
    wmpo.improve(replace(config, grpo_seeds=(0,)), run)
    with pytest.raises(ValueError, match=r"grpo_0.*\(imagined_envs: 128 there, 64 now\)"):
        wmpo.improve(replace(config, imagined_envs=64), run)
    assert not run.is_done("policy_improved_1")


@pytest.mark.parametrize("unanimous", [True, False])
def test_practice_alone_is_paid_for_what_every_member_sees(tmp_path, monkeypatch, unanimous):
    made = {}

    def env(config, run, split, n, **options):
        made[split] = options.get("unanimous", False)
        return split

    def train(settings, policy, world, stage, validation):
        assert (world, validation) == ("train", "validation")
        stage.log(1, dict.fromkeys(("rollout/success_rate", "rollout/episodes", "time/seconds"), 1))

    monkeypatch.setattr(wmpo, "imagined_env", env)
    monkeypatch.setattr(wmpo, "load_starts", lambda *given: None)
    monkeypatch.setattr(TokenVLA, "from_pretrained", lambda *given, **told: None)
    monkeypatch.setattr(wmpo.grpo, "train", train)
    config = WMPOConfig(out=tmp_path, moments=0, unanimous=unanimous)
    run = Run(tmp_path, config)
    wmpo.practise(config, run, config.grpo, run.stage("grpo_0", {}))
    assert made == {"train": unanimous, "validation": False}


class Sampler(torch.nn.Linear):
    """A policy of chance alone."""

    def act(self, obs, instructions, *, generator):
        action = torch.rand(len(instructions), 8, 7, generator=generator)
        return Act(action, action, action)


def test_rollouts_that_were_interrupted_go_on_to_the_same_data(tmp_path, monkeypatch):
    def env(config, run, split, n, **options):
        world = {"chunk": 8, "autoreset_mode": "disabled", "starts": fake_pool(size=40)}
        return ScriptedEnv([99] * n, **world, **options)

    monkeypatch.setattr(wmpo, "real_env", env)
    monkeypatch.setattr(wmpo, "STARTS", {"train": 40})
    monkeypatch.setattr(wmpo.TokenVLA, "from_pretrained", lambda folder: Sampler(1, 1))
    config, append = WMPOConfig(budget=36, seed=3), EpisodeWriter.append

    def stop(self, episode):
        if len(self) == 34:  # in the second wave: the first one has 32 episodes
            raise KeyboardInterrupt
        append(self, episode)

    whole, halves = Run(tmp_path / "whole"), Run(tmp_path / "halves")
    wmpo.rollouts(config, whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpisodeWriter, "append", stop)
        wmpo.rollouts(config, halves)
    assert wmpo.rollouts(config, halves) == {"rollouts": 36, "successes": 0}
    found = [wmpo.episodes(run, "rollouts") for run in (whole, halves)]
    assert [e.start for e in found[0]] == [e.start for e in found[1]]
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(*found, strict=True))
    assert not np.array_equal(found[0][0].actions, found[0][32].actions)  # waves differ


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Clone nothing, on a device of its own; return on which device policies were to be cloned."""
    found = []

    def train(config, policy, chunks, run, validate=None):
        found.append(device_of(policy).type)
        run.log(1, {"eval/score": 0.5, "time/steps_per_second": 5.0})
        return policy

    for module in (wmpo, compare):
        monkeypatch.setattr(module, "device", lambda: torch.device("meta"))
        monkeypatch.setattr(module, "episodes", lambda run, *sources: [])
        monkeypatch.setattr(module, "keep", lambda policy, folder: policy)
    monkeypatch.setattr(bc, "chunks_from", lambda *_, **options: None)
    monkeypatch.setattr(bc, "train", train)
    return found


def test_policies_are_cloned_where_grpo_trains(tmp_path, monkeypatch, trained):
    config, run = WMPOConfig(), Run(tmp_path)
    monkeypatch.setattr(wmpo, "real_env", lambda *_: ScriptedEnv([1]))
    run.once("clone", lambda: wmpo.clone(config, run))
    run.once("policy_improved_0", lambda: {"practice_seconds": 3.0})
    TokenVLA(TokenVLAConfig()).save_pretrained(tmp_path / "policy_base")
    assert compare.controls(config, run) == {"steps": 15, "grpo_seconds": 3.0}
    assert trained == ["meta"] * 3


def finished_run(folder, seed, base, *improved, rollouts=5):
    """A run folder as the stages would leave it: successes on the test starts, by GRPO seed."""
    config = WMPOConfig(out=folder, seed=seed, grpo_seeds=tuple(range(len(improved))))
    run = Run(folder, config)
    reports = {
        "demonstrations": {"demonstrations": 3, "play": 4, "unfilmed": 9},
        "rollouts": {"rollouts": rollouts},
        "clone": {"validation_episodes": 6},
        "grpo": {"policy_improved_0": {"practice_seconds": 90.0}},  # interrupted, and resumed
        "test": {},
        "test_real_policy_base": {"success": base},
        "test_imagined_policy_base": {"success": base},
    }
    for world in ("real", "imagined"):
        for grpo_seed, success in enumerate(improved):
            reports[f"test_{world}_policy_improved_{grpo_seed}"] = {"success": success}
    for name in compare.CONTROLS:
        reports[f"test_real_policy_{name}"] = {"success": base}
    for name, report in reports.items():
        run.once(name, lambda report=report: report)
    return folder


def test_publish_pools_runs_and_counts_episodes(tmp_path):
    runs = [
        finished_run(tmp_path / "a", 0, [False, False, True, True], [True, True, True, True]),
        finished_run(tmp_path / "b", 1, [False, False, True, True], [True, False, True, True]),
    ]
    table = compare.publish(runs, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert [r["paired_difference"]["points"] for r in content["runs"]] == [50.0, 25.0]
    assert content["pooled"]["points"] == 37.5
    assert content["controls"]["clone_longer"]["n"] == 8
    assert content["real_episodes"] == {
        "demonstrations": 3,
        "play": 4,
        "unfilmed": 9,
        "rollouts": 5,
        "validation": 6,
    }
    assert "test_real_policy_base" not in content["wall_seconds"]
    assert content["wall_seconds"]["grpo"] == 90.0
    assert "+37.5 points" in table


def test_publish_averages_the_seeds_of_a_replicate_before_it_pools(tmp_path):
    fail, half, succeed = [False] * 4, [True, True, False, False], [True] * 4
    runs = [
        finished_run(tmp_path / "a", 0, fail, succeed, half, fail),  # 100, 50 and 0 points: 50
        finished_run(tmp_path / "b", 1, fail, fail),  # 0 points
    ]
    compare.publish(runs, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert [(r["replicate"], r["seed"]) for r in content["runs"]] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
    ]
    assert content["pooled"]["points"] == 25.0  # not the 37.5 of four runs
    # Both replicates drawn alike in half of the draws: the second alone gains nothing.
    assert content["pooled"]["low"] == 0.0


def test_publish_refuses_a_replicate_twice_and_other_budgets(tmp_path):
    flags = [False, True]
    one, again = (finished_run(tmp_path / name, 0, flags, flags) for name in "ab")
    larger = finished_run(tmp_path / "c", 1, flags, flags, rollouts=9)
    with pytest.raises(ValueError, match="b is replicate 0 once more"):
        compare.publish([one, again], tmp_path / "results.json")
    with pytest.raises(ValueError, match=r"c used .*'rollouts': 9.* pool runs of one budget"):
        compare.publish([one, larger], tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


def test_publish_names_an_unfinished_run(tmp_path):
    Run(tmp_path / "c", WMPOConfig(out=tmp_path / "c"))
    with pytest.raises(FileNotFoundError, match="has no finished test"):
        compare.publish([tmp_path / "c"], tmp_path / "results.json")
