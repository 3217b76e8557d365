"""Ship a run with the package: weights, starts and moments, with cards of what was measured.

wm-gym bundle runs/lift --audit runs/lift_audit/audit.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro

from policies.token import TokenVLA
from wm_gym.data.moments import draw_moments, save_moments
from wm_gym.data.reading import load
from wm_gym.evaluation.audit import DRIFT
from wm_gym.evaluation.statistics import Difference, Rate, paired_difference, rate
from wm_gym.hub import Pretrained
from wm_gym.runs import finished
from wm_gym.starts import FILE_NAME, bundle
from wm_gym.success.classifier import SuccessClassifier
from wm_gym.tasks import get_task
from wm_gym.world_model.model import WorldModel

WRONG = {
    "hallucinated_success_rate": "real failures imagined as successes",
    "missed_success_rate": "real successes imagined as failures",
    "paired_accuracy": "outcomes that agree",
}
GROUND_TRUTH = (
    "Trained with the object's pose and velocity as the simulator reports them. In an episode it "
    "reads the pose from the first pictures."
)
LABELS = "Trained with the simulator's own success labels."


class Card(NamedTuple):
    """What is shipped under a name, and what its model card says."""

    source: str
    """Folder in the run."""
    kind: type[Pretrained]
    description: str
    limits: str
    rows: dict[str, str]


@dataclass(frozen=True, slots=True)
class BundleConfig:
    """Which run is shipped."""

    run: tyro.conf.Positional[Path]
    """Run folder of `wm-gym wmpo` with the stages up to grpo done."""
    audit: Path | None = None
    """audit.json of `wm-gym audit --run ...`, for the card of the world model."""
    moments: int = 192
    """Of the rollouts, to practise from; a hundred take 2 MB."""
    path: Path | None = None
    """Folder to write to; the package's own by default."""


def ship(config: BundleConfig) -> None:
    """Copy a run's models, starts and moments into the package, with cards of its measurements.

    Raises FileNotFoundError where a stage of the run or the audit is missing.
    """
    run, settings = config.run, _read(config.run / "config.json")
    folder = config.path or bundle(settings["task"])
    for name, card in cards(run, config.audit).items():
        card.kind.from_pretrained(run / card.source).save_pretrained(
            folder / name,
            dtype=torch.float16,
            description=card.description,
            limits=card.limits,
            metrics=card.rows,
        )
    shutil.copyfile(run / FILE_NAME, folder / FILE_NAME)
    rollouts = load([run / "data/rollouts.hdf5"])
    save_moments(draw_moments(rollouts, config.moments, settings["seed"]), folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"Written to {folder}: {size / 1e6:.1f} MB")


def cards(run: Path, audit: Path | None) -> dict[str, Card]:
    """What of a finished run is shipped, by name; needs its config.json and marks of done stages.

    Raises FileNotFoundError where a stage of the run or the audit is missing.
    """
    settings = _read(run / "config.json")
    done = {name: _read(path) for name, path in finished(run).items()}
    for stage in ("demonstrations", "rollouts", "train-world-model", "train-success", "grpo"):
        if stage not in done:
            raise FileNotFoundError(f"{run} has no finished stage {stage!r}; run it to its end.")
    task, improved = get_task(settings["task"]), f"policy_improved_{settings['grpo_seeds'][0]}"
    where = (
        f"{task.name} on robosuite 1.4.1, {task.image_size}-pixel pictures, run with seed "
        f"{settings['seed']}."
    )
    demonstrated = f"{done['demonstrations']['demonstrations']} scripted demonstrations"
    recorded = (
        f"{demonstrated}, {done['demonstrations']['play']} episodes of play (the scripted expert "
        f"making mistakes on purpose) and {done['rollouts']['rollouts']} rollouts of the base "
        "policy"
    )
    unfilmed = done["demonstrations"].get("unfilmed", 0)
    moved = f"; how things move also on {unfilmed} episodes of play without pictures"
    told = {
        "world_model": f"World model, trained on {recorded}{moved if unfilmed else ''}.",
        "success": f"Success classifier, trained on {recorded}.",
        "policy_base": f"Base policy, cloned from {demonstrated}: mediocre on purpose.",
        "policy_improved": "The base policy after GRPO in the imagined world.",
    }
    world = fidelity_rows(done["train-world-model"]) | audit_rows(audit)
    judge = success_rows(done["train-success"])
    base, better = base_rows(done), improved_rows(done, improved)
    pose = GROUND_TRUTH if settings["preset"] == "nano-object" else ""
    shipped = {
        "world_model": ("world_model", WorldModel, pose, world),
        "success": ("success", SuccessClassifier, LABELS, judge),
        "policy_base": ("policy_base", TokenVLA, "", base),
        "policy_improved": (improved, TokenVLA, "", better),
    }
    return {
        name: Card(source, kind, f"{where} {told[name]}", limits, rows)
        for name, (source, kind, limits, rows) in shipped.items()
    }


def fidelity_rows(report: Mapping[str, Any]) -> dict[str, str]:
    """Held-out replays, as the training reported them, as rows of a card."""
    steps = [key.removeprefix("psnr/") for key in report if key.startswith("psnr/")]
    kinds = {
        "": "recorded actions",
        "_other": "another episode's actions",
        "_first": "first picture repeated",
    }
    return {
        f"PSNR at step {step}, held-out episodes, {text}": f"{report[f'psnr{kind}/{step}']:.1f} dB"
        for kind, text in kinds.items()
        for step in steps
    }


def audit_rows(path: Path | None) -> dict[str, str]:
    """Figures of an audit as rows of a card; none without one."""
    if path is None:
        return {}
    audit = _read(path)
    told = f"{audit['pairs']} paired episodes from {audit['split']} starts"
    rows = {
        f"{text}, {told}": str(Rate(**audit[key]) if audit[key] else "–")
        for key, text in WRONG.items()
    }
    if audit["drift"]:
        limits = " or ".join(f"{thing} {most:.0f} mm" for thing, most in DRIFT.items())
        rows[f"usable horizon (median drift of {limits}, or outcomes that differ)"] = (
            f"{audit['usable_horizon']} control steps"
        )
    return rows


def success_rows(report: Mapping[str, Any]) -> dict[str, str]:
    """Held-out scores of the classifier as rows of a card."""
    rows = {}
    for kind, text in {"real": "recorded episodes", "imagined": "imagined replays"}.items():
        found = report[kind]
        rows |= {
            f"F1, {text}": f"{found['f1']:.2f}",
            f"failed episodes judged successes, {text}": f"{100 * found['false_success']:.0f} %",
            f"expected calibration error, {text}": f"{found['expected_calibration_error']:.3f}",
            f"false hits per 1,000 pictures, {text}": f"{found['false_per_thousand']:.1f}",
            f"mean delay of the verdict, {text}": f"{found['delay']:+.1f} control steps",
        }
    rows["rule"] = (
        f"probability at least {report['imagined']['threshold']} for {report['hold']} steps"
    )
    rows["pictures judged the same after the world model has drawn them"] = (
        f"{100 * report['reconstruction_agreement']:.1f} %"
    )
    return rows


def base_rows(done: Mapping[str, Any]) -> dict[str, str]:
    """Real success of the base policy as rows of a card."""
    chosen = Rate(**done["clone"]["validation"])
    row = {
        "success on validation starts, of the best checkpoint, by which it was chosen": str(chosen)
    }
    return row | _tested(done, "policy_base")


def improved_rows(done: Mapping[str, Any], name: str) -> dict[str, str]:
    """Real success of the improved policy, beside the base policy's, as rows of a card."""
    rows = _tested(done, name)
    if rows:
        both = [done[f"test_real_{policy}"]["success"] for policy in ("policy_base", name)]
        difference: Difference = paired_difference(*both)
        rows["gain over the base policy, paired by start"] = str(difference)
    return rows


def _tested(done: Mapping[str, Any], name: str) -> dict[str, str]:
    played = done.get(f"test_real_{name}")
    return {"success on test starts, greedy": str(rate(played["success"]))} if played else {}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; expected the file that wm-gym wrote there.")
    return json.loads(path.read_text())
