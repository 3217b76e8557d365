"""What a run of WMPO is told, and what is wrong with it before anything is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trainers import bc, grpo
from wm_gym.checks import (
    DTYPES,
    check_choice,
    check_count,
    check_not_negative,
    check_share,
    check_unset,
    check_workers,
)
from wm_gym.runs import Run, finished
from wm_gym.success.training import SuccessTrainingConfig
from wm_gym.tasks import Task, get_task
from wm_gym.world_model.presets import PRESETS
from wm_gym.world_model.training import WorldModelTrainingConfig

STARTS = {"train": 512, "validation": 128, "test": 256}
# The stages that use an option, or a group of them: it may change until one of them is finished.
# Options that are not listed are used by every stage.
USED_BY = {
    "demonstrations": ("demonstrations",),
    "play": ("demonstrations",),
    "unfilmed": ("demonstrations",),
    "budget": ("rollouts",),
    "clone": ("clone",),
    "preset": ("train-world-model",),
    "world_model": ("train-world-model", "train-success"),
    "success": ("train-success",),
    "grpo": ("grpo",),
    "grpo.dtype": ("clone", "rollouts", "grpo"),
    "grpo.temperature": ("rollouts", "grpo"),
    "grpo_seeds": ("grpo",),
    "imagined_envs": ("grpo",),
    "moments": ("grpo",),
    "unanimous": ("grpo",),
}


@dataclass(frozen=True, slots=True)
class WMPOConfig:
    """One replicate of the whole method.

    The bundled run was made with these defaults, but for what docs/results.md says.
    """

    task: str = "Lift"
    budget: int = 128
    """Real episodes of the base policy, each from a start of its own: at most 512 (the paper's P is
    128 or 1280)."""
    demonstrations: int = 7
    """Real episodes of the scripted expert that the base policy clones."""
    play: int = 580
    """Real episodes of an expert that errs on purpose, for world model and classifier; where these
    are more than there are starts, starts serve again."""
    unfilmed: int = 0
    """Real episodes of the same without pictures, recorded in a third of the time: how the world
    moves is learnt from these, too."""
    seed: int = 0
    """Of the replicate: which starts are demonstrated, every initial weight, every draw."""
    grpo_seeds: tuple[int, ...] = (0, 1)
    """One improved policy for each of these, from the same base policy and world model."""
    out: Path = Path("runs/lift")
    workers: int | None = None
    """Simulator processes; one a core by default."""
    imagined_envs: int = 128
    """Imagined episodes side by side."""
    moments: int = 512
    """Moments of the rollouts at which imagined episodes begin, beside the starts."""
    unanimous: bool = True
    """Whether practice pays only for successes that every member of the world model imagines alone,
    too, which makes it less easy to learn from the world's mistakes. `nano` then takes several
    times as long for a step."""
    preset: str = "nano-object"
    """Of the world model. `nano-object` learns from the object's pose, `nano` does without, by the
    settings that docs/train-your-own.md names. `small` and `paper` are for your own files with
    larger pictures, see `wm-gym presets`."""
    clone: bc.BCConfig = field(default_factory=lambda: bc.BCConfig(held_out=0.0))
    world_model: WorldModelTrainingConfig = field(default_factory=WorldModelTrainingConfig)
    success: SuccessTrainingConfig = field(default_factory=SuccessTrainingConfig)
    grpo: grpo.GRPOConfig = field(default_factory=grpo.GRPOConfig)

    @property
    def facts(self) -> Task:
        """The task itself."""
        return get_task(self.task)


def open_run(config: WMPOConfig) -> Run:
    """Begin a run, or go on with it; ValueError where a finished stage used another value."""
    done = finished(config.out)

    def free(option: str) -> bool:
        group = option.split(".")[0]
        return done.keys().isdisjoint(USED_BY.get(option) or USED_BY.get(group) or done)

    return Run(config.out, config, resume=True, free=free)


def check(config: WMPOConfig, presets: Iterable[str] = PRESETS) -> None:
    """Raise ValueError for an unknown task or preset, and for options that do not fit."""
    get_task(config.task)
    check_choice("preset", config.preset, tuple(presets))
    check_choice("clone.dtype", config.clone.dtype, DTYPES)
    for name in ("clone", "world_model"):
        check_count(f"{name}.steps", getattr(config, name).steps)
        check_count(f"{name}.validate_every", getattr(config, name).validate_every)
    for name in ("motion", "reading"):
        check_count(f"world_model.{name}.steps", getattr(config.world_model, name).steps)
    single = config.world_model.motion.single
    if not 0 <= single <= 1:
        raise ValueError(f"world_model.motion.single must be a share from 0 to 1, got {single}.")
    check_workers(config.workers)
    check_share("world_model.held_out", config.world_model.held_out)
    check_count("success.steps", config.success.steps)
    if config.success.folds < 2:
        raise ValueError(f"success.folds must be at least 2, got {config.success.folds}.")
    grpo.check(config.grpo, config.imagined_envs, config.grpo.eval_episodes)
    check_unset("clone.seed", config.clone.seed, bc.BCConfig().seed, "seed")
    check_unset(
        "world_model.seed", config.world_model.seed, WorldModelTrainingConfig().seed, "seed"
    )
    check_unset("success.seed", config.success.seed, SuccessTrainingConfig().seed, "seed")
    check_unset("grpo.seed", config.grpo.seed, grpo.GRPOConfig().seed, "seed and grpo_seeds")
    seeds = config.grpo_seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"grpo_seeds must be one or more different seeds, got {seeds}.")
    _check_starts(config)


def _check_starts(config: WMPOConfig) -> None:
    """Raise ValueError where real episodes are asked for that there are no starts for."""
    for name in ("play", "unfilmed", "moments"):
        check_not_negative(name, getattr(config, name))
    check_count("budget", config.budget, STARTS["train"])
    check_count("demonstrations", config.demonstrations, STARTS["train"] - min(config.play, 1))


def check_recordings(config: WMPOConfig) -> None:
    """Raise ValueError for what does not fit the episodes that a run records itself."""
    size, drawn = config.facts.image_size, PRESETS[config.preset].image_size
    if size != drawn:
        raise ValueError(
            f"{config.task} is recorded at {size} x {size} pixels, and a world model of preset "
            f"{config.preset!r} draws {drawn} x {drawn}; change the task's image_size, or train on "
            "files of your own."
        )
    known = {"demonstrations": 1, "play": config.play, "rollouts": 1, "unfilmed": config.unfilmed}
    for source in config.world_model.weights:
        check_choice("world_model.weights", source, tuple(name for name, n in known.items() if n))
