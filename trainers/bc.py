"""Behaviour cloning of token policies: supervised learning of recorded chunks of actions."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from policies.token import TokenVLA
from trainers.losses import token_cross_entropy
from trainers.rollout import autocast, device_of
from wm_gym.runs import Run


@dataclass(frozen=True, slots=True)
class BCConfig:
    """Settings of behaviour cloning; the defaults are the bundled run's."""

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 1e-3
    """At its peak: reached after `warmup` steps, then down to a tenth along a cosine."""
    warmup: int = 100
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    neighbours: float = 1.5
    """Targets are spread over nearby bins with this standard deviation, in bins; 0 for one-hot."""
    shift: int = 2
    """Random shift of pictures, in pixels, edges repeated."""
    ema: float = 0.995
    """Decay of the averaged weights, which are what is scored and returned."""
    held_out: float = 0.05
    """Share of episodes kept aside for the held-out loss."""
    validate_every: int = 100
    """Steps between scores and checkpoints."""
    patience: int = 0
    """Scores without a new best before stopping early; 0 never stops."""
    dtype: str = "bfloat16"
    seed: int = 0


class Chunks(NamedTuple):
    """What is cloned: one row a moment, in the order it was recorded."""

    frames: np.ndarray  # (m, H, W, 3) uint8
    actions: np.ndarray  # (m, k, 7) float32, past the end the last one repeats
    mask: np.ndarray  # (m, k) bool: really recorded
    episode: np.ndarray  # (m,) int64: the rows of one episode are not split between sets
    instructions: list[str]  # (m,)


def chunks_from(
    episodes: Iterable[Any],
    instruction: str,
    chunk: int,
    *,
    after_success: int = 0,
) -> Chunks:
    """Turn episodes (SPEC: frames, actions, success) into moments to clone.

    Moments later than `after_success` steps past the first success are left out, since an episode
    ends there; so are failures. Raises ValueError if none is left.
    """
    frames, actions, masks, origin = [], [], [], []
    for index, episode in enumerate(episodes):
        success = np.asarray(episode.success, bool)
        if not success.any():
            continue
        t = len(episode.actions)
        end = min(t, int(success.argmax()) + 1 + after_success)
        step = np.arange(end)[:, None] + np.arange(chunk)  # (end, k)
        frames.append(np.asarray(episode.frames[:end]))
        actions.append(np.asarray(episode.actions, np.float32)[np.minimum(step, t - 1)])
        masks.append(step < t)
        origin.append(np.full(end, index))
    if not frames:
        raise ValueError(
            "No episode to clone: expected at least one success among them; collect more "
            "demonstrations."
        )
    arrays = (np.concatenate(parts) for parts in (frames, actions, masks, origin))
    rows = Chunks(*arrays, instructions=[])
    return rows._replace(instructions=[instruction] * len(rows.frames))


def train(
    config: BCConfig,
    policy: TokenVLA,
    chunks: Chunks,
    run: Run,
    validate: Callable[[TokenVLA], float] | None = None,
    progress: bool = True,
) -> TokenVLA:
    """Clone `chunks` into `policy`, in place; ends with the averaged weights that scored best.

    The score is `validate(policy)` where given (higher is better), else minus the held-out loss.
    Resumes bit for bit from the run's last checkpoint, at most `validate_every` steps back.
    """
    fit, held = split(chunks, config.held_out, config.seed)
    learner = Learner(config, policy)
    first = learner.restore(run)
    bar = tqdm(total=config.steps, initial=first, desc="clone", disable=not progress)
    losses, began = [], time.perf_counter()
    for step in range(first, config.steps):
        if config.patience and learner.stale >= config.patience:
            break
        losses.append(learner.step(fit, step))
        bar.update()
        done = step + 1
        if done % config.validate_every and done != config.steps:
            continue
        elapsed = time.perf_counter() - began
        learner.seconds += elapsed
        metrics = {"train/loss": float(np.mean(losses)), **learner.score(held, validate, done)}
        metrics |= {"time/steps_per_second": len(losses) / elapsed, "time/seconds": learner.seconds}
        run.log(done, metrics)
        run.save(learner.state(done))
        bar.set_postfix(loss=f"{metrics['train/loss']:.3f}", score=f"{metrics['eval/score']:.3f}")
        losses, began = [], time.perf_counter()
    bar.close()
    policy.load_state_dict(learner.best["weights"])
    return policy


class Learner:
    """What changes while cloning: weights, their running average, the best average so far."""

    def __init__(self, config: BCConfig, policy: TokenVLA) -> None:
        self.config, self.policy = config, policy
        self.averaged = copy.deepcopy(policy).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.best: dict[str, Any] = {"score": -math.inf, "weights": self.averaged.state_dict()}
        self.stale = 0
        """Scores since the best one."""
        self.seconds = 0.0
        """Of training, scores not counted."""

    def step(self, fit: Chunks, step: int) -> float:
        """Take one optimiser step on moments drawn as a function of (seed, step)."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        rng = np.random.default_rng([config.seed, step])
        rows = rng.integers(len(fit.frames), size=config.batch_size)
        shifts = rng.integers(-config.shift, config.shift + 1, size=(config.batch_size, 2))
        loss = clone_loss(self.policy, fit, rows, config, shifts)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.grad_clip)
        self.optimizer.step()
        weight = 1 - min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, new in zip(self.averaged.parameters(), self.policy.parameters(), strict=True):
                mean.lerp_(new, weight)
        return loss.item()

    def score(
        self, held: Chunks, validate: Callable[[TokenVLA], float] | None, step: int
    ) -> dict[str, float]:
        """Score the averaged weights, and remember them if they are the best, or have no score."""
        loss = held_out_loss(self.averaged, held, self.config)
        score = -loss if validate is None else float(validate(self.averaged))
        self.stale += 1
        if math.isnan(score) or score > self.best["score"]:
            weights = {name: value.clone() for name, value in self.averaged.state_dict().items()}
            self.best, self.stale = {"score": score, "step": step, "weights": weights}, 0
        return {"eval/loss": loss, "eval/score": score, "eval/best_score": self.best["score"]}

    def state(self, step: int) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "policy": self.policy.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "stale": self.stale,
            "seconds": self.seconds,
            "step": step,
        }

    def restore(self, run: Run) -> int:
        """Load the run's last checkpoint, if any; returns the step to go on with."""
        state = run.load()
        if state is None:
            run.rewind(0)
            return 0
        self.policy.load_state_dict(state["policy"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.stale, self.seconds = state["best"], state["stale"], state["seconds"]
        run.rewind(state["step"] + 1)
        return state["step"]


def clone_loss(
    policy: TokenVLA,
    chunks: Chunks,
    rows: np.ndarray,
    config: BCConfig,
    shifts: np.ndarray | None = None,
) -> Tensor:
    """Cross-entropy of the actions at rows (b,), pictures moved by shifts (b, 2) pixels."""
    device = device_of(policy)
    image = torch.from_numpy(chunks.frames[rows])
    if shifts is not None:
        image = shifted(image, torch.from_numpy(shifts))
    token = policy.tokenize(torch.from_numpy(chunks.actions[rows]).to(device))
    mask = torch.from_numpy(chunks.mask[rows]).to(device)[:, policy.event_steps]
    with autocast(policy, config.dtype):
        logits = policy.logits({"image": image}, [chunks.instructions[i] for i in rows])
    return token_cross_entropy(logits, token, mask, config.neighbours)


@torch.no_grad()
def held_out_loss(policy: TokenVLA, held: Chunks, config: BCConfig) -> float:
    """Mean loss over `held`, pictures as they are; nan where nothing is held out."""
    rows = np.arange(len(held.frames))
    parts = [rows[i : i + config.batch_size] for i in range(0, len(rows), config.batch_size)]
    total = sum(clone_loss(policy, held, part, config).item() * len(part) for part in parts)
    return total / len(rows) if parts else math.nan


def split(chunks: Chunks, share: float, seed: int) -> tuple[Chunks, Chunks]:
    """Put whole episodes aside: (the rest, `share` of the episodes, at least one if share > 0)."""
    episodes = np.unique(chunks.episode)
    count = max(1, round(share * len(episodes))) if share > 0 and len(episodes) > 1 else 0
    aside = np.random.default_rng(seed).permutation(episodes)[:count]
    held = np.isin(chunks.episode, aside)
    return _rows(chunks, ~held), _rows(chunks, held)


def shifted(image: Tensor, shift: Tensor) -> Tensor:
    """Move each picture by its (down, right) pixels, repeating the edge. (b, H, W, 3), (b, 2)."""
    b, h, w, _ = image.shape
    y = (torch.arange(h) - shift[:, :1]).clamp(0, h - 1)  # (b, H)
    x = (torch.arange(w) - shift[:, 1:]).clamp(0, w - 1)  # (b, W)
    return image[torch.arange(b)[:, None, None], y[:, :, None], x[:, None, :]]


def learning_rate(config: BCConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def _rows(chunks: Chunks, rows: np.ndarray) -> Chunks:
    told = [text for text, keep in zip(chunks.instructions, rows, strict=True) if keep]
    return Chunks(*(array[rows] for array in chunks[:4]), instructions=told)
