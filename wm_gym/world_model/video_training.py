"""Train a video transformer on recorded episodes: its autoencoder, then the dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from wm_gym.checks import check_size
from wm_gym.data.episode import Episode
from wm_gym.data.windows import Windows
from wm_gym.evaluation.fidelity import recorded_latents, replay_report, steps_to_judge
from wm_gym.runs import Run
from wm_gym.world_model.autoencoder import (
    AutoencoderTrainingConfig,
    reconstruction,
    train_autoencoder,
)
from wm_gym.world_model.flow import flow_loss
from wm_gym.world_model.learning import Learner, LearningConfig, clips, learn, set_aside
from wm_gym.world_model.muon import by_kind
from wm_gym.world_model.transformer import VideoTransformer


@dataclass(frozen=True, slots=True)
class VideoTrainingConfig(LearningConfig):
    """How a video transformer is trained; the defaults are for the `small` preset."""

    steps: int = 50_000
    batch_size: int = 64
    """Windows a step; each has the first frame, those remembered, and `max_chunk` to come, of which
    every one is imagined as if it were the last: attention along time is causal (WMPO: 128)."""
    learning_rate: float = 5e-3
    """Muon's at its peak: reached after `warmup` steps, then down to a twentieth along a cosine.
    AdamW has half of it, for what is no matrix (WMPO: AdamW, 1e-4)."""
    warmup: int = 1000
    ema: float = 0.9995
    weights: dict[str, float] = field(default_factory=dict)
    """Relative chance of a window by the source of its episode, 1 where not named."""
    beginnings: float = 0.1
    """Share of the windows that begin where their episode does, as play does."""
    held_out: float = 0.08
    """Share of the episodes of every source that only validate."""
    validate_every: int = 2000
    patience: int = 5
    """Validations in a row without a better replay that end the training, with the weights that
    replayed best; 0 never does, and keeps the last."""
    autoencoder: AutoencoderTrainingConfig = field(default_factory=AutoencoderTrainingConfig)
    """Of pictures into latents and back, before all else."""
    least_psnr: float = 33.0
    """What held-out pictures must be worth after the autoencoder, in dB, for the dynamics to be
    trained: what it loses they can never imagine."""


def train_video_transformer(
    model: VideoTransformer,
    episodes: Sequence[Episode],
    config: VideoTrainingConfig,
    run: Run,
    *,
    fine_tune: bool = False,
) -> dict[str, float]:
    """Train `model` in place, on its device; it ends with the averaged weights.

    `fine_tune`: the model is no new one and keeps its autoencoder. Returns the held-out replay (see
    `replay_report`) of the weights that it keeps, and under `reconstruction/...` what the
    autoencoder is worth. Checkpoints go into the stages `autoencoder` and `world_model` of `run`,
    from which an interrupted training continues. Raises ValueError where the autoencoder is below
    `least_psnr`, before the second stage has begun.
    """
    fit, judged = set_aside(episodes, config.held_out, config.seed)
    compared = steps_to_judge(judged)
    check_size(episodes, model.config.image_size)
    if not fine_tune:
        settings = replace(config.autoencoder, seed=config.seed)
        told = {**asdict(settings), "weights": config.weights, "held_out": config.held_out}
        stage = run.stage("autoencoder", told)
        train_autoencoder(model, fit, judged, settings, stage, config.weights)
    quality = reconstruction(model, judged)
    check_quality(quality, config.least_psnr)
    latents = recorded_latents(model, tqdm(fit, "latents", leave=False))
    windows = Windows(fit, memory=model.config.memory, weights=config.weights, latents=latents)
    learner, stage = VideoLearner(model, config), run.stage("world_model", config)
    first = learner.restore(stage)
    windows = clips(windows, model.config.max_chunk, config.beginnings)

    def draw(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        return windows.batch(windows.sample(config.batch_size, generator))

    def judge() -> dict[str, float]:
        return replay_report(model, judged, compared)

    step = max(t for t in compared if t <= 16)
    shown = {f"dB@{step}": f"psnr/{step}", "other": f"psnr_other/{step}"}
    report = learn(learner, stage, first, draw, judge, f"psnr/{compared[-1]}", shown)
    return report | {f"reconstruction/{name}": value for name, value in quality.items()}


class VideoLearner(Learner):
    """Of a video transformer, whose autoencoder is left as it is."""

    name = "video transformer"
    model: VideoTransformer

    def __init__(self, model: VideoTransformer, config: VideoTrainingConfig) -> None:
        """Begin from the model's present weights."""
        model.autoencoder.requires_grad_(False)
        super().__init__(model, config, by_kind(model, config.learning_rate, config.weight_decay))

    def _loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        device = self.model.device.type
        # The gradient of torch's kernel for a CPU takes longer than all the rest of attention.
        plain = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
        with torch.autocast(device, torch.bfloat16), plain:
            return flow_loss(self.model, batch, generator)


def check_quality(quality: dict[str, float], least: float) -> None:
    """Say what an autoencoder is worth; raises ValueError where it is less than `least` dB."""
    print(
        f"The autoencoder draws held-out pictures at {quality['psnr']} dB, what moves in them at "
        f"{quality['psnr_moving']} dB."
    )
    if not quality["psnr"] >= least:
        raise ValueError(
            f"The autoencoder draws held-out pictures at {quality['psnr']} dB, and the dynamics "
            f"are trained from {least} dB on: what it loses they can never imagine. Train it for "
            "longer (--video.autoencoder.steps, another --out), or lower the bar with "
            "--video.least-psnr."
        )
