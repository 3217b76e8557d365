"""What each idea of the world models is worth: trained without it, on the same data, for as long.

python benchmarks/ablations.py --data runs/lift/data/*.hdf5 --path docs/results/ablations.json

Time is the processor's, so that other work on the machine takes less from a variant; variants that
cost the same are trained for as many steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro

from trainers.cli import set_threads
from trainers.wmpo import device
from wm_gym.checks import check_choice
from wm_gym.data.episode import Episode
from wm_gym.data.reading import load
from wm_gym.evaluation.fidelity import STEPS, replay_report
from wm_gym.evaluation.paired import aligned, provenance, write_result
from wm_gym.runs import Run
from wm_gym.world_model.autoencoder import AutoencoderTrainingConfig, train_autoencoder
from wm_gym.world_model.learning import set_aside
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import PRESETS, WorldModelConfig
from wm_gym.world_model.sizes import costs
from wm_gym.world_model.training import WorldModelTrainingConfig, train_world_model
from wm_gym.world_model.transformer import VideoTransformer, VideoTransformerConfig
from wm_gym.world_model.video_training import VideoTrainingConfig, train_video_transformer

CONVOLUTION = PRESETS["nano-object"]
TRANSFORMER = VideoTransformerConfig(  # about as many FLOP for a frame that is drawn as `nano`
    image_size=64,
    patch=4,  # on a CPU few wide tokens learn faster than many
    depth=2,
    width=192,
    heads=4,
    block_out_channels=(8, 8, 16),
    layers_per_block=1,
    latent_channels=8,
    scaling_factor=1.0,
    sampling_steps=1,
)
SAMPLING_STEPS = (1, 2, 4, 16)  # that the transformer is judged with
LIGHT = 10  # times as many steps in a trial of what takes no pictures
SAMPLED = 4  # a trial trains on one in so many episodes: a step takes as long on fewer
HELD_OUT = 0.02  # of what a variant sees, to validate its training; others judge it


@dataclass(frozen=True, slots=True)
class Variant:
    """A world model, and what it is trained on."""

    model: WorldModelConfig | VideoTransformerConfig
    exact: bool = False
    """Without noise on what training plays on from."""
    successes: bool = False
    """From episodes that succeed alone."""
    mirrored: bool = True
    """Motion also from the episodes in a mirror."""


VARIANTS = {
    "convolution": Variant(CONVOLUTION),
    "convolution, without failures": Variant(CONVOLUTION, successes=True),
    "convolution, without noise": Variant(replace(CONVOLUTION, noise=0.0), exact=True),
    "convolution, one network of motion": Variant(replace(CONVOLUTION, members=1)),
    "convolution, without mirrored episodes": Variant(CONVOLUTION, mirrored=False),
    "convolution, not told of the object": Variant(PRESETS["nano"]),
    "transformer": Variant(TRANSFORMER),
    "transformer, without failures": Variant(TRANSFORMER, successes=True),
    "transformer, without anchor": Variant(replace(TRANSFORMER, anchor=False)),
    "transformer, without noise": Variant(replace(TRANSFORMER, memory_noise=0.0)),
}


@dataclass(frozen=True, slots=True)
class AblationConfig:
    """What is compared, and for how long each is trained."""

    data: tuple[Path, ...]
    """HDF5 files of recorded episodes; those held out judge all variants."""
    minutes: float = 20.0
    """Of processor time to train each variant; a transformer's autoencoder has as many before."""
    motion: float = 0.3
    """Share of these for how measurements move by themselves, and are read from pictures."""
    only: tuple[str, ...] = tuple(VARIANTS)
    """Variants to train."""
    pilot: int = 24
    """Steps of the shorter of two trials that say how many fit into the time."""
    seed: int = 0
    out: Path = Path("runs/ablations")
    """Folder for what an interrupted command goes on from; one at a time, as variants that cost
    the same share their number of steps."""
    path: Path | None = None
    """Where to write the numbers as JSON."""
    convolution: WorldModelTrainingConfig = field(default_factory=WorldModelTrainingConfig)
    autoencoder: AutoencoderTrainingConfig = field(
        default_factory=lambda: AutoencoderTrainingConfig(learning_rate=2e-2, warmup=50, ema=0.99)
    )
    video: VideoTrainingConfig = field(
        default_factory=lambda: VideoTrainingConfig(
            batch_size=16, learning_rate=1e-2, warmup=50, ema=0.99, patience=0, least_psnr=0.0
        )
    )


def ablate(config: AblationConfig) -> list[dict[str, Any]]:
    """Train and judge the variants, in order; returns a row for each number of network calls."""
    for name in config.only:
        check_choice("only", name, tuple(VARIANTS))
    run = Run(config.out, replace(config, path=None, only=()), resume=True)
    left = [VARIANTS[name].model for name in config.only if not run.is_done(slug(name))]
    if any(isinstance(model, VideoTransformerConfig) for model in left):
        autoencoder(config, run)  # which they share
    rows = []
    for name in config.only:
        found = [{"variant": name, **row} for row in trained(config, run, name)]
        print(table(found), flush=True)
        rows += found
    return rows


def trained(config: AblationConfig, run: Run, name: str) -> list[dict[str, Any]]:
    """Train and judge a variant, unless that is done."""
    variant = VARIANTS[name]
    kind = convolution if isinstance(variant.model, WorldModelConfig) else transformer

    def train() -> dict[str, Any]:
        fit, judged = split(config)
        seen = [e for e in fit if e.succeeded] if variant.successes else fit
        return {"rows": kind(config, variant, run, slug(name), seen, judged)}

    return run.once(slug(name), train)["rows"]


def slug(name: str) -> str:
    """Name a variant's files."""
    return name.replace(",", "").replace(" ", "-")


def convolution(
    config: AblationConfig,
    variant: Variant,
    run: Run,
    name: str,
    seen: Sequence[Episode],
    judged: Sequence[Episode],
) -> list[dict[str, Any]]:
    """Train a variant with convolutions for as long as is said, and judge it."""
    settings = replace(config.convolution, seed=config.seed, held_out=HELD_OUT)
    if variant.exact:
        settings = replace(settings, body_noise=0.0, motion=replace(settings.motion, noise=0.0))
    if not variant.mirrored:
        settings = replace(settings, motion=replace(settings.motion, mirrored=False))

    def train(stage: Run, episodes: Sequence[Episode], steps: int, motion: int) -> WorldModel:
        torch.manual_seed(config.seed)
        model = WorldModel(variant.model).to(device())
        told = with_motion(replace(settings, steps=steps), motion)
        train_world_model(model, episodes, told, stage)
        return model

    # Clips lengthen by the share of the training that is done, so that a short one has them all.
    few, more, some = config.pilot, LIGHT * config.pilot, seen[::SAMPLED]
    timed = as_costly(variant)
    moved = pace(run, f"{timed}-motion", more, lambda stage, steps: train(stage, some, few, steps))
    drawn = pace(run, f"{timed}-drawing", few, lambda stage, steps: train(stage, some, steps, few))
    seconds = 60 * config.minutes
    motion = fitting(config.motion * seconds, moved)
    steps = fitting((1 - config.motion) * seconds, drawn)
    return [row(train(run.stage(name), seen, steps, motion), steps, judged)]


def with_motion(settings: WorldModelTrainingConfig, steps: int) -> WorldModelTrainingConfig:
    """So many steps of motion, and as large a share of those of reading."""
    reading = max(1, steps * settings.reading.steps // settings.motion.steps)
    return replace(
        settings,
        motion=replace(settings.motion, steps=steps),
        reading=replace(settings.reading, steps=reading),
    )


def transformer(
    config: AblationConfig,
    variant: Variant,
    run: Run,
    name: str,
    seen: Sequence[Episode],
    judged: Sequence[Episode],
) -> list[dict[str, Any]]:
    """Train a variant of the transformer for as long as is said, and judge it."""
    painted = autoencoder(config, run)

    def train(stage: Run, episodes: Sequence[Episode], steps: int) -> VideoTransformer:
        torch.manual_seed(config.seed)
        scale = painted.config.scaling_factor
        model = VideoTransformer(replace(variant.model, scaling_factor=scale)).to(device())
        model.autoencoder.load_state_dict(painted.autoencoder.state_dict())
        settings = replace(config.video, steps=steps, seed=config.seed, held_out=HELD_OUT)
        train_video_transformer(model, episodes, settings, stage, fine_tune=True)
        return model

    some = seen[::SAMPLED]
    timed = as_costly(variant)
    drawn = pace(run, timed, config.pilot, lambda stage, steps: train(stage, some, steps))
    steps = fitting(60 * config.minutes, drawn)
    model, rows = train(run.stage(name), seen, steps), []
    calls = SAMPLING_STEPS if name == "transformer" else (model.sampling_steps,)
    for model.sampling_steps in calls:
        model.config = replace(model.config, sampling_steps=model.sampling_steps)  # what it costs
        rows.append({**row(model, steps, judged), "sampling_steps": model.sampling_steps})
    return rows


def autoencoder(config: AblationConfig, run: Run) -> VideoTransformer:
    """Train the one autoencoder that all transformers share, for as long as each of them."""
    everything, judged = split(config)

    def train(stage: Run, steps: int) -> VideoTransformer:
        torch.manual_seed(config.seed)
        model = VideoTransformer(TRANSFORMER).to(device())
        settings = replace(config.autoencoder, steps=steps, seed=config.seed)
        train_autoencoder(model, everything, judged, settings, stage)
        return model

    drawn = pace(run, "autoencoder", config.pilot, train)
    return train(run.stage("autoencoder"), fitting(60 * config.minutes, drawn))


def split(config: AblationConfig) -> tuple[list[Episode], list[Episode]]:
    """Episodes to train on, and those that judge."""
    return set_aside(load(config.data), config.convolution.held_out, config.seed)


def as_costly(variant: Variant) -> str:
    """Name the first variant that costs as much, so that both are trained for as many steps."""
    spent = costs(variant.model)
    return slug(next(name for name, v in VARIANTS.items() if costs(v.model) == spent))


def pace(run: Run, name: str, pilot: int, train: Callable[[Run, int], Any]) -> float:
    """Steps a second of processor time, by two trials; what both spend beside them cancels out."""

    def seconds(steps: int) -> float:
        with TemporaryDirectory() as folder:
            began = time.process_time()
            train(Run(folder), steps)
            return time.process_time() - began

    def measure() -> dict[str, float]:
        short, long = seconds(pilot), seconds(3 * pilot)
        if long <= short:
            raise RuntimeError(
                f"{3 * pilot} steps of {name!r} took {long:.1f} s of processor time and {pilot} "
                f"took {short:.1f} s: too few to tell their pace; try a larger --pilot."
            )
        return {"pace": 2 * pilot / (long - short)}

    return run.once(f"{name}-pace", measure)["pace"]


def fitting(seconds: float, pace: float) -> int:
    """How many steps fit into a time."""
    return max(1, round(seconds * pace))


def row(
    model: WorldModel | VideoTransformer, steps: int, judged: Sequence[Episode]
) -> dict[str, Any]:
    """Judge a model by held-out replays, in dB by step, and say what it costs."""
    report = replay_report(model, judged, STEPS)
    spent = costs(model.config)
    return {
        "steps": steps,
        "weights": spent.weights,
        "flop": spent.frame_flop + spent.picture_flop,
        "psnr": {str(step): report[f"psnr/{step}"] for step in STEPS},
        "psnr_lost_other_actions": {
            str(step): round(report[f"psnr/{step}"] - report[f"psnr_other/{step}"], 2)
            for step in STEPS
        },
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as plain text."""
    lines = [("", "calls", "steps", "GFLOP", *(f"dB@{t}" for t in STEPS), "lost@16")]
    for row in rows:
        calls, gflop = str(row.get("sampling_steps", "")), f"{row['flop'] / 1e9:.2f}"
        figures = (f"{value:.1f}" for value in row["psnr"].values())
        lost = f"{row['psnr_lost_other_actions']['16']:.1f}"
        lines.append((row["variant"], calls, str(row["steps"]), gflop, *figures, lost))
    return "\n".join(aligned(lines))


def main(config: AblationConfig) -> None:
    """Train, judge, print, and write where asked."""
    set_threads()
    rows = ablate(config)
    print(table(rows))
    if config.path:
        write_result(config.path, {**provenance([config.seed]), "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(AblationConfig))
