"""GRPO as in WMPO (arXiv 2511.09515, section 3.4): groups of episodes from one start, no critic.

The same file trains in the imagined world and, as online GRPO, in the real one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from policies.base import Policy
from trainers.losses import clipped_policy_loss, group_advantage
from trainers.rollout import (
    Batch,
    autocast,
    collect,
    count_starts,
    device_of,
    draw_seeds,
    evaluate,
    join,
)
from wm_gym.checks import DTYPES, check_choice, check_count, check_limit, check_not_negative
from wm_gym.errors import UserError
from wm_gym.runs import Run


@dataclass(frozen=True, slots=True)
class GRPOConfig:
    """Settings of GRPO; the defaults are the bundled run's, the paper's stand beside."""

    iterations: int = 60
    """Policy updates (paper: up to 100)."""
    group_size: int = 8
    """Episodes that share a start (TRL calls it num_generations)."""
    groups_per_update: int = 16
    """Kept groups to wait for before an update (paper: 64)."""
    max_attempts: int = 4
    """Waves of num_envs episodes that may be played for one update."""
    max_episodes: int | None = None
    """Stop where another wave would play more than this in all: the budget of online GRPO."""
    keep_low: float = 0.1
    keep_high: float = 0.9
    """Groups with a mean success outside [keep_low, keep_high] are dropped."""
    temperature: float = 1.0
    """Of the policy's distribution, in play and in the update (paper: 1.6)."""
    learning_rate: float = 1e-4
    """After the warmup, constant (paper: 5e-6, for 7B weights)."""
    warmup: int = 5
    """Iterations over which the learning rate rises to that; 1 is none. Adam's first steps are of
    full size whatever the gradient: a rate over 1e-4 leaves the base policy behind without one."""
    weight_decay: float = 0.01
    minibatch: int = 32
    """Trajectories an optimiser step (paper: 128)."""
    epochs: int = 1
    clip_low: float = 0.20
    clip_high: float = 0.28
    grad_clip: float = 1.0
    dtype: str = "bfloat16"
    """Autocast of the policy, in play and in the update; "float32" turns it off."""
    eval_every: int = 20
    """Iterations between greedy evaluations on the validation starts; 0: only before training."""
    eval_episodes: int = 64
    checkpoint_every: int = 1
    min_kept: float = 0.05
    """Share of groups with a signal below which training does not begin."""
    seed: int = 0


COUNTS = (
    "iterations",
    "group_size",
    "groups_per_update",
    "max_attempts",
    "warmup",
    "minibatch",
    "epochs",
    "eval_episodes",
    "checkpoint_every",
)


class Rollouts(NamedTuple):
    """What one iteration trains on, and what it played to get there."""

    batches: list[tuple[Batch, Tensor]]
    """Kept trajectories and their advantages (n,)."""
    metrics: dict[str, float]


def check(config: GRPOConfig, num_envs: int, validation_envs: int | None = None) -> None:
    """Raise ValueError where the settings are wrong, or do not fit so many environments.

    `validation_envs`: those of the validation environment, if there is one.
    """
    for name in COUNTS:
        check_count(f"grpo.{name}", getattr(config, name))
    check_limit("grpo.temperature", config.temperature)
    check_choice("grpo.dtype", config.dtype, DTYPES)
    if config.group_size == 1:
        raise ValueError("grpo.group_size must be at least 2: a group is compared within; got 1.")
    worlds = {"imagined_envs (num_envs of the world to practise in)": num_envs}
    if validation_envs is not None:  # groups are played there before the training, too
        worlds["grpo.eval_episodes (num_envs of the world to validate in)"] = validation_envs
    for name, n in worlds.items():
        if check_count(name, n) % config.group_size:
            raise ValueError(
                f"{name} must be a multiple of grpo.group_size ({config.group_size}), got {n}."
            )
    check_not_negative("grpo.eval_every", config.eval_every)
    before = 0 if validation_envs is not None else num_envs + max(num_envs, config.eval_episodes)
    if config.max_episodes is not None and config.max_episodes < before + num_envs:
        first = f" after the {before} that are played before training" if before else ""
        raise ValueError(
            f"grpo.max_episodes must allow one wave of {num_envs} episodes, those of all "
            f"environments{first}, got {config.max_episodes}; raise it, or make fewer environments."
        )


def train(
    config: GRPOConfig,
    policy: Policy,
    env: gym.vector.VectorEnv,
    run: Run,
    validation_env: gym.vector.VectorEnv | None = None,
    progress: bool = True,
) -> Policy:
    """Improve `policy` in place by GRPO in `env`; resumes from the run's last checkpoint.

    Begins by printing sampled and greedy success (on the validation starts where there is an
    environment for them). Every `eval_every` iterations the policy is scored there and kept as
    policies/<iteration> in the run folder, to choose from; the policy returned is the last. Sets
    `policy.temperature`. Raises UserError, with advice, where nearly every group would be
    dropped, and ValueError where `check` does.
    """
    check(config, env.num_envs, None if validation_env is None else validation_env.num_envs)
    policy.temperature = config.temperature  # type: ignore[attr-defined]
    policy.eval()  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(
        policy.parameters(),  # type: ignore[attr-defined]
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    state = run.load()
    if state is None:
        first, episodes, seconds = 0, 0, 0.0
        torch.manual_seed(config.seed)
        run.rewind(0)
        played = _diagnose(config, policy, env if validation_env is None else validation_env, run)
        episodes = played if validation_env is None else 0
    else:
        first, episodes, seconds = _restore(state, policy, optimizer)
        run.rewind(first + 1)
    bar = tqdm(
        range(first, config.iterations),
        "grpo",
        disable=not progress,
        initial=first,
        total=config.iterations,
    )
    for iteration in bar:
        began = time.perf_counter()
        attempts = _attempts_left(config, env.num_envs, episodes)
        if not attempts:
            bar.write(f"Stopped after {episodes} episodes, the budget is {config.max_episodes}.")
            run.save(_state(policy, optimizer, iteration, episodes, seconds))  # none is played anew
            break
        rollouts = gather(config, policy, env, iteration, attempts, progress)
        metrics = rollouts.metrics
        if rollouts.batches:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1, (iteration + 1) / config.warmup)
            metrics |= update(config, policy, optimizer, rollouts.batches, iteration)
        episodes += int(metrics["rollout/new_episodes"])
        seconds += time.perf_counter() - began
        metrics |= {"rollout/episodes": episodes, "time/seconds": seconds}
        done = iteration + 1
        if validation_env is not None and config.eval_every and done % config.eval_every == 0:
            metrics |= _evaluate(config, policy, validation_env)
            policy.save_pretrained(run.folder / "policies" / f"{done:05d}")  # type: ignore[attr-defined]
        run.log(done, metrics)
        if done % config.checkpoint_every == 0 or done == config.iterations:
            run.save(_state(policy, optimizer, done, episodes, seconds))
        bar.set_postfix(success=f"{metrics['rollout/success_rate']:.2f}")
    return policy


def gather(
    config: GRPOConfig,
    policy: Policy,
    env: gym.vector.VectorEnv,
    iteration: int,
    attempts: int,
    progress: bool = False,
) -> Rollouts:
    """Play waves of groups until enough carry a signal, or until the attempts are used up.

    Every kept group is used, so an update may hold more than `groups_per_update` of them.
    """
    groups = env.num_envs // config.group_size
    batches, kept, wins, played, began = [], 0, [], 0, time.perf_counter()
    for attempt in range(attempts):
        seed = draw_seeds(1, config.seed, iteration, attempt)[0]
        starts = _draw_starts(env, groups, seed)
        batch = collect(
            policy,
            env,
            starts,
            config.group_size,
            seed=seed,
            dtype=config.dtype,
            progress=progress,
        )
        advantage, keep = group_advantage(
            batch.success.float(), config.group_size, config.keep_low, config.keep_high
        )
        rows = keep.repeat_interleave(config.group_size).nonzero().squeeze(1)
        wins.append(batch.success.float().mean().item())
        played += int(batch.finish_step.sum())
        if len(rows):
            batches.append((batch.take(rows), advantage[rows]))
            kept += int(keep.sum())
        if kept >= config.groups_per_update:
            break
    metrics = {
        "rollout/success_rate": float(np.mean(wins)),
        "rollout/kept_groups": kept,
        "rollout/attempts": len(wins),
        "rollout/new_episodes": len(wins) * env.num_envs,
        "time/sps": played / (time.perf_counter() - began),
    }
    return Rollouts(batches, metrics)


def update(
    config: GRPOConfig,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Batch, Tensor]],
    iteration: int,
) -> dict[str, float]:
    """One pass over the kept trajectories, in minibatches; changes `policy` and `optimizer`.

    Old log-probabilities are computed here, minibatch by minibatch, exactly as the new ones will
    be, so the first ratio is 1 whatever the precision.
    """
    began = time.perf_counter()
    batch, advantage = join([b for b, _ in batches]), torch.cat([a for _, a in batches])
    shuffle = torch.Generator().manual_seed(draw_seeds(1, config.seed, iteration, 2**20)[0])
    parts = torch.randperm(len(advantage), generator=shuffle).split(config.minibatch)
    minibatches = [(batch.take(rows), advantage[rows].to(device_of(policy))) for rows in parts]
    with torch.no_grad():
        old = [event_log_probs(policy, part, config.dtype)[0] for part, _ in minibatches]
    sums: dict[str, float] = {}
    parameters = list(policy.parameters())  # type: ignore[attr-defined]
    for _ in range(config.epochs):
        for (part, part_advantage), old_log_prob in zip(minibatches, old, strict=True):
            log_prob, mask = event_log_probs(policy, part, config.dtype)
            result = clipped_policy_loss(
                log_prob, old_log_prob, part_advantage, mask, config.clip_low, config.clip_high
            )
            optimizer.zero_grad(set_to_none=True)
            result.loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            optimizer.step()
            for name, value in [*result._asdict().items(), ("grad_norm", norm)]:
                sums[name] = sums.get(name, 0.0) + float(value.detach())
    steps = config.epochs * len(minibatches)
    metrics = {f"train/{name}": value / steps for name, value in sums.items()}
    return metrics | {
        "train/trajectories": len(advantage),
        "time/update": time.perf_counter() - began,
    }


def event_log_probs(policy: Policy, batch: Batch, dtype: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities and mask of all events of each trajectory, (n, T * events), with gradient.

    Only decisions that were really taken pass through the policy; the others stay 0 and masked.
    """
    device = device_of(policy)
    active = batch.active.T  # (n, T)
    row, t = active.nonzero(as_tuple=True)  # (m,) decisions, trajectory by trajectory
    image, sample = batch.images[t, row].to(device), batch.sample[t, row].to(device)
    told = [batch.instructions[i] for i in row.tolist()]
    with autocast(policy, dtype):
        taken = policy.log_prob({"image": image}, told, sample).float()  # (m, events)
    everything = taken.new_zeros(*active.shape, taken.shape[-1])  # (n, T, events)
    everything = everything.index_put((row.to(device), t.to(device)), taken)
    mask = batch.token_mask(policy.event_steps.cpu()).transpose(0, 1).to(device)
    return everything.flatten(1), mask.flatten(1)


def _draw_starts(env: gym.vector.VectorEnv, groups: int, seed: int) -> list[int]:
    """Draw distinct starts where the pool allows it."""
    count = count_starts(env)
    rng = np.random.default_rng([seed, 3])
    return rng.choice(count, size=groups, replace=groups > count).tolist()


def _attempts_left(config: GRPOConfig, num_envs: int, episodes: int) -> int:
    if config.max_episodes is None:
        return config.max_attempts
    return min(config.max_attempts, max(0, config.max_episodes - episodes) // num_envs)


def _diagnose(config: GRPOConfig, policy: Policy, env: gym.vector.VectorEnv, run: Run) -> int:
    groups = env.num_envs // config.group_size
    starts = np.resize(np.arange(min(groups, count_starts(env))), groups).tolist()
    batch = collect(policy, env, starts, config.group_size, seed=config.seed, dtype=config.dtype)
    success = batch.success.float()
    _, keep = group_advantage(success, config.group_size, config.keep_low, config.keep_high)
    greedy = _evaluate(config, policy, env)
    sampled, kept = success.mean().item(), keep.float().mean().item()
    print(
        f"Before training: sampled success {sampled:.1%} ({len(success)} episodes, temperature "
        f"{config.temperature:g}), greedy {greedy['eval/success_rate']:.1%} "
        f"({greedy['eval/episodes']} episodes); {kept:.0%} of the groups carry a signal."
    )
    run.log(0, {"rollout/success_rate": sampled, "rollout/kept_share": kept, **greedy})
    if kept < config.min_kept:
        raise UserError(
            f"Only {kept:.0%} of {groups} groups have a mean success in [{config.keep_low:g}, "
            f"{config.keep_high:g}], so there is nothing to learn from: {_advice(config, sampled)}"
        )
    return len(success) + max(env.num_envs, int(greedy["eval/episodes"]))  # rows left over play too


def _advice(config: GRPOConfig, sampled: float) -> str:
    if sampled < config.keep_low:
        return (
            f"sampled success is {sampled:.1%}. Clone more demonstrations first, lower the "
            "temperature if the greedy policy does better, or make the groups larger."
        )
    if sampled > config.keep_high:
        return (
            f"sampled success is {sampled:.1%} already. Take a harder task or an earlier policy, "
            "or raise the temperature; and check the success classifier against the real world."
        )
    return "members of a group end alike. Raise the temperature, or make the groups larger."


def _evaluate(config: GRPOConfig, policy: Policy, env: gym.vector.VectorEnv) -> dict[str, float]:
    starts = list(range(min(config.eval_episodes, count_starts(env))))
    result = evaluate(policy, env, starts, seed=config.seed, dtype=config.dtype, progress=False)
    return {
        "eval/success_rate": float(result.success.mean()),
        "eval/length": float(result.length.mean()),
        "eval/episodes": len(starts),
    }


def _state(
    policy: Policy, optimizer: torch.optim.Optimizer, done: int, episodes: int, seconds: float
) -> dict:
    """Everything a resumed run needs; rollouts and shuffles are functions of (seed, iteration)."""
    return {
        "policy": policy.state_dict(),  # type: ignore[attr-defined]
        "optimizer": optimizer.state_dict(),
        "iteration": done,
        "episodes": episodes,
        "seconds": seconds,
    }


def _restore(
    state: dict, policy: Policy, optimizer: torch.optim.Optimizer
) -> tuple[int, int, float]:
    policy.load_state_dict(state["policy"])  # type: ignore[attr-defined]
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"], state["episodes"], state["seconds"]
