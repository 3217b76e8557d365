"""Replay episodes that a world model never saw, under their true actions; say what differs.

wm-gym fidelity                                        # the bundled weights, new real episodes
wm-gym fidelity --world-model runs/lift/world_model --episodes runs/lift/data/*.hdf5 --long 16
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.token import TokenVLA
from trainers.fresh import play_aside, play_expert, play_for_probe, play_policy
from trainers.wmpo import device
from wm_gym.checks import check_count, check_limit, check_size, check_workers
from wm_gym.data.episode import Episode
from wm_gym.data.reading import load
from wm_gym.data.windows import holdout_episodes
from wm_gym.evaluation.fidelity import (
    Replays,
    long_enough,
    measure,
    psnr,
    replay_episodes,
    rounded,
    spread,
    state_drift,
)
from wm_gym.evaluation.figures import plot_report, write_strips
from wm_gym.evaluation.paired import provenance, write_result
from wm_gym.evaluation.probe import KEYS, ProbeConfig, positions, train_probe
from wm_gym.starts import load_starts
from wm_gym.tasks import get_task
from wm_gym.world_model.loading import load_world_model
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.training import WorldModelTrainingConfig
from wm_gym.world_model.transformer import VideoTransformer

TABLE_STEPS = (1, 8, 16, 32, 64)
LONG = 512  # control steps of a long episode, eight times what a policy gets
LONG_STEPS = (*TABLE_STEPS, 128, 256, LONG)
FINE = 16  # sampling steps that a few are compared with
COLUMNS = {
    "PSNR": ("whole", "psnr"),
    "moving": ("moving", "psnr"),
    "other": ("whole", "psnr_other"),
    "first": ("whole", "psnr_persistence"),
    "previous": ("whole", "psnr_previous"),
    "SSIM": ("whole", "ssim"),
    "sharpness": ("moving", "sharpness"),
}


@dataclass(frozen=True, slots=True)
class FidelityConfig:
    """Which world model is judged, and on what."""

    episodes: tuple[Path, ...] = ()
    """Files that the world model was trained on, all episodes of a source and no others: only then
    are the episodes held out here the ones that were held out there. Without any, new ones are
    played in robosuite, `fresh` of them by each of two players."""
    fresh: int = 32
    """New episodes of `policy`, and as many of the expert that errs, each from a validation start
    that nothing was trained on."""
    policy: str = "lift/policy_base"
    """A folder, a bundled name or a Hub id."""
    world_model: str = "lift"
    """A folder, a bundled name or a Hub id."""
    out: Path = Path("runs/fidelity")
    """Folder for fidelity.json, fidelity.png, strip.png, and what the expert plays."""
    steps: int = 64
    """Control steps that are replayed; shorter recordings are left out."""
    long: int = 0
    """Episodes of 512 steps that the expert that errs plays in robosuite, from validation starts
    that nothing was trained on, to be replayed beside the others; kept in long.hdf5, of which no
    more than these are taken."""
    aside: float | None = 0.8
    """Millimetres, about what a place is read wrongly by: the new episodes are played in robosuite
    once more, their object begun so far aside, to tell what the simulator itself makes of so small
    an error. None leaves that out."""
    task: str = "Lift"
    """What is played in robosuite."""
    workers: int | None = None
    """Simulator processes; one a core by default."""
    held_out: float = WorldModelTrainingConfig().held_out
    """Share of the episodes of every source that is judged, as in the world model's training."""
    seed: int = WorldModelTrainingConfig().seed
    """Of the choice of these episodes, as in the world model's training."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """How the network learns that reads positions from pictures."""


def fidelity(config: FidelityConfig) -> None:
    """Replay held-out episodes in a world model: PSNR, SSIM, sharpness and drift by step."""
    check_count("steps", config.steps)
    check_workers(config.workers)
    if config.long:
        check_count("long", config.long, len(load_starts(config.task, "validation")))
    check_count("probe.steps", config.probe.steps)
    check_limit("aside", config.aside)
    model = load_world_model(config.world_model, device=device())
    if config.episodes:
        episodes = load(config.episodes)
        held = holdout_episodes([e.source for e in episodes], config.held_out, config.seed)
    else:
        new = play_new(config, model.config.image_size)
        learnt = play_for_probe(config.out, config.task, config.seed, config.workers)
        episodes, held = new + learnt, list(range(len(new)))
    check_size(episodes, model.config.image_size)
    judged = long_enough([episodes[i] for i in held], config.steps)
    numbers = [i for i in held if len(episodes[i]) >= config.steps]
    apart = set(held)
    fit = [episode for i, episode in enumerate(episodes) if i not in apart]
    print(
        f"{len(held)} of {len(episodes)} episodes are held out, {len(judged)} of them judged; left "
        f"out for having less than {config.steps} steps: {len(held) - len(judged)}"
    )
    long = replay_long(model, config) if config.long else None
    replays = replay_episodes(model, judged, config.steps)
    figures = measure(replays)
    by_step, drift = _nested(figures), _drift(replays, judged, fit, config.probe)
    report = {
        **provenance([config.seed]),
        "world_model": config.world_model,
        "files": [str(path) for path in config.episodes],
        "steps": config.steps,
        "episodes": len(judged),
        **summary(by_step, drift),
        "few_step_loss_db": few_step_loss(model, replays, judged),
        "aside": None if config.episodes else aside(config, judged, replays.real[:, 1:]),
        "long": long,
        "counts": {
            "all": len(episodes),
            "held_out": len(held),
            "too_short": len(held) - len(judged),
            "judged": len(judged),
            "judged_successes": sum(e.succeeded for e in judged),
            "judged_sources": dict(Counter(e.source for e in judged)),
        },
        "psnr_by_source": by_source(figures["whole/psnr"], judged),
        "by_step": by_step,
        "drift": drift,
        "rows": _rows(figures, judged, numbers),
    }
    write_result(config.out / "fidelity.json", report)
    plot_report(config.out / "fidelity.png", report)
    write_strips(config.out / "strip.png", _strips(replays, report["rows"]))
    print(table(report))
    for source, decibels in report["psnr_by_source"].items():
        print(f"{source}, PSNR: {_told(decibels)}")
    if report["aside"]:
        told = _told(report["aside"]["psnr"])
        print(f"robosuite itself, the object begun {config.aside:g} mm aside, PSNR: {told}")
    if long:
        print(f"{long['episodes']} episodes of {LONG} steps, PSNR: {_told(long['psnr'])}")
        if long["aside"]:
            print(f"robosuite itself, PSNR: {_told(long['aside']['psnr'])}")
    print(f"Written to {config.out}: fidelity.json, fidelity.png, strip.png")


def summary(by_step: Mapping[str, Any], drift: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What a report comes to, at `TABLE_STEPS`: means of dB, medians of millimetres."""

    def picked(values: Mapping[str, Any], statistic: str) -> dict[str, float]:
        row = values[statistic]
        return {str(step): row[step - 1] for step in TABLE_STEPS if step <= len(row)}

    found = {
        "psnr": picked(by_step["whole"]["psnr"], "mean"),
        "moving_psnr": picked(by_step["moving"]["psnr"], "mean"),
        "psnr_lost_other_actions": picked(by_step["whole"]["controllability"], "mean"),
    }
    for thing, values in drift.get("by_step", {}).items():
        found[f"{thing}_drift_mm"] = picked(values["imagined"], "q50")
    return found


def by_source(decibels: Tensor, judged: Sequence[Episode]) -> dict[str, dict[str, float]]:
    """Mean dB (n, t) of each source's episodes, at `TABLE_STEPS`."""
    found = {}
    for source in dict.fromkeys(e.source for e in judged):
        mean = decibels[[i for i, e in enumerate(judged) if e.source == source]].mean(0)
        found[source] = {str(t): rounded(float(mean[t - 1])) for t in TABLE_STEPS if t <= len(mean)}
    return found


def few_step_loss(
    model: WorldModel | VideoTransformer, replays: Replays, judged: Sequence[Episode]
) -> float:
    """Mean dB at the last step that `FINE` sampling steps gain over the model's own.

    0 of a recurrent world model: it draws a picture in one pass.
    """
    if not isinstance(model, VideoTransformer):
        return 0.0
    usual, model.sampling_steps = model.sampling_steps, FINE
    try:
        finer = replay_episodes(model, judged, replays.imagined.shape[1])
    finally:
        model.sampling_steps = usual
    shown = (psnr(r.imagined[:, -1], r.real[:, -1]).mean() for r in (finer, replays))
    return round(float(next(shown) - next(shown)), 4)


def play_new(config: FidelityConfig, size: int) -> list[Episode]:
    """Play `fresh` episodes of the policy in robosuite, and as many of the expert that errs.

    Raises ValueError where these would not have pictures of `size` x `size`, as the world model.
    """
    starts, simulated = len(load_starts(config.task, "validation")), get_task(config.task)
    n = check_count("fresh", config.fresh, starts // 2)
    if simulated.image_size != size:
        raise ValueError(
            f"The world model draws pictures of {size} x {size}, and {simulated.name} is played "
            f"at {simulated.image_size} x {simulated.image_size}; name recordings of the model's "
            "size with --episodes."
        )
    policy = TokenVLA.from_pretrained(config.policy, device=device())
    settings = config.steps, config.seed, config.workers
    mine = play_policy(config.task, policy, range(n), *settings)
    return mine + _expert(config, "expert", range(n, 2 * n), config.steps)


def _expert(config: FidelityConfig, name: str, starts: Sequence[int], steps: int) -> list[Episode]:
    path, settings = config.out / f"{name}.hdf5", {"seed": config.seed, "workers": config.workers}
    return play_expert(path, config.task, "validation", starts, steps, source=name, **settings)


def replay_long(model: WorldModel | VideoTransformer, config: FidelityConfig) -> dict[str, Any]:
    """Play episodes of `LONG` steps in robosuite, and imagine them: mean dB by step.

    Those that are recorded already are not played again.
    """
    episodes = _expert(config, "long", range(config.long), LONG)
    replays = replay_episodes(model, episodes, LONG)
    real = replays.real[:, 1:]
    return {
        "episodes": len(episodes),
        "psnr": _at_steps(psnr(replays.imagined, real).mean(0)),
        "aside": aside(config, episodes, real),
    }


def aside(
    config: FidelityConfig, episodes: Sequence[Episode], real: Tensor
) -> dict[str, Any] | None:
    """Compare episodes with what robosuite makes of them, their object begun a little aside.

    real: their pictures after each step, uint8 (n, t, H, W, 3). Returns mean dB by step: as near as
    a world model could come that errs by as much where an episode begins, and is right ever after.
    None where nobody asks.
    """
    if config.aside is None:
        return None
    metres, steps = config.aside / 1000, real.shape[1]
    played = play_aside(config.task, episodes, steps, metres, config.seed, config.workers)
    decibels = psnr(torch.from_numpy(played), real)
    return {"mm": config.aside, "psnr": _at_steps(decibels.mean(0))}


def _at_steps(decibels: Tensor) -> dict[str, float]:
    """dB by step, (t,), at `LONG_STEPS`."""
    return {str(t): rounded(float(decibels[t - 1])) for t in LONG_STEPS if t <= len(decibels)}


def table(report: Mapping[str, Any]) -> str:
    """A report as plain text at `TABLE_STEPS`: means of episodes, and medians of the drift."""
    drift = report["drift"].get("by_step", {})
    lines = [["step", *COLUMNS, *(f"{thing} mm" for thing in drift)]]
    for step in (step for step in TABLE_STEPS if step <= report["steps"]):
        values = [report["by_step"][a][b]["mean"][step - 1] for a, b in COLUMNS.values()]
        cells = ["-" if v is None else f"{v:.2f}" for v in values]
        for things in drift.values():
            imagined, real = (things[name]["q50"][step - 1] for name in ("imagined", "real"))
            cells.append(f"{imagined:.1f} ({real:.1f})")
        lines.append([str(step), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    note = "in brackets: the probe's own error on real pictures" if drift else ""
    return "\n".join([*text, note or f"Without drift: {report['drift']['left_out']}"])


def _told(by_step: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.2f} at {step}" for step, value in by_step.items())


def _nested(figures: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Group what is named "<group>/<figure>", (n, t): group -> figure -> its `spread`."""
    found: dict[str, dict[str, Any]] = {}
    for key, values in figures.items():
        group, name = key.split("/")
        found.setdefault(group, {})[name] = spread(values)
    return found


def _drift(
    replays: Replays, judged: Sequence[Episode], fit: Sequence[Episode], config: ProbeConfig
) -> dict[str, Any]:
    """Train the probe and apply it, or say under `left_out` why that cannot be."""
    known, learnt = (
        [e for e in part if positions(e.low_dim) is not None] for part in (judged, fit)
    )
    for name, part, having in (("judged", judged, known), ("training", fit, learnt)):
        if not having:
            return {
                "left_out": f"none of {len(part)} {name} episodes has {' and '.join(KEYS.values())}"
            }
    probe = train_probe(learnt, config, device())
    away = state_drift(replays, judged, probe)
    return {
        "episodes": len(known),
        "training_episodes": len(learnt),
        "probe_weights": sum(p.numel() for p in probe.parameters()),
        "probe_median_mm": {k: rounded(float(away[f"{k}/real"].median())) for k in KEYS},
        "by_step": _nested(away),
    }


def _rows(
    figures: Mapping[str, Tensor], judged: Sequence[Episode], numbers: Sequence[int]
) -> list[dict[str, Any]]:
    """What was judged: `number` counts through all files; dB are means over the steps."""
    decibels = {name: figures[name].nanmean(1).tolist() for name in ("whole/psnr", "moving/psnr")}
    return [
        {
            "number": number,
            "source": episode.source,
            "start": episode.start,
            "success": episode.succeeded,
            "psnr": rounded(decibels["whole/psnr"][i]),
            "psnr_moving": rounded(decibels["moving/psnr"][i]),
        }
        for i, (number, episode) in enumerate(zip(numbers, judged, strict=True))
    ]


def _strips(
    replays: Replays, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Pick the best, the median and the worst episode by their mean PSNR."""
    order = sorted(range(len(rows)), key=lambda i: rows[i]["psnr"], reverse=True)
    picked = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return [
        (
            f"{name}: episode {rows[i]['number']}, {rows[i]['source']}, {rows[i]['psnr']:.1f} dB; "
            "real above, imagined below",
            replays.real[i, 1:].numpy(),
            replays.imagined[i].numpy(),
        )
        for name, i in picked.items()
    ]
