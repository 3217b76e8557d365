"""Train a pixel world model on recorded episodes, partly from memories of its own making."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from wm_gym.data.episodes import Episode
from wm_gym.data.windows import Windows, holdout_episodes
from wm_gym.evaluation.fidelity import long_enough, replay_report
from wm_gym.runs import Run
from wm_gym.world_model.flow import add_noise, draw_times
from wm_gym.world_model.memory import Memory
from wm_gym.world_model.model import WorldModel, stack


@dataclass(frozen=True, slots=True)
class WorldModelTrainingConfig:
    """How a world model is trained; the defaults are the `nano` preset."""

    steps: int = 5000
    batch_size: int = 24
    """Clips a step (WMPO: 128)."""
    learning_rate: float = 6e-4
    """At its peak: reached after `warmup` steps, then down to a twentieth along a cosine."""
    warmup: int = 100
    weight_decay: float = 1e-2
    grad_clip: float = 1.0
    ema: float = 0.998
    """Decay of the averaged weights, which are what is validated and kept (WMPO: 0.9999)."""
    pure_noise: float = 0.6
    """Share of the clips that are predicted from noise alone."""
    memory_noise: float = 0.06
    """Largest standard deviation of the noise on remembered frames, on pictures in [-1, 1]."""
    own_blocks: int = 2
    """At most this many blocks are imagined before the one that is learnt: its memory is then
    the model's own, as it will be in use."""
    own_from: float = 0.4
    """Share of the training after which that begins: a beginner's pictures teach nothing."""
    frames: int = 4
    """Frames of a block that are learnt from at a time, drawn anew each step."""
    change_weight: float = 2.0
    """Extra weight of patches that differ from the first frame: what moves is small."""
    event_weight: float = 3.0
    """Chance of windows that reach a first success, relative to the others: lifts are rare."""
    held_out: float = 0.08
    """Share of the episodes of every source that only validate."""
    validate_every: int = 500
    seed: int = 0


def train_world_model(
    model: WorldModel, episodes: Sequence[Episode], config: WorldModelTrainingConfig, run: Run
) -> dict[str, float]:
    """Train `model` in place, on its device; it ends with the averaged weights.

    Returns the last held-out replay (see `replay_report`). Checkpoints go into `run`, from which an
    interrupted training continues.
    """
    held_out = set(holdout_episodes([e.source for e in episodes], config.held_out, config.seed))
    fit = [e for i, e in enumerate(episodes) if i not in held_out]
    judged = long_enough([episodes[i] for i in sorted(held_out)])
    block = model.config.max_chunk
    windows = Windows(fit, memory=model.config.memory, block=block * (1 + config.own_blocks))
    windows = windows.reweight(event_weights(windows, fit, config.event_weight))
    learner = Learner(model, config)
    report: dict[str, float] = {}
    bar = tqdm(total=config.steps, initial=learner.restore(run), desc="world model")
    losses, began = [], time.perf_counter()
    for step in range(bar.n, config.steps):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        batch = windows.batch(windows.sample(config.batch_size, generator))
        losses.append(learner.step(batch, step, generator))
        bar.update()
        done = step + 1
        if done % config.validate_every and done != config.steps:
            continue
        with learner.averaged():
            report = replay_report(model, judged)
        speed = len(losses) / (time.perf_counter() - began)
        loss = sum(losses) / len(losses)
        run.log(done, {"train/loss": loss, "time/steps_per_second": speed} | _named(report))
        run.save(learner.state(done))
        bar.set_postfix(
            {"loss": f"{loss:.4f}", "dB@16": report["psnr/16"], "other": report["psnr_other/16"]}
        )
        losses, began = [], time.perf_counter()
    bar.close()
    learner.average.copy_to(model.parameters())
    model.eval()
    return report or replay_report(model, judged)


class Learner:
    """What changes in training: weights, their average, the optimiser."""

    def __init__(self, model: WorldModel, config: WorldModelTrainingConfig) -> None:
        """Begin from the model's present weights."""
        self.model, self.config = model, config
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
        )
        self.average = EMAModel(model.parameters(), decay=config.ema)

    def step(self, batch: dict[str, Tensor], step: int, generator: torch.Generator) -> float:
        """Take one optimiser step on a batch of `Windows`, and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        most = self.config.own_blocks if step >= self.config.own_from * self.config.steps else 0
        loss = self._loss(batch, int(torch.randint(most + 1, (), generator=generator)), generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.average.step(self.model.parameters())
        return loss.item()

    def _loss(self, batch: dict[str, Tensor], own: int, generator: torch.Generator) -> Tensor:
        model, config, k = self.model, self.config, self.model.config.max_chunk
        n = len(batch["anchor"])
        frames = torch.cat([batch["anchor"][:, None], batch["memory"]], dim=1)
        latents = model.encode(frames)
        memory = Memory(latents[:, 0], latents[:, 1:])
        memory = self._imagine_on(memory, batch["actions"], own, generator)

        block = slice(own * k, (own + 1) * k)
        chosen = torch.randperm(k, generator=generator)[: config.frames].sort().values
        clean = model.encode(batch["future"][:, block][:, chosen])  # (n, f, c, h, w)
        valid = batch["valid"][:, block][:, chosen].to(model.device)  # (n, f)
        level = torch.rand(n, generator=generator) * config.memory_noise
        time = draw_times(n, config.pure_noise, generator)
        seen = stack(memory)
        seen = seen + level.view(-1, 1, 1, 1, 1).to(seen) * draw(seen.shape, generator, seen)
        noisy = add_noise(clean, draw(clean.shape, generator, clean), time.to(clean))
        with torch.autocast(model.device.type, torch.bfloat16):
            ahead = model.denoiser.look_ahead(
                seen, batch["actions"][:, block].to(model.device), level.to(seen)
            )
            ahead = ahead._replace(frames=ahead.frames[:, chosen], last=memory.recent[:, -1])
            predicted = model.denoiser(noisy, time.to(clean), ahead)
        return frame_loss(predicted, clean, memory.anchor, valid, config.change_weight)

    @torch.no_grad()
    def _imagine_on(
        self, memory: Memory, actions: Tensor, blocks: int, generator: torch.Generator
    ) -> Memory:
        """Replace the memory by the model's own after some blocks of these actions."""
        model, k, m = self.model, self.model.config.max_chunk, memory.recent.shape[1]
        level = memory.anchor.new_full((len(actions),), model.config.memory_level)
        for block in range(blocks):
            chosen = actions[:, block * k : (block + 1) * k].to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16):
                ahead = model.denoiser.look_ahead(stack(memory), chosen, level)
                ahead = ahead._replace(frames=ahead.frames[:, -m:])  # all that is remembered
                shape = (len(chosen), *model.noise_shape(ahead.frames.shape[1]))
                noise = draw(shape, generator, memory.recent)
                latents = model.denoiser(noise, torch.ones_like(level), ahead)
            memory = memory.advance(latents.clamp(-1, 1))
        return memory

    def averaged(self) -> Averaged:
        """Context in which the model has its averaged weights."""
        return Averaged(self)

    def state(self, step: int) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": step,
        }

    def restore(self, run: Run) -> int:
        """Load the run's last checkpoint, if any; returns the step to go on with."""
        state = run.load()
        if state is None:
            run.rewind(0)
            return 0
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.average.to(self.model.device)
        self.optimizer.load_state_dict(state["optimizer"])
        run.rewind(state["step"] + 1)
        return state["step"]


class Averaged:
    """Swaps the averaged weights in, and the trained ones back."""

    def __init__(self, learner: Learner) -> None:
        """Remember whose weights are swapped."""
        self.learner = learner

    def __enter__(self) -> None:
        """Swap in."""
        parameters = list(self.learner.model.parameters())
        self.learner.average.store(parameters)
        self.learner.average.copy_to(parameters)

    def __exit__(self, *_: object) -> None:
        """Swap back."""
        self.learner.average.restore(self.learner.model.parameters())


def frame_loss(
    predicted: Tensor, clean: Tensor, anchor: Tensor, valid: Tensor, change_weight: float
) -> Tensor:
    """Mean squared error over valid frames, patches that changed since the anchor counting more.

    predicted, clean: (n, f, c, h, w); anchor: (n, c, h, w); valid: (n, f) bool. A patch has changed
    when any of its values differs by more than 0.15 (of a range of 2).
    """
    changed = ((clean - anchor[:, None]).abs().amax(2, keepdim=True) > 0.15).float()
    weight = (1 + change_weight * changed) * valid[:, :, None, None, None]
    error = (predicted - clean).square() * weight
    return error.sum() / (weight.sum() * clean.shape[2]).clamp(min=1)


def event_weights(windows: Windows, episodes: Sequence[Episode], weight: float) -> Tensor:
    """Sampling weight of each window: `weight` where the first success falls into it, else 1."""
    first = [e.first_success if e.succeeded else -(10**6) for e in episodes]
    until = torch.tensor(first)[windows.episode] - windows.time  # steps to the first success
    near = (until >= 0) & (until < windows.block)
    return torch.where(near, weight, 1.0).double()


def draw(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers from a CPU generator, on the device of `like`."""
    return torch.randn(shape, generator=generator).to(like.device)


def learning_rate(config: WorldModelTrainingConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _named(report: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in report.items()}
