"""Counterfactuals: successes perturbed on purpose, and whether the imagination sees them fail.

Optimism, AUROC and the score gap between outcomes from one start are those by which CureWM judges
world models on failures that a simulator has verified.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from wm_gym.evaluation.paired import aligned
from wm_gym.evaluation.statistics import Rate, rate

NONE = "none"  # the family of the successes themselves
SEVERITIES = (0.5, 1.0)  # the milder fails at times, the stronger mostly
RISING = 0.5  # upward action from which a closed hand lifts

# What a severity of 1 means; chosen by outcomes in the simulator, see docs/counterfactuals.md.
SCALE = 1.0  # of the approach, beyond 1
DELAY = (4.0, 12.0)  # control steps by which the closing comes late; drawn from this range
LEAD = (0.5, 4.0)  # control steps before the lift at which the gripper begins to open; drawn
OPENING = 0.5  # chance that a closing command is an opening one
SWING = 1.5  # action, the amplitude of the lateral sine
PERIOD = 12.0  # control steps of the sine
DRIFT = 3.2  # sum of the sideways action until the gripper closes


class Counterfactual(NamedTuple):
    """A perturbed success, or under NONE the success itself, played open loop in both worlds.

    Steps are control steps, from 1; None is never.
    """

    family: str
    severity: float
    """In (0, 1]; 0 where nothing is perturbed."""
    start: int
    real_step: int | None
    """When the simulator first called it a success."""
    imagined_step: int | None
    """When the imagined world first did."""
    probability: float
    """The score: the largest probability of success that the imagined world reported."""


class Moments(NamedTuple):
    """When an episode grasps and lifts, as indices of its actions."""

    closing: int
    """The first action of the last run that closes the gripper: earlier runs did not succeed."""
    lift: int
    """The first one after it that rises."""


def moments(actions: np.ndarray) -> Moments:
    """Find the grasp and the lift in actions (t, 7); raises ValueError where one is missing."""
    closes = actions[:, 6] > 0
    begins = np.flatnonzero(closes & ~np.append(False, closes[:-1]))
    rises = np.flatnonzero(actions[begins[-1] :, 2] > RISING) if begins.size else begins
    if not rises.size:
        raise ValueError(
            "Expected actions that close the gripper (the 7th value over 0) and then rise (the 3rd "
            f"over {RISING}), got {begins.size} closings and no rise after the last; perturb "
            "episodes that lifted their object."
        )
    return Moments(int(begins[-1]), int(begins[-1] + rises[0]))


def perturb(actions: np.ndarray, family: str, severity: float, seed: Sequence[int]) -> np.ndarray:
    """Perturb a success's actions, float32 (t, 7) in [-1, 1], as `family` of FAMILIES does.

    Returns fresh actions of the same shape and dtype, clipped to [-1, 1]. What a family draws
    depends on `seed` alone: one direction at every severity. Raises ValueError for an unknown
    family, a severity outside (0, 1], other arrays, and actions that never grasp and lift.
    """
    if family not in FAMILIES:
        raise ValueError(f"Unknown family {family!r}; expected one of {', '.join(FAMILIES)}.")
    if not 0 < severity <= 1:
        raise ValueError(f"A severity lies in (0, 1], got {severity!r}.")
    if actions.dtype != np.float32 or actions.ndim != 2 or actions.shape[1] != 7:
        raise ValueError(
            f"Expected actions float32 (t, 7), got {actions.dtype} {actions.shape}; pass those of "
            "one recorded episode."
        )
    rng = np.random.default_rng([zlib.crc32(family.encode()), *seed])
    return FAMILIES[family](actions.copy(), severity, rng).clip(-1, 1)


def overshoot(actions: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Scale the translation of the approach up; the hand goes past the object."""
    actions[: moments(actions).closing, :3] *= 1 + SCALE * severity
    return actions


def late_grasp(actions: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Delay the closing of the gripper, so that the lift begins before it has hold."""
    closing = moments(actions).closing
    delay = round(severity * rng.uniform(*DELAY))
    actions[closing : closing + delay, 6] = -1
    return actions


def early_release(actions: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Open the gripper for good, so early that it lets go in the first steps of the lift.

    The fingers' target needs six steps to come back to the object, see `weak_grip`.
    """
    closing, lift = moments(actions)
    release = lift - round(severity * rng.uniform(*LEAD))
    actions[max(closing, release) :, 6] = -1
    return actions


def weak_grip(actions: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Mix opening commands into the closing ones.

    The size of a gripper command means nothing to robosuite's Panda, only its sign does: it moves
    the fingers' target by 5 mm a control step. So a weak grip is one that is not closed long.
    """
    closing = moments(actions).closing
    opens = rng.random(len(actions) - closing) < OPENING * severity
    actions[closing:, 6] = np.where(opens, -1, actions[closing:, 6])
    return actions


def oscillation(actions: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Add a horizontal sine of a drawn direction and phase, from the first action to the last."""
    direction, phase = _direction(rng), rng.uniform(0, 2 * np.pi)
    sine = np.sin(2 * np.pi * np.arange(len(actions)) / PERIOD + phase)
    actions[:, :2] += SWING * severity * sine[:, None] * direction
    return actions


def offset_approach(actions: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Add a constant horizontal drift of a drawn direction to the approach."""
    closing = moments(actions).closing
    actions[:closing, :2] += DRIFT * severity / max(closing, 1) * _direction(rng)
    return actions


Family = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "overshoot": overshoot,
        "late_grasp": late_grasp,
        "early_release": early_release,
        "weak_grip": weak_grip,
        "oscillation": oscillation,
        "offset_approach": offset_approach,
    }
)
"""What perturbs a success; call them through `perturb`, for they write into what they are given."""

HELD_OUT = ("weak_grip", "oscillation")
"""Families kept for judging: no world model and no classifier is ever trained on them."""


def report(rows: Sequence[Counterfactual]) -> dict[str, Any]:
    """Summarise all perturbed sequences, each family by severity, and the held-out families.

    Every `summary` has the unperturbed sequences as its references; `unperturbed` is their own.
    """
    references = [row for row in rows if row.family == NONE]
    perturbed = [row for row in rows if row.family != NONE]

    def part(family: str) -> dict[str, Any]:
        own = [row for row in perturbed if row.family == family]
        severities = sorted({row.severity for row in own})
        split = {str(s): [row for row in own if row.severity == s] for s in severities}
        found = {s: summary(some, references) for s, some in split.items()}
        return {**summary(own, references), "severities": found}

    return {
        **summary(perturbed, references),
        "unperturbed": summary(references),
        "families": {name: part(name) for name in dict.fromkeys(row.family for row in perturbed)},
        "held_out": summary([row for row in perturbed if row.family in HELD_OUT], references),
        "held_out_families": list(HELD_OUT),
    }


def summary(
    rows: Sequence[Counterfactual], references: Sequence[Counterfactual] = ()
) -> dict[str, Any]:
    """Every figure of these rows, ready for JSON; one that cannot be had is None.

    `auroc` and `score_gap` count the references too, so that a failure has a success from its own
    start to be compared with; the rates and `auroc_perturbed` do not.
    """
    real, imagined = (
        np.array([getattr(row, name) is not None for row in rows], bool)
        for name in ("real_step", "imagined_step")
    )
    optimistic = optimism(real, imagined)
    judged = [*rows, *references]
    success = np.array([row.real_step is not None for row in judged], bool)
    score = np.array([row.probability for row in judged])
    return {
        "sequences": len(rows),
        "real_success": rate(real)._asdict() if rows else None,
        "imagined_success": rate(imagined)._asdict() if rows else None,
        "optimism": optimistic._asdict() if optimistic else None,
        "auroc": auroc(score, success),
        "auroc_perturbed": auroc(score[: len(rows)], success[: len(rows)]),
        "score_gap": score_gap(score, success, [row.start for row in judged]),
    }


def optimism(real: ArrayLike, imagined: ArrayLike) -> Rate | None:
    """Share of the real failures that were imagined as successes; both (n,) bool.

    None where nothing failed. A world that never says success is not optimistic: read it beside
    `auroc`.
    """
    hopes = np.asarray(imagined, bool)[~np.asarray(real, bool)]
    return rate(hopes) if hopes.size else None


def auroc(score: ArrayLike, success: ArrayLike) -> float | None:
    """Chance that a success scores over a failure, a tie counting half; both (n,).

    The area under the receiver operating characteristic, 0.5 for a score that knows nothing; None
    where all outcomes are one.
    """
    score, success = np.asarray(score, float), np.asarray(success, bool)
    if success.all() or not success.any():
        return None
    lead = score[success][:, None] - score[~success]  # (successes, failures)
    return float(((lead > 0) + 0.5 * (lead == 0)).mean())


def score_gap(score: ArrayLike, success: ArrayLike, start: ArrayLike) -> dict[str, Any] | None:
    """Mean score of successes less that of failures, start by start, then over starts; all (n,).

    Starts without both outcomes say nothing and are not counted in `starts`; None where none has.
    """
    score, success, start = np.asarray(score, float), np.asarray(success, bool), np.asarray(start)
    gaps = []
    for own in (start == s for s in np.unique(start)):
        good, bad = score[own & success], score[own & ~success]
        if good.size and bad.size:
            gaps.append(good.mean() - bad.mean())
    return {"mean": float(np.mean(gaps)), "starts": len(gaps)} if gaps else None


def table(content: Mapping[str, Any]) -> str:
    """A `report` as plain text: the successes, every family by severity, those held out, all."""
    lines = [("", "sequences", "real", "imagined", "optimism", "AUROC", "score gap")]
    lines.append((NONE, *_cells(content["unperturbed"])))
    for name, part in content["families"].items():
        lines += [(f"{name} {s}", *_cells(found)) for s, found in part["severities"].items()]
        lines.append((name, *_cells(part)))
    lines.append(("held out", *_cells(content["held_out"])))
    lines.append(("all", *_cells(content)))
    return "\n".join([*aligned(lines), f"Held out: {', '.join(content['held_out_families'])}."])


def _cells(part: Mapping[str, Any]) -> tuple[str, ...]:
    rates = [part[f"{world}_success"] for world in ("real", "imagined")]
    shares = ["-" if found is None else f"{100 * found['rate']:.1f} %" for found in rates]
    hopes, area, gap = part["optimism"], part["auroc"], part["score_gap"]
    return (
        str(part["sequences"]),
        *shares,
        "-" if hopes is None else str(Rate(**hopes)),
        "-" if area is None else f"{area:.3f}",
        "-" if gap is None else f"{gap['mean']:+.3f}",
    )


def _direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])
