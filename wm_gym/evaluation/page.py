"""An audit as one HTML page that needs nothing else: no server, no script, no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from wm_gym.evaluation import taxonomy
from wm_gym.evaluation.audit import (
    AGREEMENT,
    DRIFT,
    EXAMPLES,
    LATE,
    Pair,
    examples,
    kind,
    read_pairs,
    video_name,
)
from wm_gym.evaluation.charts import COLOURS, draw_agreement, draw_by_step, draw_drift, look, svg
from wm_gym.evaluation.figures import panels
from wm_gym.evaluation.statistics import Difference, Rate
from wm_gym.files import replacing

RATES = {
    "hallucinated_success_rate": "Hallucinated successes",
    "missed_success_rate": "Missed successes",
    "paired_accuracy": "Outcomes that agree",
}
KINDS = dict(
    zip(
        EXAMPLES,
        ("Hallucinated success", "Missed success", "Success in both", "Failure in both"),
        strict=True,
    )
)
ORIGIN = ("command", "commit", "machine", "seeds", "date")  # `provenance`
AUDITED = (
    *("task", "split", "world_model", "success", "weights", "played", "policies"),
    *("by_step", "failures", "drift", "usable_horizon", "usable_horizon_ends_by"),
)
MEDIA = {".mp4": "video/mp4", ".png": "image/png"}


def write_page(path: str | Path, folder: str | Path, *beside: str | Path) -> None:
    """Write what `render` gives for these folders, all or nothing."""
    text = render(folder, *beside)
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def render(folder: str | Path, *beside: str | Path) -> str:
    """Show the audit in a folder as one HTML page, with what was measured beside it.

    Reads audit.json, audit.csv and videos/ of `folder`; where they are there or in one of the
    folders `beside`, also fidelity.json with strip.png, agreement.json and counterfactuals.json.
    Raises FileNotFoundError where there is no audit, and ValueError where a file is not what wm-gym
    writes.
    """
    folder = Path(folder)
    for name in ("audit.json", "audit.csv"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"There is no {name} in {folder}; name a folder in which `wm-gym audit` has "
                "finished."
            )
    folders = [folder, *map(Path, beside)]
    audit = read_report(folder / "audit.json", (*ORIGIN, *RATES, *AUDITED))
    names = list(audit["policies"])
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= {"percent": _percent, "ends": _ends, "spaced": _spaced}
    return page.from_string(Path(__file__).with_name("page.html").read_text("utf-8")).render(
        audit=audit,
        rates=RATES,
        legend=_legend(names),
        charts={title: _by_step(audit, key, title) for key, title in RATES.items()},
        films=_films(folder, names),
        kinds=KINDS,
        failures=taxonomy.KINDS,
        drift_chart=audit["drift"] and _drift(audit["drift"]),
        drift_limits=DRIFT,
        agreement_limit=AGREEMENT,
        late=LATE,
        fidelity=_fidelity(find(folders, "fidelity.json")),
        agreement=_agreement(find(folders, "agreement.json")),
        counterfactuals=_counterfactuals(find(folders, "counterfactuals.json")),
    )


def facts(content: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Name and text of every value in nested content; long lists and lists of rows are left out."""
    found = []
    for key, value in content.items():
        name, text = _spaced(f"{above}{key}"), _told(value)
        if text is not None:
            found.append((name, text))
        elif isinstance(value, Mapping):
            found += facts(value, f"{name}: ")
    return found


def _told(value: Any) -> str | None:
    """A value as text, with its interval where it has one; None for what is too much to tell."""
    if isinstance(value, Mapping):
        return _interval(value)
    if isinstance(value, list):
        short = len(value) <= 8 and not any(isinstance(v, list | Mapping) for v in value)
        return ", ".join(map(_told, value)) if short else None
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(value: Mapping[str, Any]) -> str | None:
    """Text of a rate, a difference, or of `low` and `high` with one number at most beside them."""
    for named in (Rate, Difference):
        if set(value) == set(named._fields):
            return str(named(**value))
    numbers = all(isinstance(part, int | float) for part in value.values())
    if not ({"low", "high"} <= set(value) and len(value) <= 3 and numbers):
        return None
    middle = [_told(part) for key, part in value.items() if key not in ("low", "high")]
    return " ".join([*middle, f"[{value['low']:.4g}, {value['high']:.4g}]"])


def _percent(rate: Mapping[str, Any] | None) -> str:
    return "–" if rate is None else f"{100 * rate['rate']:.1f}\N{NO-BREAK SPACE}%"


def _ends(rate: Mapping[str, Any]) -> str:
    return f"[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _legend(names: Sequence[str]) -> list[dict[str, str]]:
    looks = [(name, look(number)) for number, name in enumerate(dict.fromkeys(names))]
    return [{"name": n, "sign": by.sign, "colour": COLOURS[by.colour]} for n, by in looks]


def _by_step(audit: Mapping[str, Any], figure: str, title: str) -> Markup:
    parts = [part["by_step"] for part in audit["policies"].values()]
    draw = partial(draw_by_step, parts=parts, figure=figure)
    return Markup(svg(draw, figure, f"{title} by control step, a line for each policy"))


def _drift(away: Mapping[str, Any]) -> Markup:
    told = "Drift of gripper and object by control step, and the probe's own error"
    return Markup(svg(partial(draw_drift, away=away), "drift", told, (3.8, 2.9)))


def _films(folder: Path, names: Sequence[str]) -> dict[str, list[tuple[str, Pair, str]]]:
    """Kind, pair and video of the examples of every policy that has any."""
    pairs = read_pairs(folder / "audit.csv")
    found = {}
    for name in names:
        shown = examples([pair for pair in pairs if pair.policy == name])
        paths = [(pair, folder / "videos" / video_name(pair)) for pair in shown]
        films = [(kind(pair), pair, _inline(path)) for pair, path in paths if path.exists()]
        found |= {name: films} if films else {}
    return found


def find(folders: Sequence[Path], name: str) -> Path | None:
    """The first file of this name that is there."""
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def _fidelity(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    strip = path.with_name("strip.png")
    report = read_report(path, ("by_step", "drift", "episodes", "steps", "world_model", *ORIGIN))
    charts = {
        name: Markup(svg(draw, f"fidelity-{name}", f"{name} by control step", (3.8, 2.9)))
        for name, draw in panels(report).items()
    }
    return report | {"charts": charts, "strip": _inline(strip) if strip.exists() else None}


def _agreement(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    content = read_report(path, ("policies", "agreement"))
    rows = content["policies"]
    told = "Real over imagined success, a point for each policy, with intervals"
    return {
        "chart": Markup(svg(partial(draw_agreement, rows=rows), "agreement", told, (3.6, 3.6))),
        "looks": {by["name"]: by for by in _legend([row["policy"] for row in rows])},
        "rows": rows,
        "facts": facts(content["agreement"]),
        "origin": _origin(content),
    }


def _counterfactuals(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    content = read_report(
        path, ("families", "held_out", "held_out_families", "unperturbed", *ORIGIN)
    )
    named = {"not perturbed": content["unperturbed"], **content["families"]}
    named |= {"held-out families": content["held_out"], "all families": content}
    return {
        "parts": {_spaced(name): part for name, part in named.items()},
        "held_out": _spaced(", ".join(content["held_out_families"])),
        "origin": _origin(content),
    }


def _origin(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: content[key] for key in ("command", "commit", "date") if content.get(key)}


def read_report(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read JSON that has these keys; raises ValueError, naming the file, for anything else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; write it again.") from error
    missing = [key for key in keys if key not in content] if isinstance(content, dict) else keys
    if missing or not isinstance(content, dict):
        raise ValueError(
            f"{path} is not what wm-gym writes: it lacks {', '.join(missing) or 'everything'}; "
            "write it again."
        )
    return content


def _inline(path: Path) -> str:
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
