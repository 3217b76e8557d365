"""GRPO on a toy world: it learns, repeats itself bit for bit, and says when it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policies.token import TokenVLA, TokenVLAConfig
from tests.trainers.toy import ToyEnv, ToyPolicy
from trainers import grpo
from trainers.grpo import GRPOConfig
from trainers.losses import clipped_policy_loss
from trainers.rollout import collect, evaluate
from wm_gym.errors import UserError
from wm_gym.runs import Run

CONFIG = GRPOConfig(
    iterations=4,
    group_size=4,
    groups_per_update=4,
    minibatch=8,
    learning_rate=0.1,
    warmup=1,
    dtype="float32",
    eval_every=2,
    eval_episodes=4,
)


def hard(num_envs: int = 16) -> ToyEnv:
    """One action of at least 0.9, and two tries: a uniform policy succeeds 36 times in 100."""
    return ToyEnv(num_envs, horizon=2, needed=0.9)


def train(config, folder, policy=None, resume=False, env=None, validation=True):
    policy = ToyPolicy() if policy is None else policy
    run = Run(folder, config, resume=resume)
    validation_env = hard(8) if validation else None
    grpo.train(config, policy, env or hard(), run, validation_env, progress=False)
    return policy, run


def test_success_rises(tmp_path):
    policy, run = train(replace(CONFIG, iterations=25), tmp_path)
    metrics = run.metrics()
    assert metrics[0]["rollout/success_rate"] < 0.6
    assert metrics[-1]["rollout/success_rate"] > 0.85
    assert evaluate(policy, hard(), range(8), progress=False).success.all()


def test_the_learning_rate_rises_over_the_first_iterations_a_resumed_run_goes_on(
    tmp_path, monkeypatch
):
    used, update = [], grpo.update

    def spy(config, policy, optimizer, *rest):
        used.append(optimizer.param_groups[0]["lr"])
        return update(config, policy, optimizer, *rest)

    monkeypatch.setattr(grpo, "update", spy)
    config = replace(CONFIG, warmup=4, learning_rate=0.02, iterations=6, eval_every=0)
    train(config, tmp_path / "whole")
    assert used == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.02, 0.02])
    used.clear()
    train(replace(config, iterations=2), tmp_path / "parts")
    (tmp_path / "parts/config.json").unlink()
    train(config, tmp_path / "parts", resume=True)
    assert used == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.02, 0.02])


def test_metrics_have_the_documented_names(tmp_path):
    _, run = train(CONFIG, tmp_path)
    assert run.metrics()[2].keys() >= {
        "step",
        "rollout/success_rate",
        "rollout/kept_groups",
        "rollout/episodes",
        "train/approx_kl",
        "train/clip_fraction",
        "train/loss",
        "train/grad_norm",
        "time/sps",
        "eval/success_rate",
    }


def test_episodes_are_counted(tmp_path):
    env = hard()
    _, run = train(replace(CONFIG, iterations=2), tmp_path, env=env)
    assert run.metrics()[-1]["rollout/episodes"] == env.episodes


def test_without_validation_the_first_episodes_count_too(tmp_path):
    env = hard()
    _, run = train(replace(CONFIG, iterations=1), tmp_path, env=env, validation=False)
    assert run.metrics()[-1]["rollout/episodes"] == env.episodes


def test_the_budget_of_episodes_is_kept(tmp_path):
    env = hard()
    train(replace(CONFIG, iterations=50, max_episodes=70), tmp_path, env=env)
    assert env.episodes == 64  # waves of 16


def test_a_budget_that_is_spent_before_training_is_refused(tmp_path):
    """16 episodes of groups and 16 greedy ones come first, where there is no validation."""
    env = hard()
    few, enough = (replace(CONFIG, iterations=9, max_episodes=n) for n in (47, 48))
    with pytest.raises(ValueError, match="16 episodes, .* after the 32 that are played before"):
        train(few, tmp_path / "few", env=env, validation=False)
    assert env.episodes == 0
    train(enough, tmp_path / "enough", env=env, validation=False)
    assert env.episodes == 48


def test_evaluations_at_negative_intervals_are_refused():
    with pytest.raises(ValueError, match="grpo.eval_every must be at least 0, got -1"):
        grpo.check(replace(CONFIG, eval_every=-1), 16, 8)


def test_the_budget_is_kept_by_a_run_that_is_resumed_after_its_end(tmp_path):
    config = replace(CONFIG, iterations=50, max_episodes=70, checkpoint_every=20)
    train(config, tmp_path)  # ends after four waves of 16, long before a checkpoint is due
    again = hard()
    _, run = train(config, tmp_path, resume=True, env=again)
    assert again.episodes == 0
    assert run.metrics()[-1]["rollout/episodes"] == 64


def test_resumed_it_continues_bit_for_bit(tmp_path):
    whole, run = train(CONFIG, tmp_path / "whole")
    _stop_after(2, tmp_path / "halves")
    halves, again = train(CONFIG, tmp_path / "halves", resume=True)
    assert torch.equal(whole.table, halves.table)
    timeless = [
        [{k: v for k, v in record.items() if "time" not in k} for record in r.metrics()]
        for r in (run, again)
    ]
    assert timeless[0] == timeless[1]


def test_a_checkpoint_with_a_random_state_of_old_goes_on(tmp_path):
    train(replace(CONFIG, iterations=2), tmp_path)
    run = Run(tmp_path, replace(CONFIG, iterations=2), resume=True)
    run.save({**run.load(), "torch_rng": torch.get_rng_state()})
    (tmp_path / "config.json").unlink()
    _, run = train(CONFIG, tmp_path, resume=True)
    assert [record["step"] for record in run.metrics()] == [0, 1, 2, 3, 4]


def test_waves_are_played_until_enough_groups_are_kept(tmp_path):
    config = replace(CONFIG, groups_per_update=6, max_attempts=9)
    rollouts = grpo.gather(config, ToyPolicy(), hard(), iteration=0, attempts=9)
    waves = rollouts.metrics["rollout/attempts"]
    assert rollouts.metrics["rollout/kept_groups"] >= 6 and waves > 1
    for batch, advantage in rollouts.batches:
        groups = batch.success.float().view(-1, 4).mean(1)
        assert ((groups > 0.1) & (groups < 0.9)).all()
        assert len(advantage) == len(batch.success)


def test_attempts_are_capped():
    policy = ToyPolicy()
    policy.table.data[:, :, 2] = 100.0  # always 0: never a success
    rollouts = grpo.gather(CONFIG, policy, hard(), iteration=0, attempts=3)
    assert rollouts.batches == [] and rollouts.metrics["rollout/attempts"] == 3


@pytest.mark.parametrize(("token", "advice"), [(2, "Clone more demonstrations"), (None, "already")])
def test_hopeless_runs_stop_with_advice(tmp_path, token, advice):
    policy = ToyPolicy()
    if token is None:  # always right
        policy.table.data[0, :, 0] = policy.table.data[1, :, 4] = 100.0
    else:
        policy.table.data[:, :, token] = 100.0
    with pytest.raises(UserError, match=advice):
        train(CONFIG, tmp_path, policy)


def test_it_begins_by_telling_both_success_rates(tmp_path, capsys):
    train(replace(CONFIG, iterations=1), tmp_path)
    line = capsys.readouterr().out
    # untrained, the likeliest action is the first bin, -1: right for the two even starts of four
    assert "sampled success" in line and "greedy 50.0% (4 episodes)" in line


def test_validated_policies_are_kept_to_choose_from(tmp_path):
    train(CONFIG, tmp_path)
    assert sorted(p.name for p in (tmp_path / "policies").iterdir()) == ["00002", "00004"]


def test_environments_must_fit_groups(tmp_path):
    told = r"imagined_envs \(num_envs .* must be a multiple of grpo.group_size \(4\), got 6"
    with pytest.raises(ValueError, match=told):
        train(CONFIG, tmp_path, env=hard(6))


@pytest.mark.parametrize("name", grpo.COUNTS)
def test_counts_are_at_least_one(name):
    with pytest.raises(ValueError, match=f"grpo.{name} must be an integer at least 1, got 0"):
        grpo.check(replace(CONFIG, **{name: 0}), 16, 8)


@pytest.mark.parametrize(
    ("settings", "envs", "message"),
    [
        ({"group_size": 1}, (16, 8), "grpo.group_size must be at least 2"),
        ({"dtype": "half"}, (16, 8), "grpo.dtype must be one of 'float32', 'bfloat16', got 'half'"),
        ({"temperature": 0.0}, (16, 8), "grpo.temperature must be a number above 0"),
        ({}, (0, 8), "imagined_envs .* must be an integer at least 1, got 0"),
        ({}, (16, 6), r"grpo.eval_episodes .* must be a multiple of grpo.group_size \(4\), got 6"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, envs, message):
    with pytest.raises(ValueError, match=message):
        grpo.check(replace(CONFIG, **settings), *envs)


def test_without_a_validation_environment_any_number_of_episodes_is_scored():
    grpo.check(replace(CONFIG, eval_episodes=6), 16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_ratio_is_exactly_one(dtype):
    torch.manual_seed(0)
    policy = TokenVLA(
        TokenVLAConfig(image_size=8, chunk=2, stem_width=8, width=16, depth=2, heads=2)
    )
    torch.nn.init.normal_(policy.head.weight, std=0.3)
    batch = collect(policy, hard(8), [0, 1], 4, seed=0)
    with torch.no_grad():
        old, _ = grpo.event_log_probs(policy, batch, dtype)
    new, mask = grpo.event_log_probs(policy, batch, dtype)
    assert new.requires_grad and torch.equal(new.detach(), old)
    result = clipped_policy_loss(new, old, torch.ones(8), mask)
    assert result.approx_kl == 0 and result.clip_fraction == 0


def test_only_decisions_that_were_taken_have_log_probs():
    batch = collect(ToyPolicy(), ToyEnv(4, horizon=4, needed=0.9), [0, 1], 2, seed=0)
    log_prob, mask = grpo.event_log_probs(ToyPolicy(), batch, "float32")
    t = len(batch.active)
    assert log_prob.shape == mask.shape == (4, t * 14)
    taken = batch.active.T.repeat_interleave(14, dim=1)
    assert torch.equal(log_prob != 0, taken) and not mask[~taken].any()


def _stop_after(iterations, folder):
    """Train by CONFIG, and interrupt the play of the iteration after these."""
    env = hard()
    play = env.step

    def step(action):
        state = Run(folder, CONFIG, resume=True).load()
        if state is not None and state["iteration"] == iterations:
            raise KeyboardInterrupt
        return play(action)

    env.step = step
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, folder, env=env)
