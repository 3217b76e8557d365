"""Train a pixel world model on recorded episodes, through time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from wm_gym.checks import check_size
from wm_gym.data.episode import Episode
from wm_gym.data.measurements import measured, observed
from wm_gym.data.symmetry import check_mirrored, check_robot, mirrored
from wm_gym.data.windows import Windows
from wm_gym.evaluation.fidelity import changed, replay_report, steps_to_judge
from wm_gym.runs import Run
from wm_gym.world_model import learning
from wm_gym.world_model.dynamics import State
from wm_gym.world_model.learning import LearningConfig, clips, learn, set_aside
from wm_gym.world_model.model import WorldModel, pixels
from wm_gym.world_model.motion import MotionTrainingConfig, fit_motion
from wm_gym.world_model.muon import muon_and_adamw
from wm_gym.world_model.reading import ReadingTrainingConfig, fit_reader


@dataclass(frozen=True, slots=True)
class WorldModelTrainingConfig(LearningConfig):
    """How a world model is trained; the defaults are for the preset `nano-object`."""

    steps: int = 6_000
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
    weights: dict[str, float] = field(default_factory=dict)
    """Relative chance of a clip by the source of its episode, 1 where not named."""
    pictures: int = 96
    """Pictures that a batch is judged by, drawn anew each time from all that its clips show. Where
    the body is the whole state these are the batch, and there are no clips."""
    beginnings: float = 0.3
    """Share of the clips that begin where their episode does."""
    learning_rate: float = 8e-3
    """Of Muon, for matrices and convolutions, at its peak: reached after `warmup` steps, then down
    to a twentieth along a cosine. AdamW has half of it, for all other weights."""
    change_weight: float = 2.0
    """Extra weight of pixels near what differs from the first frame: what moves is small."""
    body_noise: float = 0.01
    """Noise on the body that every step is told, in its standard deviations: what is imagined will
    not be exact."""
    motion: MotionTrainingConfig = field(default_factory=MotionTrainingConfig)
    """Of the measurements by themselves, before all else."""
    reading: ReadingTrainingConfig = field(default_factory=ReadingTrainingConfig)
    """Of the measurements from pictures, before these are drawn."""
    validate_every: int = 1000
    held_out: float = 0.08
    """Share of the episodes of every source that only validate."""

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
    unfilmed: Sequence[Episode] = (),
    fine_tune: bool = False,
) -> dict[str, float]:
    """Train `model` in place, on its device; it ends with the averaged weights.

    `unfilmed`: episodes whose pictures are not needed: motion alone learns from them, too.
    `fine_tune`: the model is no new one and keeps its mean picture and its scale of the body.
    Returns the held-out replay (see `replay_report`) of the weights that it keeps. Checkpoints go
    into `run`, from which an interrupted training continues. Raises ValueError for pictures of
    another size than the model's.
    """
    check_size(episodes, model.config.image_size)
    for episode in (*episodes, *unfilmed):  # an hour before the last of them is asked
        measured(episode, model.config.body)
    fit, judged = set_aside(episodes, config.held_out, config.seed)
    compared = steps_to_judge(judged)
    never_seen = {e.source for e in unfilmed} - {e.source for e in fit}
    weights = {source: w for source, w in config.weights.items() if source not in never_seen}
    windows = Windows(fit, memory=model.config.memory, weights=weights, body=model.config.body)
    learner = Learner(model, config)
    first = learner.restore(run)
    if not first:
        if not fine_tune:
            measure(model, fit)
        parts = {
            "moving": lambda: learn_motion(model, [*fit, *unfilmed], config),
            "reading": lambda: learn_reading(model, windows, config),
        }
        for name, learn_part in parts.items():
            if learner.load(run, name) is None:
                learn_part()
                run.save(learner.state(0), name)

    moments = windows.lasting(1)

    @cache
    def lasting(length: int) -> Windows:
        return clips(windows, length, config.beginnings)

    def draw(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if not model.config.width:
            return moments.batch(moments.sample(config.pictures, generator))
        length = config.length(step)
        count = min(config.most_clips, max(1, config.transitions // length))
        return lasting(length).batch(lasting(length).sample(count, generator))

    def judge() -> dict[str, float]:
        return replay_report(model, judged, compared)

    step = max(t for t in compared if t <= 16)
    shown = {f"dB@{step}": f"psnr/{step}", "other": f"psnr_other/{step}"}
    return learn(learner, run, first, draw, judge, f"psnr/{compared[-1]}", shown)


def learn_motion(
    model: WorldModel, episodes: Sequence[Episode], config: WorldModelTrainingConfig
) -> None:
    """Fit how measurements move by themselves; it takes a few minutes, and no picture."""
    names, mirror = model.config.body, model.config.mirror if config.motion.mirrored else None
    if mirror is not None:
        check_mirrored(names)
        episodes = [each for e in episodes for each in (e, in_mirror(e, mirror))]
    mean, std = model.body_mean.cpu(), model.body_std.cpu()
    bodies = [(torch.from_numpy(measured(e, names)) - mean) / std for e in episodes]
    actions = [e.actions for e in episodes]
    weights = [config.weights.get(e.source, 1.0) for e in episodes]
    fit_motion(model.transition.motion, bodies, actions, config.motion, config.seed, weights)


def in_mirror(episode: Episode, y: float) -> Episode:
    """Show what an episode measured in the mirror at `y`; its pictures stay as they are."""
    check_robot(episode.robot)
    low_dim, actions = mirrored(observed(episode), episode.actions, y)
    return replace(episode, low_dim=low_dim, actions=actions)


def learn_reading(model: WorldModel, windows: Windows, config: WorldModelTrainingConfig) -> None:
    """Fit how measurements are read from pictures; it takes a few minutes."""
    scale = model.body_mean, model.body_std
    moments = clips(windows, 1, config.beginnings)
    places = (*model.config.hand, *model.config.objects)
    fit_reader(model.encoder.body, moments, *scale, places, config.reading, config.seed)


class Learner(learning.Learner):
    """Of a recurrent world model."""

    name = "world model"
    model: WorldModel
    config: WorldModelTrainingConfig

    def __init__(self, model: WorldModel, config: WorldModelTrainingConfig) -> None:
        """Begin from the model's present weights."""
        for part in (model.transition.motion, model.encoder.body):  # learnt before, by themselves
            part.requires_grad_(False)
        draw = model.renderer
        apart = {id(p) for p in (*draw.leave.parameters(), *draw.layout.parameters(), draw.mean)}
        apart |= {id(p) for p in model.encoder.parameters(recurse=False)}  # the grid's places
        learnt = [p for p in model.parameters() if p.requires_grad]
        inner = [p for p in learnt if p.dim() >= 2 and id(p) not in apart]
        others = {id(p) for p in inner}
        outer = [p for p in learnt if id(p) not in others]
        optimizers = muon_and_adamw(inner, outer, config.learning_rate, config.weight_decay)
        super().__init__(model, config, optimizers)

    def _loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        model, device = self.model, self.model.device
        n, t = batch["valid"].shape
        each = min(t, max(2, self.config.pictures // n))
        chosen = torch.rand(n, t, generator=generator).argsort(1)[:, :each]  # (n, f)
        rows = torch.arange(n)[:, None]
        clean = pixels(batch["future"][rows, chosen].to(device)).flatten(0, 1)
        anchor = pixels(batch["anchor"].to(device))
        noise = torch.randn((n, *model.noise_shape(t)), generator=generator).to(device)
        body = (batch["body"].to(device) - model.body_mean) / model.body_std  # (n, 1 + t, p)
        valid = batch["valid"].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            grids = body.new_empty(n, t, 0, 1, 1)
            if model.config.width:
                start = model.encoder(remembered(batch, device))
                grids = self._led(start, batch["actions"].to(device), body, noise)
            seen = grids[rows, chosen].flatten(0, 1), body[:, 1:][rows, chosen].flatten(0, 1)
            drawn = model.renderer(*seen)
        still = anchor.repeat_interleave(each, 0)
        shown = valid[rows, chosen].flatten()
        return frame_loss(drawn, clean, still, shown, self.config.change_weight)

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


def remembered(batch: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Pictures that a state begins from: the first, then the memory; (n, 1 + m, 3, H, W)."""
    shown = torch.cat([batch["anchor"][:, None], batch["memory"]], dim=1)
    return pixels(shown.to(device))


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
