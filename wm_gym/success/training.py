"""Train the success classifier on recorded episodes, seen and imagined, and calibrate it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm, trange

from wm_gym.data.episode import Episode
from wm_gym.data.measurements import measured
from wm_gym.data.windows import deal
from wm_gym.evaluation.fidelity import known, recorded_latents, replay_latents
from wm_gym.noise import row_noise
from wm_gym.success.calibration import Calibration, Watched, choose_rule
from wm_gym.success.classifier import SuccessClassifier, SuccessConfig

if TYPE_CHECKING:
    from wm_gym.world_model.model import WorldModel
    from wm_gym.world_model.transformer import VideoTransformer


@dataclass(frozen=True, slots=True)
class SuccessTrainingConfig:
    """How the classifier is trained; the paper fine-tunes VideoMAE for up to 200,000 steps."""

    steps: int = 600
    batch_size: int = 96
    """Windows a step, half of them successes."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    near_miss_weight: float = 4.0
    """Weight of the windows that end within `near` steps before a success."""
    near: int = 12
    imagined: int = 80
    """Steps of an episode that are imagined to choose the rule: later, what really came of it may
    be none of the model's doing any more."""
    folds: int = 5
    """Parts of a cross-validation: the rule is chosen on what classifiers say of episodes that they
    have not seen."""
    false_success_limit: float = 0.05
    """Calibration: at most this share of failed episodes may be called a success."""
    seed: int = 0


def train_classifier(
    model: WorldModel | VideoTransformer,
    episodes: Sequence[Episode],
    shape: SuccessConfig,
    config: SuccessTrainingConfig,
) -> tuple[SuccessClassifier, Calibration, Calibration]:
    """Train on the latents of `episodes`, on the model's device, with what really came of them.

    Every episode is there twice: as recorded, and imagined under its actions by a model that is
    told the truth again and again (see `latents_of`), so that the classifier knows how the model
    shows a grasp that fails, and a label always fits what is shown. Failed episodes are few, and a
    rule that is chosen on a few is chosen by chance: all of them count, each judged by a classifier
    that learnt from the other folds. Every source counts alike, however many episodes it has: play
    is made to mislead, and there is more of it than of what a policy does. Returns the classifier,
    of all episodes, with the rule that `choose_rule` finds so, what the episodes say of it as
    recorded, and what their imagined replays do.
    """
    if not any(e.succeeded for e in episodes):
        raise ValueError(
            f"A success classifier learns from successes; none of {len(episodes)} episodes "
            "succeeds. Record some that do, of the scripted expert for example."
        )
    fold = deal([e.source for e in episodes], config.folds, config.seed)
    labels = [frame_labels(e) for e in episodes]
    seen, followed = latents_of(model, episodes)
    imagined = imagined_latents(model, episodes, config.imagined)
    windows = LatentWindows(seen + followed, labels + labels, shape)
    fold_of = torch.from_numpy(fold).repeat(2)[windows.episode]
    told: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for out in range(fold.max() + 1):
        stranger = fit(windows, fold_of != out, shape, config, model.device)
        for i in np.flatnonzero(fold == out):
            told[i] = watch(stranger, imagined[i]), watch(stranger, seen[i])
    shown, recorded = zip(*(told[i] for i in range(len(episodes))), strict=True)
    cut = [label[: len(x)] for label, x in zip(labels, shown, strict=True)]
    sources = Counter(e.source for e in episodes)
    weights = np.array([1 / sources[e.source] for e in episodes])
    hold, found, real = choose_rule(
        Watched(shown, cut, weights),
        Watched(recorded, labels, weights),
        config.false_success_limit,
    )
    classifier = fit(
        windows, torch.ones_like(fold_of, dtype=torch.bool), shape, config, model.device
    )
    classifier.config = replace(shape, threshold=found.threshold, hold_k=hold, hold_n=hold)
    return classifier, real, found


def fit(
    windows: LatentWindows,
    kept: Tensor,
    shape: SuccessConfig,
    config: SuccessTrainingConfig,
    device: torch.device,
) -> SuccessClassifier:
    """Train a new classifier on the windows that `kept`, bool (windows,), says."""
    weights = window_weights(windows, config, kept)
    torch.manual_seed(config.seed)
    classifier = SuccessClassifier(shape).to(device).train()
    optimizer = torch.optim.AdamW(
        classifier.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    # It divides by pct_start x steps - 1, so the share is none that makes this 0.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, config.steps, pct_start=0.051
    )
    generator = torch.Generator().manual_seed(config.seed)
    bar = trange(config.steps, desc="success classifier")
    for _ in bar:
        drawn = torch.multinomial(weights, config.batch_size, True, generator=generator)
        latents, label = windows.batch(drawn)
        with torch.autocast(device.type, torch.bfloat16):
            logits = classifier.logits(classifier.embed(latents.to(device).float()))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits.float(), label.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return classifier.eval()


@torch.inference_mode()
def latents_of(
    model: WorldModel | VideoTransformer, episodes: Sequence[Episode], batch_size: int = 32
) -> tuple[list[Tensor], list[Tensor]]:
    """Latents (t + 1, f) float16 on the CPU of every episode, as recorded and as followed.

    Followed: imagined from its first picture, told at every step what was measured; by a model of
    pictures alone in blocks, each from the pictures before it.
    """
    tell = _followed if hasattr(model.config, "body") else _retold
    seen, followed = [], []
    for first in tqdm(range(0, len(episodes), batch_size), "latents", leave=False):
        batch = episodes[first : first + batch_size]
        seen += recorded_latents(model, batch)
        with torch.autocast(model.device.type, torch.bfloat16):
            shown = tell(model, batch, seen[first:], first).half().cpu()
        for row, episode in enumerate(batch):
            followed.append(torch.cat([seen[first + row][:1], shown[row, : len(episode)]]))
    return seen, followed


def _followed(model: WorldModel, episodes: Sequence[Episode], *_: object) -> Tensor:
    begun = torch.from_numpy(np.stack([e.frames[:1] for e in episodes])).to(model.device)
    bodies = [measured(e, model.config.body)[1:] for e in episodes]
    actions = padded([e.actions for e in episodes]).to(model.device)
    memory = model.begin(begun, known(model, episodes))
    return model.follow(memory, actions, padded(bodies).to(model.device))


def _retold(
    model: VideoTransformer, episodes: Sequence[Episode], seen: Sequence[Tensor], first: int
) -> Tensor:
    """`first`: the number of the first episode, which tells their noise apart from others'."""
    rows = np.arange(first, first + len(episodes))
    actions = padded([e.actions for e in episodes]).to(model.device)
    shape = model.noise_shape(actions.shape[1])
    noise = row_noise(rows, np.zeros_like(rows), np.zeros_like(rows), shape, model.device)
    latents = nn.utils.rnn.pad_sequence(seen, True).to(model.device).float()
    return model.retell(latents, actions, noise)


def imagined_latents(
    model: WorldModel, episodes: Sequence[Episode], steps: int, batch_size: int = 32
) -> list[Tensor]:
    """Latents (t + 1, f) float16 on the CPU of replays from the first pictures, t at most `steps`.

    The first is that of the picture itself.
    """
    imagined = []
    for first in range(0, len(episodes), batch_size):
        batch = episodes[first : first + batch_size]
        begun = torch.from_numpy(np.stack([e.frames[0] for e in batch]))
        actions = padded([e.actions[:steps] for e in batch])
        replayed = replay_latents(model, begun, actions, robot=known(model, batch), seed=first)
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16):
            shown = model.encode(begun[:, None])  # (b, 1, f)
        latents = torch.cat([shown, replayed], dim=1).half().cpu()
        imagined += [latents[row, : 1 + min(len(e), steps)] for row, e in enumerate(batch)]
    return imagined


@torch.inference_mode()
def reconstruction_agreement(
    model: WorldModel | VideoTransformer,
    classifier: SuccessClassifier,
    episodes: Sequence[Episode],
) -> float:
    """Share of the pictures of episodes that are judged alike once the model has drawn them itself.

    Judged is whether the window that ends there is a hit; drawn pictures are read again like any.
    """
    same = []
    for episode, seen in zip(episodes, recorded_latents(model, episodes), strict=True):
        with torch.autocast(model.device.type, torch.bfloat16):
            drawn = model.decode(seen[None].to(model.device).float())
        again = recorded_latents(model, [replace(episode, frames=drawn[0].cpu().numpy())])[0]
        hits = [watch(classifier, latents) >= classifier.threshold for latents in (seen, again)]
        same.append(hits[0] == hits[1])
    return float(np.concatenate(same).mean())


def padded(arrays: Sequence[np.ndarray]) -> Tensor:
    """Stack arrays (t, d) of different lengths, (n, longest, d) with zeros behind."""
    return nn.utils.rnn.pad_sequence([torch.from_numpy(array) for array in arrays], True)


class LatentWindows:
    """The windows that end at every frame of every episode, with the label of that frame."""

    def __init__(
        self, latents: list[Tensor], labels: list[np.ndarray], shape: SuccessConfig
    ) -> None:
        """Take latents (t + 1, f) and labels (t + 1,) bool of each episode."""
        lengths = torch.tensor([len(part) for part in latents])
        self.latents, self.labels = torch.cat(latents), torch.from_numpy(np.concatenate(labels))
        self.episode = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        self.first = (lengths.cumsum(0) - lengths)[self.episode]  # row of the episode's frame 0
        self.back = torch.arange(1 - shape.window, 1)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (b, window, f), padded with frame 0, and labels (b,) float32 0 or 1."""
        rows = torch.maximum(indices[:, None] + self.back, self.first[indices][:, None])
        return self.latents[rows], self.labels[indices].float()


@torch.inference_mode()
def watch(classifier: SuccessClassifier, latents: Tensor) -> np.ndarray:
    """Probability of success after every frame of an episode, latents (t, f) to (t,) float32."""
    device = next(classifier.parameters()).device
    return classifier.watch(latents[None].to(device).float())[0].cpu().numpy()


def frame_labels(episode: Episode) -> np.ndarray:
    """The simulator's predicate at every frame, False at the first, (t + 1,) bool."""
    return np.concatenate([np.zeros(1, bool), episode.success])


def window_weights(windows: LatentWindows, config: SuccessTrainingConfig, kept: Tensor) -> Tensor:
    """Half the weight on successes; of the rest, more on what comes just before one.

    Only what `kept`, bool (windows,), says has any.
    """
    labels = windows.labels & kept
    weights = kept.double()
    for ahead in range(1, config.near + 1):
        soon = (windows.episode[:-ahead] == windows.episode[ahead:]) & labels[ahead:]
        weights[:-ahead][soon & ~labels[:-ahead]] = config.near_miss_weight
    weights[labels] = float(weights[~labels].sum() / labels.sum().clamp(min=1))
    return weights
