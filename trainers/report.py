"""Show an audit as one HTML page, with whatever else was measured into the same folder.

wm-gym report runs/audit
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
    """Folder of `wm-gym audit`; other reports that lie there are shown, too."""
    path: Path | None = None
    """The page; report.html in the folder by default."""


def report(config: ReportConfig) -> None:
    """Write an audit as one HTML page that needs no server and no network."""
    path = config.path or config.folder / "report.html"
    write_page(path, config.folder)
    print(f"Written: {path}")
