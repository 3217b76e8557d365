"""Show an audit as one HTML page, with whatever else was measured of the same weights.

wm-gym report runs/audit
wm-gym report runs/audit runs/agree runs/counterfactuals runs/fidelity
wm-gym report runs/audit runs/agree runs/counterfactuals --numbers docs/results/lift_audit.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from wm_gym.evaluation.page import find, read_report, write_page
from wm_gym.evaluation.paired import provenance, write_result

AUDITED = (
    "pairs",
    "hallucinated_success_rate",
    "missed_success_rate",
    "paired_accuracy",
    "f1_real",
    "f1_imagined",
    "failures",
    "usable_horizon",
    "usable_horizon_ends_by",
)
ORIGIN = ("command", "commit", "date", "seeds", "machine", "split")


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """What is shown, and where."""

    folder: tyro.conf.Positional[Path]
    """Folder of `wm-gym audit`."""
    beside: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of `wm-gym agree`, `fidelity` and `counterfactuals`, whose reports are shown, too."""
    path: Path | None = None
    """The page; report.html in the first folder by default."""
    numbers: Path | None = None
    """JSON file for the few numbers that say how far the weights can be trusted; needs the folders
    of `wm-gym audit`, `agree` and `counterfactuals`."""


def report(config: ReportConfig) -> None:
    """Write an audit as one HTML page that needs no server and no network."""
    path, folders = config.path or config.folder / "report.html", (config.folder, *config.beside)
    found = None if config.numbers is None else numbers(folders)
    write_page(path, *folders)
    print(f"Written: {path}")
    if found is not None:
        write_result(config.numbers, found)
        print(f"Written: {config.numbers}")


def numbers(folders: Sequence[Path]) -> dict[str, Any]:
    """Gather from reports of one world model what says how far it can be trusted, for JSON.

    Raises FileNotFoundError where a report is missing, and ValueError where reports are not of the
    same world model and classifier.
    """
    keys = {"audit": AUDITED, "agreement": ("agreement",), "counterfactuals": ("held_out",)}
    parts = {name: _read(name, folders, (*found, "weights")) for name, found in keys.items()}
    for model in ("world_model", "success"):
        prints = {name: part["weights"][model] for name, part in parts.items()}
        if len(set(prints.values())) > 1:
            raise ValueError(f"Expected reports of one {model}, got {prints}; measure it anew.")
    audit, agreement = parts["audit"], parts["agreement"]["agreement"]
    held_out = parts["counterfactuals"]["held_out"]
    return {
        **provenance(audit["seeds"]),
        **{key: audit[key] for key in AUDITED},
        "policies": agreement["policies"],
        "pearson_r": {"value": agreement["pearson"], **(agreement["pearson_fisher"] or {})},
        "spearman_rho": agreement["spearman"],
        "mmrv": agreement["mmrv"],
        "mmrv_inclusive": agreement["mmrv_inclusive"],
        "bias_points": agreement["bias_points"],
        "counterfactual_auroc": held_out["auroc"],
        "counterfactual_auroc_perturbed": held_out["auroc_perturbed"],
        "counterfactual_optimism": held_out["optimism"],
        "counterfactual_sequences": held_out["sequences"],
        "weights": {model: audit["weights"][model] for model in ("world_model", "success")},
        "measured": {
            name: {key: part[key] for key in ORIGIN if key in part} for name, part in parts.items()
        },
    }


def _read(name: str, folders: Sequence[Path], keys: Sequence[str]) -> Mapping[str, Any]:
    path = find(folders, f"{name}.json")
    if path is None:
        raise FileNotFoundError(
            f"There is no {name}.json in {', '.join(map(str, folders))}; --numbers needs the "
            "folders of `wm-gym audit`, `agree` and `counterfactuals`."
        )
    return read_report(path, keys)
