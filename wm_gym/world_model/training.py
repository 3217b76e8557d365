"""Train a pixel world model on recorded episodes, through time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from wm_gym.data.episodes import Episode
from wm_gym.data.windows import Windows, holdout_episodes, measured
from wm_gym.evaluation.fidelity import changed, replay_report, steps_to_judge
from wm_gym.runs import Run
from wm_gym.world_model.dynamics import State
from wm_gym.world_model.model import WorldModel, pixels
from wm_gym.world_model.motion import MotionTrainingConfig, fit_motion
from wm_gym.world_model.muon import Muon


@dataclass(frozen=True, slots=True)
class WorldModelTrainingConfig:
    """How a world model is trained; the defaults are the `nano` preset."""

    steps: int = 3000
    lengths: tuple[tuple[float, int], ...] = (
        (0.06, 4),
        (0.15, 8),
        (0.35, 16),
        (0.7, 32),
        (1.0, 56),
    )
    """(share of the training until which it holds, control steps of a clip): short clips teach
    what a step does, long ones not to drift."""
    transitions: int = 512
    """Control steps that a batch plays, over all its clips."""
    most_clips: int = 48
    parts: int = 1
    """Parts that a batch is computed in, one after another, its gradients added up: a large model
    on a small GPU."""
    weights: dict[str, float] = field(default_factory=dict)
    """Relative chance of a clip by the source of its episode, 1 where not named."""
    pictures: int = 96
    """Pictures that a batch is judged by, drawn anew each time from all that its clips show."""
    beginnings: float = 0.3
    """Share of the clips that begin where their episode does."""
    learning_rate: float = 3e-3
    """Of Muon, for matrices and convolutions, at its peak: reached after `warmup` steps, then down
    to a twentieth along a cosine. AdamW has half of it, for all other weights."""
    warmup: int = 100
    weight_decay: float = 1e-2
    grad_clip: float = 1.0
    ema: float = 0.998
    """Decay of the averaged weights, which are what is validated and kept (WMPO: 0.9999)."""
    change_weight: float = 2.0
    """Extra weight of pixels near what differs from the first frame: what moves is small."""
    body_weight: float = 0.1
    """Of the errors in the body, as it is read from pictures, beside pixels."""
    body_noise: float = 0.01
    """Noise on the body that every step is told, in its standard deviations: what is imagined will
    not be exact."""
    motion: MotionTrainingConfig = field(default_factory=MotionTrainingConfig)
    """Of the measurements by themselves, before all else."""
    readings: int = 64
    """Moments at which a body is read in a batch, drawn like its clips."""
    held_out: float = 0.08
    """Share of the episodes of every source that only validate."""
    validate_every: int = 500
    patience: int = 0
    """Validations in a row without a better replay that end the training, with the weights that
    replayed best; 0 never does, and keeps the last."""
    seed: int = 0

    def length(self, step: int) -> int:
        """Control steps of the clips at a training step."""
        stages = (t for share, t in self.lengths if step < share * self.steps)
        return next(stages, self.lengths[-1][1])


def train_world_model(
    model: WorldModel,
    episodes: Sequence[Episode],
    config: WorldModelTrainingConfig,
    run: Run,
    *,
    fine_tune: bool = False,
) -> dict[str, float]:
    """Train `model` in place, on its device; it ends with the averaged weights.

    `fine_tune`: the model is no new one and keeps its mean picture and its scale of the body.
    Returns the held-out replay (see `replay_report`) of the weights that it keeps. Checkpoints go
    into `run`, from which an interrupted training continues.
    """
    held_out = set(holdout_episodes([e.source for e in episodes], config.held_out, config.seed))
    fit = [e for i, e in enumerate(episodes) if i not in held_out]
    judged = [episodes[i] for i in sorted(held_out)]
    compared = steps_to_judge(judged)
    windows = Windows(
        fit, memory=model.config.memory, weights=config.weights, body=model.config.body
    )
    length = 0
    learner = Learner(model, config)
    first = learner.restore(run)
    if not first:
        if not fine_tune:
            measure(model, fit)
        learn_motion(model, fit, config)
    shown, judging = max(t for t in compared if t <= 16), f"eval/psnr/{compared[-1]}"
    bar = tqdm(total=config.steps, initial=first, desc="world model")
    losses, began = [], time.perf_counter()
    for step in range(first, config.steps):
        if config.patience and since_best(run.metrics(), judging) >= config.patience:
            break
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        if length != config.length(step):
            length = config.length(step)
            windows = clips(windows, length, config.beginnings)
        count = min(config.most_clips, max(1, config.transitions // length))
        batch = windows.batch(windows.sample(count, generator))
        batch |= moments(windows, config.readings, generator)
        losses.append(learner.step(batch, step, generator))
        bar.update()
        done = step + 1
        if done % config.validate_every and done != config.steps:
            continue
        with learner.averaged():
            report = replay_report(model, judged, compared)
        speed = len(losses) / (time.perf_counter() - began)
        loss = sum(losses) / len(losses)
        run.log(done, {"train/loss": loss, "time/steps_per_second": speed} | _named(report))
        if config.patience and not since_best(run.metrics(), judging):
            run.save(learner.state(done), "best")
        run.save(learner.state(done))
        bar.set_postfix(
            {
                "loss": f"{loss:.4f}",
                f"dB@{shown}": report[f"psnr/{shown}"],
                "other": report[f"psnr_other/{shown}"],
            }
        )
        losses, began = [], time.perf_counter()
    bar.close()
    if config.patience:
        learner.load(run, "best")
    learner.average.copy_to(model.parameters())
    model.eval()
    return replay_report(model, judged, compared)


def learn_motion(
    model: WorldModel, episodes: Sequence[Episode], config: WorldModelTrainingConfig
) -> None:
    """Fit how measurements move by themselves; it takes a few minutes, and no picture."""
    mean, std = model.body_mean.cpu(), model.body_std.cpu()
    bodies = [(torch.from_numpy(measured(e, model.config.body)) - mean) / std for e in episodes]
    actions = [e.actions for e in episodes]
    weights = [config.weights.get(e.source, 1.0) for e in episodes]
    fit_motion(model.transition.motion, bodies, actions, config.motion, config.seed, weights)


def since_best(lines: Sequence[Mapping[str, float]], name: str) -> int:
    """How many lines follow the first in which `name` is highest; 0 without lines."""
    scores = [line[name] for line in lines]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


class Learner:
    """What changes in training: weights, their average, the optimisers."""

    def __init__(self, model: WorldModel, config: WorldModelTrainingConfig) -> None:
        """Begin from the model's present weights."""
        self.model, self.config = model, config
        model.transition.motion.requires_grad_(False)  # learnt before, by itself
        apart = {id(p) for p in (*model.renderer.leave.parameters(), model.renderer.mean)}
        apart.add(id(model.encoder.place))
        learnt = [p for p in model.parameters() if p.requires_grad]
        inner = [p for p in learnt if p.dim() >= 2 and id(p) not in apart]
        others = {id(p) for p in inner}
        outer = [p for p in learnt if id(p) not in others]
        rate, decay = config.learning_rate, config.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(inner, rate, weight_decay=decay),
            torch.optim.AdamW(outer, rate / 2, betas=(0.9, 0.95), weight_decay=decay),
        ]
        self.average = EMAModel(model.parameters(), decay=config.ema)

    def step(self, batch: dict[str, Tensor], step: int, generator: torch.Generator) -> float:
        """Take one optimiser step on a batch of `Windows`, and return its loss."""
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
        model, device = self.model, self.model.device
        n, t = batch["valid"].shape
        each = min(t, max(2, self.config.pictures // n))
        chosen = torch.rand(n, t, generator=generator).argsort(1)[:, :each]  # (n, f)
        rows = torch.arange(n)[:, None]
        clean = pixels(batch["future"][rows, chosen].to(device)).flatten(0, 1)
        anchor = pixels(batch["anchor"].to(device))
        noise = torch.randn((n, *model.noise_shape(t)), generator=generator).to(device)
        body = self._standardised(batch["body"])  # (n, 1 + t, p)
        valid = batch["valid"].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            start = model.encoder(remembered(batch, device))
            grids = self._led(start, batch["actions"].to(device), body, noise)
            seen = grids[rows, chosen].flatten(0, 1), body[:, 1:][rows, chosen].flatten(0, 1)
            drawn = model.renderer(*seen)
            read = model.encoder.body(batch["moments"].to(device))
        still = anchor.repeat_interleave(each, 0)
        shown = valid[rows, chosen].flatten()
        pixel_loss = frame_loss(drawn, clean, still, shown, self.config.change_weight)
        # Absolute: squares would care for hands that are far out, and not for the millimetres.
        read_loss = (read - self._standardised(batch["moment_bodies"])).abs().mean()
        return pixel_loss + self.config.body_weight * read_loss

    def _standardised(self, body: Tensor) -> Tensor:
        return (body.to(self.model.device) - self.model.body_mean) / self.model.body_std

    def _led(self, state: State, actions: Tensor, body: Tensor, noise: Tensor) -> Tensor:
        """Play actions (n, t, a) beside the true body (n, 1 + t, p), which every step is told.

        Returns the grids (n, t, d, h, w).
        """
        transition, told = self.model.transition, body[:, :-1] + self.config.body_noise * noise
        grids = []
        for t, action in enumerate(actions.unbind(1)):
            vector = transition.recall(state._replace(body=told[:, t]), action)
            state = transition.follow(state.grid, vector, body[:, t + 1], action)
            grids.append(state.grid)
        return torch.stack(grids, dim=1)

    def averaged(self) -> Averaged:
        """Context in which the model has its averaged weights."""
        return Averaged(self)

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
        step = self.load(run, "last")
        run.rewind(step + 1 if step else 0)
        return step

    def load(self, run: Run, name: str) -> int:
        """Load a checkpoint; returns its step, 0 where there is none."""
        state = run.load(name)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.average.to(self.model.device)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return state["step"]


def split(batch: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Cut a batch of clips and moments into `parts` as equal as can be, none of them empty."""
    parts = min(parts, *(len(value) for value in batch.values()))
    cut = {name: value.tensor_split(parts) for name, value in batch.items()}
    return [{name: pieces[i] for name, pieces in cut.items()} for i in range(parts)]


def remembered(batch: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Pictures that a state begins from: the first, then the memory; (n, 1 + m, 3, H, W)."""
    shown = torch.cat([batch["anchor"][:, None], batch["memory"]], dim=1)
    return pixels(shown.to(device))


def moments(windows: Windows, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw moments to read a body at: what is remembered there, and the body itself."""
    batch = windows.lasting(1).batch(windows.sample(count, generator))
    return {"moments": remembered(batch, torch.device("cpu")), "moment_bodies": batch["body"][:, 0]}


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
    drawn: Tensor, clean: Tensor, anchor: Tensor, valid: Tensor, change_weight: float
) -> Tensor:
    """Mean squared error over valid pictures, what changed since the anchor counting more.

    drawn, clean, anchor: (m, 3, H, W) in [-1, 1]; valid: (m,) bool. What has changed: see
    `wm_gym.evaluation.fidelity.changed`.
    """
    weight = (1 + change_weight * changed(clean, anchor)[:, None]) * valid[:, None, None, None]
    error = (drawn - clean).square() * weight
    return error.sum() / (weight.sum() * clean.shape[1]).clamp(min=1)


def clips(windows: Windows, length: int, beginnings: float) -> Windows:
    """The same windows, `length` steps long and drawn so that few steps are lost to padding.

    A share `beginnings` of the draws begins an episode, as play does; the others begin wherever a
    whole clip is left, episodes counting by their length and their chance.
    """
    lengths = windows.store.lengths
    left = lengths[windows.episode] - windows.time
    whole = ((left >= length) | (windows.time == 0)).double()
    share = lengths * windows.by_episode
    share /= share.sum()
    each = share / torch.zeros(len(lengths)).double().index_add_(0, windows.episode, whole)
    weights = (1 - beginnings) * whole * each[windows.episode]
    weights += beginnings * (windows.time == 0) * share[windows.episode]
    return windows.reweight(weights).lasting(length)


@torch.no_grad()
def measure(model: WorldModel, episodes: Sequence[Episode]) -> None:
    """Give the model what need not be learnt: the mean first picture, the scale of the body."""
    first = torch.stack([torch.from_numpy(e.frames[0]) for e in episodes])
    model.renderer.mean.copy_(F.pixel_unshuffle(pixels(first).mean(0), 2))
    bodies = [torch.from_numpy(measured(e, model.config.body)) for e in episodes]
    everything, size = torch.cat(bodies), model.config.body_size
    if everything.shape[1] != size:
        raise ValueError(
            f"{', '.join(model.config.body)} hold {everything.shape[1]} numbers together, and the "
            f"world model's body_size is {size}; make them agree."
        )
    model.body_mean.copy_(everything.mean(0))
    model.body_std.copy_(everything.std(0).clamp_min(1e-4))
    changes = torch.cat([b.diff(dim=0) for b in bodies]).to(model.device) / model.body_std
    motion = model.transition.motion
    motion.mean.copy_(model.body_mean), motion.std.copy_(model.body_std)
    motion.change.copy_(changes.square().mean(0).sqrt().clamp_min(1e-3))


def schedule(config: WorldModelTrainingConfig, step: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine down to a twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _named(report: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in report.items()}
