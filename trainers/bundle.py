"""Ship a run with the package: weights, starts and moments, with cards of what was measured.

wm-gym bundle runs/lift --audit runs/lift_audit/audit.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from policies.token import TokenVLA
from wm_gym.data.episodes import load
from wm_gym.data.moments import draw_moments, save_moments
from wm_gym.evaluation.audit import DRIFT
from wm_gym.evaluation.statistics import Difference, Rate, paired_difference, rate
from wm_gym.hub import Pretrained
from wm_gym.starts import FILE_NAME, bundle
from wm_gym.success.classifier import SuccessClassifier
from wm_gym.tasks import get_task
from wm_gym.world_model.model import WorldModel

WRONG = ("hallucinated_success_rate", "missed_success_rate", "paired_accuracy")


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
    done = {path.stem: _read(path) for path in (run / "done").glob("*.json")}
    for stage in ("demonstrations", "rollouts", "train-world-model", "train-success", "grpo"):
        if stage not in done:
            raise FileNotFoundError(f"{run} has no finished stage {stage!r}; run it to its end.")
    task, folder = get_task(settings["task"]), config.path or bundle(settings["task"])
    improved = f"policy_improved_{settings['grpo_seeds'][0]}"
    demonstrated = f"{done['demonstrations']['demonstrations']} scripted demonstrations"
    recorded = (
        f"{demonstrated}, {done['demonstrations']['play']} episodes of play and "
        f"{done['rollouts']['rollouts']} rollouts of the base policy"
    )
    world = fidelity_rows(done["train-world-model"]) | audit_rows(config.audit)
    judge = success_rows(done["train-success"])
    base, better = base_rows(done), improved_rows(done, improved)
    cards: list[tuple[str, str, type[Pretrained], str, dict[str, str]]] = [
        ("world_model", "world_model", WorldModel, f"World model of {recorded}.", world),
        ("success", "success", SuccessClassifier, f"Success classifier of {recorded}.", judge),
        (
            "policy_base",
            "policy_base",
            TokenVLA,
            f"Clone of {demonstrated}: mediocre on purpose.",
            base,
        ),
        (
            "policy_improved",
            improved,
            TokenVLA,
            "The base policy after GRPO in imagination.",
            better,
        ),
    ]
    where = f"{task.name} on robosuite 1.4.1, {task.image_size}-pixel pictures"
    for name, source, kind, description, rows in cards:
        kind.from_pretrained(run / source).save_pretrained(
            folder / name,
            dtype=torch.float16,
            description=f"{where}, replicate {settings['seed']}. {description}",
            metrics=rows,
        )
    shutil.copyfile(run / FILE_NAME, folder / FILE_NAME)
    rollouts = load([run / "data/rollouts.hdf5"])
    save_moments(draw_moments(rollouts, config.moments, settings["seed"]), folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"Written to {folder}: {size / 1e6:.1f} MB")


def fidelity_rows(report: Mapping[str, Any]) -> dict[str, str]:
    """Held-out replays, as the training reported them, as rows of a card."""
    steps = [key.removeprefix("psnr/") for key in report if key.startswith("psnr/")]
    kinds = {
        "": "",
        "_other": ", actions of another episode",
        "_first": ", first picture held",
    }
    return {
        f"PSNR at step {' / '.join(steps)}, held-out episodes{text}": " / ".join(
            f"{report[f'psnr{kind}/{step}']:.1f}" for step in steps
        )
        + " dB"
        for kind, text in kinds.items()
    }


def audit_rows(path: Path | None) -> dict[str, str]:
    """Figures of an audit as rows of a card; none without one."""
    if path is None:
        return {}
    audit = _read(path)
    told = f"{audit['pairs']} paired replays ({audit['split']} starts)"
    rows = {
        f"{key.replace('_', ' ')}, {told}": str(Rate(**audit[key]) if audit[key] else "-")
        for key in WRONG
    }
    if audit["drift"]:
        limits = " or ".join(f"{thing} {most:.0f} mm" for thing, most in DRIFT.items())
        rows[f"usable horizon, median drift of {limits}"] = f"{audit['usable_horizon']} steps"
    return rows


def success_rows(report: Mapping[str, Any]) -> dict[str, str]:
    """Held-out scores of the classifier as rows of a card."""
    rows = {}
    for kind, text in {"real": "as recorded", "imagined": "as imagined"}.items():
        found = report[kind]
        rows |= {
            f"held-out episodes {text}, F1 / false successes": f"{found['f1']:.2f} / "
            f"{100 * found['false_success']:.0f} %",
            f"{text}, calibration error / false hits of 1,000 pictures / steps to the verdict": (
                f"{found['expected_calibration_error']:.3f} / {found['false_per_thousand']:.1f} / "
                f"{found['delay']:+.1f}"
            ),
        }
    rows["rule"] = f"at least {report['imagined']['threshold']} for {report['hold']} steps"
    rows["pictures judged alike once drawn"] = f"{100 * report['reconstruction_agreement']:.1f} %"
    return rows


def base_rows(done: Mapping[str, Any]) -> dict[str, str]:
    """Real success of the base policy as rows of a card."""
    chosen = Rate(**done["clone"]["validation"])
    return {"validation starts, best of the scores it was chosen by": str(chosen)} | _tested(
        done, "policy_base"
    )


def improved_rows(done: Mapping[str, Any], name: str) -> dict[str, str]:
    """Real success of the improved policy, beside the base policy's, as rows of a card."""
    rows = _tested(done, name)
    if rows:
        both = [done[f"test_real_{policy}"]["success"] for policy in ("policy_base", name)]
        difference: Difference = paired_difference(*both)
        rows["more than the base policy, same starts"] = str(difference)
    return rows


def _tested(done: Mapping[str, Any], name: str) -> dict[str, str]:
    played = done.get(f"test_real_{name}")
    return {"test starts, greedy": str(rate(played["success"]))} if played else {}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; expected the file that wm-gym wrote there.")
    return json.loads(path.read_text())
