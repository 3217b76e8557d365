"""Writes the tables of README.md and docs/results.md from docs/results/*.json.

make tables                              rewrites them
python docs/make_tables.py --check       says which differ from the files, and exits 1
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tables

RESULTS = Path("docs/results")
PAGES = (Path("README.md"), Path("docs/results.md"))

# Section between <!-- NAME:begin --> and <!-- NAME:end -->: the file it shows, and how.
SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "results": ("lift_bundled.json", partial(tables.results, run_name="bundled run")),
    "stages": ("lift_bundled.json", tables.stages),
    "memory": ("bundled", tables.memory),
    "replicates": ("lift_wmpo.json", tables.results),
    "speed": ("speed.json", tables.speed),
    "speed-summary": ("speed.json", tables.speed_summary),
    "parts": ("speed.json", tables.parts),
    "ablations": ("ablations.json", tables.ablations),
    "overhead": ("env_overhead.json", tables.overhead),
    "fidelity": ("lift_fidelity.json", tables.fidelity),
    "audit": ("lift_audit.json", tables.audit),
    "audit-summary": ("lift_audit.json", tables.audit_summary),
    "agreement": ("lift_agreement.json", tables.agreement),
    "overoptimization": ("lift_overoptimization.json", tables.overoptimization),
}


def fill(page: str, folder: Path) -> str:
    """Return `page` with each of its marked sections written anew from the files in `folder`."""
    for name, (file, write) in SECTIONS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in page:
            continue
        path = folder / file
        body = write(_read(path)) if path.exists() else tables.MISSING
        marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        page = marked.sub(lambda _, text=f"{begin}\n{body}\n{end}": text, page)
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the pages; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 on a change")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout")
    options = parser.parse_args(arguments)
    stale = []
    for page in PAGES:
        path = options.root / page
        old = path.read_text()
        new = fill(old, options.root / RESULTS)
        if new != old:
            stale.append(str(page))
            if not options.check:
                path.write_text(new)
    if stale and options.check:
        print(f"{', '.join(stale)}: tables differ from {RESULTS}; run `make tables`.")
    elif stale:
        print(f"Rewrote {', '.join(stale)}.")
    return int(bool(stale and options.check))


def _read(path: Path) -> Any:
    """A JSON file; of a folder with a run in it, the marks of its finished work by their names."""
    if path.is_dir():
        return {mark.stem: json.loads(mark.read_text()) for mark in path.glob("*/done/*.json")}
    return json.loads(path.read_text())


if __name__ == "__main__":
    sys.exit(main())
