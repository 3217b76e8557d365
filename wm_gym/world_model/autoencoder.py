"""Train the autoencoder of a video transformer on the pictures of recorded episodes.

What it loses the dynamics can never imagine, so it comes first, and is judged before they begin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from wm_gym.data.episode import Episode
from wm_gym.data.windows import Windows
from wm_gym.evaluation.fidelity import changed, moving, psnr
from wm_gym.runs import Run
from wm_gym.world_model.learning import Learner, LearningConfig, learn
from wm_gym.world_model.model import pixels
from wm_gym.world_model.muon import by_kind
from wm_gym.world_model.transformer import VideoTransformer

JUDGED = 512  # held-out pictures that go through the autoencoder in a validation
MEASURED = 1024  # pictures whose latents say how large latents are


@dataclass(frozen=True, slots=True)
class AutoencoderTrainingConfig(LearningConfig):
    """How an autoencoder is trained; the defaults are for the `small` preset."""

    steps: int = 20_000
    batch_size: int = 32
    """Pictures a step."""
    learning_rate: float = 5e-3
    """Muon's at its peak, for the weights of convolutions and linear maps; AdamW has half of it."""
    warmup: int = 500
    ema: float = 0.999
    kl_weight: float = 1e-6
    """Of the latents' divergence from a standard normal distribution, beside the absolute error,
    both summed over a picture (latent diffusion: 1e-6)."""
    change_weight: float = 2.0
    """Extra weight of pixels near what differs from the first frame: what moves is small."""
    validate_every: int = 1000


def train_autoencoder(
    model: VideoTransformer,
    fit: Sequence[Episode],
    judged: Sequence[Episode],
    config: AutoencoderTrainingConfig,
    run: Run,
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Train the autoencoder of `model` in place on the pictures of the episodes `fit`.

    It ends with the averaged weights, and the model's `scaling_factor` is set to bring its latents
    to unit variance. weights: relative chance of a picture by source, 1 where not named. Returns
    what `reconstruction` says of the episodes `judged`. Checkpoints go into `run`, from which an
    interrupted training continues.
    """
    windows = Windows(fit, memory=1, block=1, weights=weights)
    learner = AutoencoderLearner(model.autoencoder, config)
    first = learner.restore(run)

    def draw(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = windows.batch(windows.sample(config.batch_size, generator))
        return {"pictures": batch["memory"][:, 0], "first": batch["anchor"]}

    shown = {"dB": "psnr", "moving": "psnr_moving"}
    report = learn(learner, run, first, draw, lambda: reconstruction(model, judged), "psnr", shown)
    generator = torch.Generator().manual_seed(config.seed)
    sampled = windows.batch(windows.sample(MEASURED, generator))["memory"]
    model.config = replace(model.config, scaling_factor=measure_scaling(model, sampled))
    return report


class AutoencoderLearner(Learner):
    """Of an image autoencoder (KL-regularised, Rombach et al. 2022, section 3.1)."""

    name = "autoencoder"
    model: AutoencoderKL
    config: AutoencoderTrainingConfig

    def __init__(self, model: AutoencoderKL, config: AutoencoderTrainingConfig) -> None:
        """Begin from the model's present weights."""
        model.requires_grad_(True)
        super().__init__(model, config, by_kind(model, config.learning_rate, config.weight_decay))

    def _loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        clean, first = (pixels(batch[name].to(self.model.device)) for name in ("pictures", "first"))
        with torch.autocast(clean.device.type, torch.bfloat16):
            encoded = self.model.encode(clean).latent_dist.parameters.float()
            posterior = DiagonalGaussianDistribution(encoded)
            drawn = self.model.decode(posterior.sample(generator)).sample.float()
        weight = 1 + self.config.change_weight * changed(clean, first)[:, None]  # (n, 1, H, W)
        error = ((drawn - clean).abs() * weight).sum() / (weight.sum() * clean.shape[1])
        return error + self.config.kl_weight * posterior.kl().mean() / clean[0].numel()


def reconstruction(model: VideoTransformer, episodes: Sequence[Episode]) -> dict[str, float]:
    """How well pictures survive the autoencoder: PSNR in dB, means over pictures.

    Keys: `psnr` of all their pixels; `psnr_moving` of those near what differs from the episode's
    first frame. At most `JUDGED` pictures count, evenly spaced along one episode after another.
    """
    lengths = [len(episode.frames) for episode in episodes]
    ends = np.cumsum(lengths)
    chosen = np.linspace(0, ends[-1] - 1, min(JUDGED, ends[-1])).round().astype(int)
    of = ends.searchsorted(chosen, side="right")  # the episode of each
    found, found_moving = [], []
    for i in np.unique(of):
        episode, places = episodes[i], chosen[of == i] - (ends[i] - lengths[i])
        pictures = torch.from_numpy(episode.frames[places])
        drawn = reconstructed(model, pictures)
        region = moving(pictures, torch.from_numpy(episode.frames[:1]))
        found.append(psnr(drawn, pictures))
        found_moving.append(psnr(drawn, pictures, region))
    figures = {"psnr": torch.cat(found), "psnr_moving": torch.cat(found_moving)}
    return {name: round(float(values.nanmean()), 2) for name, values in figures.items()}


@torch.inference_mode()
def reconstructed(model: VideoTransformer, pictures: Tensor) -> Tensor:
    """Pictures (n, H, W, 3) uint8 as the autoencoder draws them, on the CPU."""
    with torch.autocast(model.device.type, torch.bfloat16):
        return model.decode(model.encode(pictures[:, None]))[:, 0].cpu()


@torch.inference_mode()
def measure_scaling(model: VideoTransformer, frames: Tensor) -> float:
    """1 / the standard deviation of the unscaled latents of frames (n, t, H, W, 3) uint8."""
    with torch.autocast(model.device.type, torch.bfloat16):
        latents = model.encode(frames) / model.config.scaling_factor
    return 1 / float(latents.std())
