"""World model and success classifier from recorded episodes of any origin.

wm-gym train-world-model data/ more.hdf5 --out runs/mine            # a new one
wm-gym train-world-model new.hdf5 --init lift --out runs/tuned      # go on with one that there is
wm-gym train-world-model large.hdf5 --preset small --out runs/large # a video transformer, on a GPU
wm-gym train-success data/ more.hdf5 --out runs/mine                # for the world model in --out
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from trainers import wmpo
from trainers.settings import WMPOConfig, check, open_run
from wm_gym.checks import check_count, check_unset
from wm_gym.data.episode import Episode
from wm_gym.data.reading import IMAGE, EpisodeFile, load
from wm_gym.runs import Run, finished
from wm_gym.world_model.loading import world_model_class
from wm_gym.world_model.presets import PRESETS
from wm_gym.world_model.sizes import SIZES
from wm_gym.world_model.training import WorldModelTrainingConfig
from wm_gym.world_model.transformer import VideoTransformer, VideoTransformerConfig
from wm_gym.world_model.video_training import VideoTrainingConfig, train_video_transformer


@dataclass(frozen=True, slots=True)
class EpisodesConfig:
    """What is trained on, and how."""

    episodes: tyro.conf.Positional[tuple[Path, ...]] = ()
    """robomimic HDF5 files, or folders of them; none means those of the run folder. Files without
    pictures teach a world model how what is measured moves, and nothing else."""
    run: Annotated[WMPOConfig, tyro.conf.arg(name="")] = field(default_factory=WMPOConfig)
    """Where to, and the settings of the training."""
    image_key: str = IMAGE
    """Observation that holds the pictures."""
    skip_bad: bool = False
    """Leave out episodes, and whole files, that cannot be read, with a warning."""


@dataclass(frozen=True, slots=True)
class TrainWorldModelConfig(EpisodesConfig):
    """What a world model is trained on, and how."""

    init: str | None = None
    """Weights to go on with instead of new ones: a folder, a bundled name or a Hub id."""
    video: VideoTrainingConfig = field(default_factory=VideoTrainingConfig)
    """Of a video transformer (presets `small` and `paper`); `--world-model` is of the others."""


def train_world_model(config: TrainWorldModelConfig) -> None:
    """Train a world model on any recorded episodes, or as a stage of a run of WMPO."""
    if not config.episodes and config.init is not None:
        raise ValueError("--init goes on with a world model; name the new episodes to train it on.")
    usual = VideoTrainingConfig()
    check_unset("video.seed", config.video.seed, usual.seed, "seed")
    _check(config)
    if _is_video(config):
        # `held_out` is of use: the classifier is judged on as many.
        given = replace(config.run.world_model, held_out=WorldModelTrainingConfig().held_out)
        _check_other("world_model", given, WorldModelTrainingConfig(), "video")
    else:
        _check_other("video", config.video, usual, "world_model")
    for name, part in (("video", config.video), ("video.autoencoder", config.video.autoencoder)):
        check_count(f"{name}.validate_every", part.validate_every)
    video = asdict(config.video)
    del video["least_psnr"]  # a bar that may be lowered, and changes nothing in what is learnt
    _train(
        "train-world-model",
        config,
        lambda run, *found: fit_world_model(config, run, *found),
        init=config.init,
        video=video,
    )


def fit_world_model(
    config: TrainWorldModelConfig, run: Run, everything: list[Episode], unfilmed: list[Episode]
) -> dict[str, Any]:
    """Train a world model of the class that the preset has, or the weights to go on with."""
    if _is_video(config):
        if unfilmed:
            raise ValueError(
                f"A video transformer learns from pictures alone; {len(unfilmed)} of the episodes "
                "have none. Leave their files out."
            )
        return fit_video_transformer(config, run, everything)
    return wmpo.fit_world_model(config.run, run, everything, unfilmed, config.init)


def _is_video(config: TrainWorldModelConfig) -> bool:
    if config.init is not None:
        return world_model_class(config.init) is VideoTransformer
    return isinstance(SIZES[config.run.preset], VideoTransformerConfig)


def _check(config: EpisodesConfig) -> None:
    """Raise ValueError as `check` does; a run that records its own episodes has fewer presets."""
    check(config.run, SIZES if config.episodes else PRESETS)


def _check_other(name: str, given: Any, usual: Any, instead: str) -> None:
    """Raise ValueError where an option is set of the other kind of world model."""
    if set_ := [f.name for f in fields(given) if getattr(given, f.name) != getattr(usual, f.name)]:
        raise ValueError(
            f"{name}.{set_[0]} is of no use to this kind of world model; set those of {instead}."
        )


def fit_video_transformer(
    config: TrainWorldModelConfig, run: Run, everything: list[Episode]
) -> dict[str, Any]:
    """Train a new video transformer, or go on with that of `init`, into the run folder."""
    torch.manual_seed(config.run.seed)
    if config.init is None:
        model = VideoTransformer(SIZES[config.run.preset]).to(wmpo.device())
    else:
        model = VideoTransformer.from_pretrained(config.init, device=wmpo.device())
    settings, tune = replace(config.video, seed=config.run.seed), config.init is not None
    report = train_video_transformer(model, everything, settings, run, fine_tune=tune)
    model.save_pretrained(run.folder / "world_model", dtype=torch.float16)
    return report


def train_success(config: EpisodesConfig) -> None:
    """Train a success classifier on any recorded episodes, or as a stage of a run of WMPO."""
    _check(config)
    if config.episodes and not (config.run.out / "world_model").is_dir():
        raise ValueError(
            f"{config.run.out} holds no world_model, whose state a success classifier reads; train "
            f"it first: wm-gym train-world-model ... --out {config.run.out}"
        )
    _train(
        "train-success",
        config,
        lambda run, found, _: wmpo.fit_success(config.run, run, found),
    )


def _train(
    stage: str,
    config: EpisodesConfig,
    fit: Callable[[Run, list[Episode], list[Episode]], dict[str, Any]],
    **options: Any,
) -> None:
    """Do a stage on the files named, or as part of a run; `options` are those of this stage alone.

    Files and options are noted before the fit: one that was interrupted does not go on with others.
    """
    if not config.episodes:
        print(wmpo.do(stage, config.run, wmpo.STAGES))
        return
    paths = files(config.episodes)
    names = [str(path) for path in paths]
    done, begun = finished(config.run.out), config.run.out / "training" / stage
    if "demonstrations" in done or (stage in done and not begun.exists()):
        raise ValueError(
            f"{config.run.out} is a run of WMPO, which trains on what it records itself; choose "
            "another --out for these files."
        )
    held, filmed, unfilmed = _heads(paths, config)
    told = {"files": held, "image_key": config.image_key, **options}
    told |= {"preset": config.run.preset, "seed": config.run.seed}
    if stage in done:
        found = None
        print(f"{stage} was done before, on these files; nothing is trained.")
    else:
        found = _load(filmed, unfilmed, config)
    with _leaving_no_trace(begun.parent):
        Run(begun, told, resume=True)
        run = open_run(config.run)
        print(run.once(stage, lambda: {"files": names, **fit(run, *found)}))


@contextmanager
def _leaving_no_trace(training: Path) -> Iterator[None]:
    """Take away what a training that is refused began in this folder, if it learnt nothing yet."""
    before = set(training.glob("*"))
    try:
        yield
    except ValueError:
        begun = set(training.glob("*")) - before
        if not any((folder / "checkpoints").exists() for folder in begun):
            for folder in begun:
                shutil.rmtree(folder)
        raise


def _heads(
    paths: Sequence[Path], config: EpisodesConfig
) -> tuple[list[tuple[str, int, int]], list[Path], list[Path]]:
    """Tell files by what they hold, and which have pictures and which have none.

    Of each file its name, episodes and control steps: the same by any path, others once it has
    grown. Raises ValueError for a file without episodes.
    """
    held, filmed, unfilmed, skip_bad = [], [], [], config.skip_bad
    for path in paths:
        try:
            options = {"image_key": config.image_key, "skip_bad": skip_bad}
            with EpisodeFile(path, pictures=False, **options) as file:
                if not len(file) and not skip_bad:
                    raise ValueError(f"{path} holds no episodes; leave it out.")
                held.append((path.name, len(file), sum(file.lengths)))
                (filmed if file.filmed else unfilmed).append(path)
        except (OSError, ValueError):
            if not skip_bad:
                raise
            held.append((path.name, 0, 0))
            filmed.append(path)  # `load` leaves it out, and says why
    return held, filmed, unfilmed


def _load(
    filmed: Sequence[Path], unfilmed: Sequence[Path], config: EpisodesConfig
) -> tuple[list[Episode], list[Episode]]:
    """Load episodes with pictures, and those without: motion alone can learn from these."""
    told, skip_bad = ", ".join(map(str, unfilmed)), config.skip_bad
    if not filmed:
        raise ValueError(
            f"No obs/{config.image_key} in {told}. Name files with these pictures too; say what "
            "they are called, --image-key; or render them with robomimic's "
            "dataset_states_to_obs.py --camera_names agentview."
        )
    if unfilmed:
        print(f"No pictures in {told}: only motion can learn from these.")
    pictures = load(filmed, image_key=config.image_key, skip_bad=skip_bad)
    found = pictures, load(unfilmed, pictures=False, skip_bad=skip_bad)
    for episodes in found:
        check_played(episodes, config.run.facts.action_dim)
    return found


def check_played(episodes: Sequence[Episode], size: int) -> None:
    """Raise ValueError where actions are no finite numbers in [-1, 1], `size` of them a step."""
    for i, episode in enumerate(episodes):
        actions, whose = episode.actions, f"Episode {i} of {episode.source!r}"
        if actions.shape[1] != size:
            raise ValueError(
                f"{whose} has {actions.shape[1]} numbers an action; expected {size}, "
                "robosuite's OSC_POSE deltas and the gripper."
            )
        most = float(np.abs(actions).max(initial=0.0))
        if not most <= 1 + 1e-4:  # NaN neither
            raise ValueError(
                f"{whose} has an action of {most:g}; expected numbers in [-1, 1]. Clip what "
                "robosuite clipped when it was played; absolute actions have to be converted."
            )


def files(paths: Sequence[Path]) -> list[Path]:
    """The HDF5 files among `paths` and in the folders among them, sorted within each, each once.

    Raises FileNotFoundError for a folder that holds none, and ValueError for one in which a
    recording is not finished.
    """
    found = []
    for path in paths:
        begun = sorted(path.rglob("*.hdf5.parts")) if path.is_dir() else []
        if begun:
            raise ValueError(
                f"{begun[0]} is a recording that was interrupted, or is under way. Finish it with "
                "the command that began it, or name the finished files one by one."
            )
        inside = sorted(path.rglob("*.hdf5")) if path.is_dir() else [path]
        inside = [file for file in inside if not file.name.startswith("partial.")]
        if not inside:
            raise FileNotFoundError(f"{path} holds no file named *.hdf5; record episodes first.")
        found += inside
    return list({path.resolve(): path for path in found}.values())  # each once, however it is named
