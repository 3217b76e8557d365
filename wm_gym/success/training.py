"""Train the success classifier on real episodes and calibrate it on held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from wm_gym.data.episodes import Episode
from wm_gym.data.windows import SuccessWindows, holdout_episodes
from wm_gym.success.calibration import Calibration, calibrate
from wm_gym.success.classifier import SuccessClassifier, SuccessConfig


@dataclass(frozen=True, slots=True)
class SuccessTrainingConfig:
    """How the classifier is trained; the paper fine-tunes VideoMAE for up to 200,000 steps."""

    steps: int = 600
    batch_size: int = 48
    """Windows a step, half of them successes."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    near_miss_weight: float = 4.0
    """Extra weight of the windows that end within `near` steps before a success."""
    near: int = 12
    blur: float = 0.8
    """Largest share of a 3 x 3 mean that is mixed in: imagined pictures are softer."""
    noise: float = 0.06
    """Largest standard deviation of added noise, on pictures in [-1, 1]."""
    held_out: float = 0.2
    """Share of the episodes of every source that only calibrate."""
    false_success_limit: float = 0.05
    """Calibration: at most this share of failed held-out episodes may be called a success."""
    seed: int = 0


def train_classifier(
    encode: Callable[[Tensor], Tensor],
    episodes: Sequence[Episode],
    shape: SuccessConfig,
    config: SuccessTrainingConfig,
) -> tuple[SuccessClassifier, Calibration]:
    """Train on `episodes`, whose pictures `encode` turns into latents (see WorldModel.encode).

    Returns the classifier, its threshold set by `calibrate` on the episodes held out, and what
    they say about it. The latents' device decides where the training runs.
    """
    if not any(e.succeeded for e in episodes):
        raise ValueError(
            f"A success classifier learns from successes; none of {len(episodes)} episodes "
            "succeeds. Record some that do, of the scripted expert for example."
        )
    torch.manual_seed(config.seed)
    held_out = set(holdout_episodes([e.source for e in episodes], config.held_out, config.seed))
    fit = [e for i, e in enumerate(episodes) if i not in held_out]
    windows = SuccessWindows(fit, window=shape.window)
    windows = windows.reweight(_weights(windows, config))
    device = encode(windows.batch([0])["frames"]).device
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
        batch = windows.batch(windows.sample(config.batch_size, generator))
        latents = encode(batch["frames"])
        with torch.autocast(device.type, torch.bfloat16):
            logits = classifier.logits(classifier.embed(soften(latents, config)))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch["label"].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    classifier.eval()
    probabilities = [watch(classifier, encode, episodes[i]) for i in sorted(held_out)]
    labels = [frame_labels(episodes[i]) for i in sorted(held_out)]
    found = calibrate(probabilities, labels, shape.hold_k, shape.hold_n, config.false_success_limit)
    classifier.config = replace(shape, threshold=found.threshold)
    return classifier, found


@torch.inference_mode()
def watch(classifier: SuccessClassifier, encode: Callable[[Tensor], Tensor], episode: Episode):
    """Probability of success after every frame of an episode, (t + 1,) float32 NumPy."""
    frames = torch.from_numpy(episode.frames)[None]
    return classifier.watch(encode(frames))[0].cpu().numpy()


def soften(latents: Tensor, config: SuccessTrainingConfig) -> Tensor:
    """Blur and noise whole windows (n, t, c, h, w) by random amounts, a different one each."""
    n, t, c, h, w = latents.shape
    patch = int((c / 3) ** 0.5)
    share = torch.rand(n, 1, 1, 1, device=latents.device).repeat_interleave(t, 0) * config.blur
    pictures = F.pixel_shuffle(latents.flatten(0, 1), patch)
    mean = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    pictures = pictures + share * (mean - pictures)
    level = torch.rand(n, 1, 1, 1, 1, device=latents.device) * config.noise
    soft = F.pixel_unshuffle(pictures, patch).unflatten(0, (n, t))
    return soft + level * torch.randn_like(soft)


def frame_labels(episode: Episode) -> np.ndarray:
    """The simulator's predicate at every frame, False at the first, (t + 1,) bool."""
    return torch.cat([torch.zeros(1, dtype=torch.bool), torch.from_numpy(episode.success)]).numpy()


def _weights(windows: SuccessWindows, config: SuccessTrainingConfig) -> Tensor:
    """Half the weight on successes; of the rest, more on what comes just before one."""
    labels = windows.labels
    weights = torch.ones(len(windows), dtype=torch.float64)
    for ahead in range(1, config.near + 1):
        soon = (windows.episode[:-ahead] == windows.episode[ahead:]) & labels[ahead:]
        weights[:-ahead][soon & ~labels[:-ahead]] = config.near_miss_weight
    weights[labels] = float(weights[~labels].sum() / labels.sum().clamp(min=1))
    return weights
