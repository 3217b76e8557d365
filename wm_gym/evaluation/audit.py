"""Imagined episodes beside real replays of their actions: how often outcomes differ, and why."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from wm_gym.evaluation.paired import aligned
from wm_gym.evaluation.probe import KEYS
from wm_gym.evaluation.statistics import Rate, rate
from wm_gym.evaluation.taxonomy import KINDS
from wm_gym.files import replacing

STEPS = (16, 32, 48, 64)  # the outcomes are compared by each of these, too
WORLDS = ("imagined", "real")
AGREEMENT = 0.85  # least share of pairs whose outcomes agree, within the usable horizon
DRIFT = {"gripper": 10.0, "object": 15.0}  # mm, the largest median there
LATE = 8  # control steps: a success is only called one when it has held, see `hold_k`
EXAMPLES = {"hallucinated": 4, "missed": 4, "success": 2, "failure": 2}
"""Every kind of pair, and how many of it are filmed a policy."""


class Pair(NamedTuple):
    """An imagined episode, and what came of its actions from the same start in the simulator.

    Steps are control steps, from 1; None is never.
    """

    policy: str
    start: int
    imagined_step: int | None
    """When the imagined world first called it a success."""
    real_step: int | None
    """When the replay first succeeded, by the simulator's predicate."""
    judged_step: int | None
    """When the success classifier first calls the real video of the replay a success."""
    probability: float
    """The largest probability of success that the imagined world reported."""
    failure: str | None = None
    """What went wrong in a hallucinated success, one of `taxonomy.KINDS`; None where that was not
    measured, and in all other pairs."""


def report(pairs: Sequence[Pair], tracks: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Summarise all pairs, and under `policies` those of each policy.

    `tracks` (3, n, 1 + t, 2, 3) of the n pairs of each policy by name, or of none: where gripper
    and object were, in metres; truly, as imagined, and as read from real pictures.
    """
    names, tracks = dict.fromkeys(pair.policy for pair in pairs), tracks or {}
    parts = {
        name: summary([p for p in pairs if p.policy == name], tracks.get(name)) for name in names
    }
    together = np.concatenate(list(tracks.values()), axis=1) if set(tracks) == set(names) else None
    return {**summary(pairs, together), "policies": parts}


def summary(pairs: Sequence[Pair], tracks: np.ndarray | None = None) -> dict[str, Any]:
    """Every figure of these pairs, ready for JSON; one without episodes to count is None.

    Precision, recall and F1 are of the verdicts on whole episodes, with the simulator's as the
    truth: `imagined` those of the imagined world, `real` the classifier's on the real videos.
    `by_step` maps a step to the `rates` of what had happened by then, `failures` what went wrong to
    how many hallucinated successes. `drift` and what follows of it, `usable_horizon`, are None
    without `tracks`.
    """
    imagined, real, judged = outcomes(pairs)
    named = [pair.failure for pair in pairs]
    return {
        "pairs": len(pairs),
        "imagined_success": _rate(imagined),
        "real_success": _rate(real),
        **rates(pairs),
        **{f"{name}_imagined": value for name, value in scores(imagined, real).items()},
        **{f"{name}_real": value for name, value in scores(judged, real).items()},
        "failures": {name: n for name in KINDS if (n := named.count(name))},
        **usable(pairs, found := None if tracks is None else drift(tracks)),
        "drift": found,
        "by_step": {str(step): rates([until(pair, step) for pair in pairs]) for step in STEPS},
    }


def rates(pairs: Sequence[Pair]) -> dict[str, Any]:
    """How often imagined outcomes are wrong, and whose share that is.

    Hallucinated: imagined success among real failures. Missed: no imagined success among real
    successes. An error is the classifier's where it errs the same way on the real video, and
    otherwise the dynamics'; the two shares have the rate's own n and add up to it.
    """
    imagined, real, judged = outcomes(pairs)
    hallucinated, missed = imagined[~real], ~imagined[real]
    same_false, same_missed = judged[~real], ~judged[real]  # the classifier's own errors
    return {
        **mistakes(imagined, real),
        "hallucinated_by_classifier": _rate(hallucinated & same_false),
        "hallucinated_by_dynamics": _rate(hallucinated & ~same_false),
        "missed_by_classifier": _rate(missed & same_missed),
        "missed_by_dynamics": _rate(missed & ~same_missed),
    }


def mistakes(imagined: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """How often outcomes of the same actions differ; success, bool (n,), in each world."""
    return {
        "hallucinated_success_rate": _rate(imagined[~real]),
        "missed_success_rate": _rate(~imagined[real]),
        "paired_accuracy": _rate(imagined == real),
    }


def scores(verdicts: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Precision and recall with their intervals, and F1, of verdicts; both (n,) bool.

    F1 is 2 hits / (2 hits + false successes + missed ones).
    """
    named = int(verdicts.sum()) + int(truth.sum())
    return {
        "precision": _rate(truth[verdicts]),
        "recall": _rate(verdicts[truth]),
        "f1": 2 * int((verdicts & truth).sum()) / named if named else None,
    }


def until(pair: Pair, step: int) -> Pair:
    """The pair as it stood after `step` control steps: what came later has not happened."""
    names = ("imagined_step", "real_step", "judged_step")
    late = {name: None for name in names if (getattr(pair, name) or 0) > step}
    return pair._replace(**late)


def drift(tracks: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """How far imagined pictures are from real ones: medians in mm by thing, by step from 1.

    Of each thing `imagined`: between where the probe reads it in the imagined and in the real
    picture, so that an error which it makes in both does not count; and `real`: between where it
    reads it in the real picture and where it was, the probe's own error.
    """
    truth, imagined, real = tracks[:, :, 1:]
    away = np.stack([imagined - real, real - truth])  # (2, n, t, 2, 3)
    median = (1000 * np.median(np.linalg.norm(away, axis=-1), axis=1)).round(2).astype(float)
    return {
        thing: {world: median[i, :, j].tolist() for i, world in enumerate(WORLDS)}
        for j, thing in enumerate(KEYS)
    }


def usable(pairs: Sequence[Pair], away: Mapping[str, Any] | None) -> dict[str, Any]:
    """Up to which step to use the imagination, by AGREEMENT and DRIFT; `away` as from `drift`.

    That is the last step before one of them is passed for the first time: the share of pairs that
    `agree` by then, or the median drift of gripper or object. `usable_horizon_ends_by` names what
    is passed one step later; nothing, where the episodes are usable to their end.
    """
    if away is None:
        return {"usable_horizon": None, "usable_horizon_ends_by": None}
    steps = len(away["object"]["imagined"])
    for step in range(1, steps + 1):
        passed = [t for t, most in DRIFT.items() if away[t]["imagined"][step - 1] > most]
        if np.mean([agree(pair, step) for pair in pairs]) < AGREEMENT:
            passed.append("agreement")
        if passed:
            return {"usable_horizon": step - 1, "usable_horizon_ends_by": passed}
    return {"usable_horizon": steps, "usable_horizon_ends_by": []}


def agree(pair: Pair, step: int) -> bool:
    """Whether outcomes by `step` are equal, or come to be equal within `LATE` steps of another."""
    steps = (pair.imagined_step, pair.real_step)
    seen = [at is not None and at <= step for at in steps]
    return seen[0] == seen[1] or (None not in steps and abs(steps[0] - steps[1]) <= LATE)


def outcomes(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Say which succeed: imagined, real, and judged by the classifier on real video; (n,) bool."""
    steps = [(p.imagined_step, p.real_step, p.judged_step) for p in pairs]
    flags = np.array([[s is not None for s in row] for row in steps], bool).reshape(-1, 3)
    imagined, real, judged = flags.T
    return imagined, real, judged


def kind(pair: Pair) -> str:
    """Say which of `EXAMPLES` a pair is; `success` and `failure` are those that agree."""
    imagined, real = pair.imagined_step is not None, pair.real_step is not None
    if imagined == real:
        return "success" if real else "failure"
    return "hallucinated" if imagined else "missed"


def examples(pairs: Sequence[Pair]) -> list[Pair]:
    """Those of one policy's pairs that are filmed: the first of each kind, kind by kind."""
    return [
        pair
        for name, most in EXAMPLES.items()
        for pair in [pair for pair in pairs if kind(pair) == name][:most]
    ]


def video_name(pair: Pair) -> str:
    """The file that shows a pair; the policy's name is quoted, so that no two share a file."""
    return f"{quote(pair.policy, safe='')}-{pair.start}-{kind(pair)}.mp4"


def table(content: Mapping[str, Any]) -> str:
    """A `report` as plain text: every policy, all of them, and all of them by step."""
    lines = [("", "pairs", "imagined", "real", "hallucinated", "missed", "accuracy")]
    wrong = ("hallucinated_success_rate", "missed_success_rate", "paired_accuracy")
    for name, part in [*content["policies"].items(), ("all", content)]:
        success = (f"{100 * part[f'{world}_success']['rate']:.1f} %" for world in WORLDS)
        lines.append((name, str(part["pairs"]), *success, *(_text(part[key]) for key in wrong)))
    for step, part in content["by_step"].items():
        lines.append((f"all, by step {step}", "", "", "", *(_text(part[key]) for key in wrong)))
    shares = [
        f"Of the {kind} successes, the classifier's own errors: "
        f"{_count(content[f'{kind}_by_classifier'])} of {_count(content[f'{kind}_success_rate'])}."
        for kind in ("hallucinated", "missed")
    ]
    failures = [f"{name.replace('_', ' ')} {n}" for name, n in content["failures"].items()]
    if failures:
        shares.append(f"What went wrong in hallucinated successes: {', '.join(failures)}.")
    if (horizon := content["usable_horizon"]) is not None:
        ends = " and ".join(content["usable_horizon_ends_by"])
        shares.append(f"Usable to step {horizon}{f', where {ends} ends it' if ends else ''}.")
    f1 = {world: content[f"f1_{world}"] for world in WORLDS}
    told = {name: "-" if value is None else f"{value:.3f}" for name, value in f1.items()}
    verdicts = f"F1 of imagined verdicts {told['imagined']}, of those on real video {told['real']}."
    return "\n".join([*aligned(lines), *shares, verdicts])


def write_pairs(
    path: str | Path, pairs: Sequence[tuple], columns: Sequence[str] = Pair._fields
) -> None:
    """Write a CSV of one row a pair, all or nothing; an empty cell is never."""
    with replacing(path) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(pairs)


def read_pairs(path: str | Path) -> list[Pair]:
    """Read what `write_pairs` wrote; raises ValueError for a table with other columns."""
    with Path(path).open(newline="") as file:
        columns, *rows = list(csv.reader(file)) or [[]]
    if tuple(columns) != Pair._fields:
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or 'of an empty file'}; expected "
            f"{', '.join(Pair._fields)}, as `wm-gym audit` writes them."
        )
    return [
        Pair(p, int(start), *(int(s) if s else None for s in steps), float(score), failure or None)
        for p, start, *steps, score, failure in rows
    ]


def _rate(flags: np.ndarray) -> dict[str, Any] | None:
    return rate(flags)._asdict() if flags.size else None


def _text(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else str(Rate(**found))


def _count(found: Mapping[str, Any] | None) -> int:
    return found["successes"] if found else 0
