"""What all trainings share: the learner, its rate, the loop with validation and resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from wm_gym.data.episode import Episode
from wm_gym.data.windows import Windows, holdout_episodes
from wm_gym.runs import Run


@dataclass(frozen=True, slots=True)
class LearningConfig:
    """What every training is told."""

    steps: int = 1000
    learning_rate: float = 1e-3
    """At its peak: reached after `warmup` steps, then down to a twentieth along a cosine."""
    warmup: int = 100
    weight_decay: float = 1e-2
    grad_clip: float = 1.0
    parts: int = 1
    """Parts that a batch is computed in, one after another, its gradients added up: a large model
    on a small GPU."""
    ema: float = 0.998
    """Decay of the averaged weights, which are what is validated and kept (WMPO: 0.9999)."""
    validate_every: int = 500
    patience: int = 0
    """Validations in a row without a better one that end the training, with the weights that were
    best; 0 never does, and keeps the last."""
    seed: int = 0


class Learner:
    """What changes in training: weights, their average, the optimisers."""

    name: ClassVar[str]
    """Of what is learnt, as the progress line says it."""

    def __init__(
        self,
        model: nn.Module,
        config: LearningConfig,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Begin from the model's present weights."""
        self.model, self.config, self.optimizers = model, config, optimizers
        self.average = EMAModel(model.parameters(), decay=config.ema)

    def step(self, batch: dict[str, Tensor], step: int, generator: torch.Generator) -> float:
        """Take one optimiser step on a batch, and return its loss."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * schedule(self.config, step)
        self.model.zero_grad(set_to_none=True)
        parts, total = split(batch, self.config.parts), 0.0
        for part in parts:
            loss = self._loss(part, generator) / len(parts)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.step(self.model.parameters())
        return total

    def _loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the model has its averaged weights."""
        parameters = list(self.model.parameters())
        self.average.store(parameters)
        self.average.copy_to(parameters)
        try:
            yield
        finally:
            self.average.restore(parameters)

    def state(self, step: int) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": step,
        }

    def restore(self, run: Run) -> int:
        """Load the run's last checkpoint, if any; returns the step to go on with."""
        step = self.load(run, "last") or 0
        run.rewind(step + 1 if step else 0)
        return step

    def load(self, run: Run, name: str) -> int | None:
        """Load a checkpoint; returns its step, None where there is none."""
        state = run.load(name)
        if state is None:
            return None
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.average.to(next(self.model.parameters()).device)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return state["step"]


def learn(
    learner: Learner,
    run: Run,
    first: int,
    draw: Callable[[int, torch.Generator], dict[str, Tensor]],
    judge: Callable[[], dict[str, float]],
    score: str,
    shown: Mapping[str, str],
) -> dict[str, float]:
    """Train from step `first` on; the model ends with the averaged weights, and judged by them.

    draw: (step, generator) -> batch; judge: figures of the model's present weights, of which
    `score` is the one that `patience` waits for, and `shown` (label -> figure) those in the
    progress line. Validations are logged and checkpoints go into `run`.
    """
    config = learner.config
    bar = tqdm(total=config.steps, initial=first, desc=learner.name)
    losses, began = [], time.perf_counter()
    waited = since_best(run.metrics(), f"eval/{score}")
    for step in range(first, config.steps):
        if config.patience and waited >= config.patience:
            break
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        losses.append(learner.step(draw(step, generator), step, generator))
        bar.update()
        done = step + 1
        if done % config.validate_every and done != config.steps:
            continue
        with learner.averaged():
            report = judge()
        speed = len(losses) / (time.perf_counter() - began)
        loss = sum(losses) / len(losses)
        figures = {f"eval/{name}": value for name, value in report.items()}
        run.log(done, {"train/loss": loss, "time/steps_per_second": speed} | figures)
        waited = since_best(run.metrics(), f"eval/{score}")
        if config.patience and not waited:
            run.save(learner.state(done), "best")
        run.save(learner.state(done))
        bar.set_postfix({"loss": f"{loss:.4f}", **{k: report[name] for k, name in shown.items()}})
        losses, began = [], time.perf_counter()
    bar.close()
    if config.patience:
        learner.load(run, "best")
    learner.average.copy_to(learner.model.parameters())
    learner.model.eval()
    return judge()


def since_best(lines: Sequence[Mapping[str, float]], name: str) -> int:
    """How many lines follow the first in which `name` is highest; 0 without lines."""
    scores = [line[name] for line in lines]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def schedule(config: LearningConfig, step: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine down to a twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def split(batch: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Cut a batch of clips and moments into `parts` as equal as can be, none of them empty."""
    parts = min(parts, *(len(value) for value in batch.values()))
    cut = {name: value.tensor_split(parts) for name, value in batch.items()}
    return [{name: pieces[i] for name, pieces in cut.items()} for i in range(parts)]


def set_aside(
    episodes: Sequence[Episode], share: float, seed: int
) -> tuple[list[Episode], list[Episode]]:
    """Episodes to learn from, and those held out; see `holdout_episodes`."""
    held_out = set(holdout_episodes([e.source for e in episodes], share, seed))
    fit = [e for i, e in enumerate(episodes) if i not in held_out]
    return fit, [episodes[i] for i in sorted(held_out)]


def clips(windows: Windows, length: int, beginnings: float) -> Windows:
    """The same windows, `length` steps long and drawn so that few steps are lost to padding.

    A share `beginnings` of the draws begins an episode, as play does; the others begin wherever a
    whole clip is left, episodes counting by their length and their chance.
    """
    lengths = windows.lengths
    left = lengths[windows.episode] - windows.time
    whole = ((left >= length) | (windows.time == 0)).double()
    share = lengths * windows.by_episode
    share /= share.sum()
    each = share / torch.zeros(len(lengths)).double().index_add_(0, windows.episode, whole)
    weights = (1 - beginnings) * whole * each[windows.episode]
    weights += beginnings * (windows.time == 0) * share[windows.episode]
    return windows.reweight(weights).lasting(length)
