"""Show an audit as one HTML page, with whatever else was measured of the same weights.

wm-gym report runs/audit
wm-gym report runs/audit runs/agree runs/counterfactuals runs/fidelity
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from wm_gym.evaluation.page import write_page


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """What is shown, and where."""

    folder: tyro.conf.Positional[Path]
    """Folder of `wm-gym audit`."""
    beside: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of `wm-gym agree`, `fidelity` and `counterfactuals`, whose reports are shown, too."""
    path: Path | None = None
    """The page; report.html in the first folder by default."""


def report(config: ReportConfig) -> None:
    """Write an audit as one HTML page that needs no server and no network."""
    path = config.path or config.folder / "report.html"
    write_page(path, config.folder, *config.beside)
    print(f"Written: {path}")
