"""Do success rates in the imagined world tell the real ones of the same policies?"""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

LEAST = 3  # policies: two points always lie on a line


class Interval(NamedTuple):
    """Two ends, in the unit of what lies between them."""

    low: float
    high: float


def agreement(real: ArrayLike, imagined: ArrayLike) -> dict[str, Any]:
    """Every figure of p policies, ready for JSON; None where one is undefined.

    Both are success rates in [0, 1], (p,), or, for `pearson_over_starts` too, the outcomes of
    single episodes, (p, starts) bool, column s from the same start for all and in both worlds.
    Raises ValueError for other shapes or values, and for fewer than three policies.
    """
    x, y = _checked(real, imagined)
    real_rate, imagined_rate = (v if v.ndim == 1 else v.mean(1) for v in (x, y))
    r = pearson(real_rate, imagined_rate)
    slope, intercept = calibration(real_rate, imagined_rate)
    return {
        "policies": len(x),
        "starts": x.shape[1] if x.ndim == 2 else None,
        "pearson": _number(r),
        "pearson_fisher": _ends(fisher_interval(float(r), len(x))),
        "pearson_over_starts": _ends(bootstrap_interval(x, y)) if x.ndim == 2 else None,
        "pearson_without_one": _ends(leave_one_out(real_rate, imagined_rate)),
        "permutation_floor": _number(permutation_floor(real_rate, imagined_rate)),
        "spearman": _number(spearman(real_rate, imagined_rate)),
        "mmrv": mmrv(real_rate, imagined_rate),
        "mmrv_inclusive": mmrv(real_rate, imagined_rate, inclusive=True),
        "bias_points": 100 * float((imagined_rate - real_rate).mean()),
        "calibration_slope": _number(slope),
        "calibration_intercept": _number(intercept),
    }


def pearson(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Pearson's r over the last axis, float64; NaN where x or y is constant.

    Rounded to 12 digits: points on a line then have 1 or -1 exactly, and equal values are equal.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    constant = (np.ptp(x, -1) == 0) | (np.ptp(y, -1) == 0)
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(constant, np.nan, ((a * b).sum(-1) / np.where(constant, 1, size)).round(12))


def fisher_interval(r: float, policies: int, level: float = 0.95) -> Interval | None:
    """Fisher's interval of r (Metron 1, 1921): tanh(atanh r +- z / sqrt(policies - 3)).

    It takes policies for independent draws of a normal pair. None for fewer than four, and where r
    is undefined or 1 or -1, for which it has no width.
    """
    if policies < 4 or math.isnan(r) or abs(r) >= 1:
        return None
    half = NormalDist().inv_cdf((1 + level) / 2) / math.sqrt(policies - 3)
    return Interval(math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def bootstrap_interval(
    real: ArrayLike, imagined: ArrayLike, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap of r over starts, for these very policies; both (p, starts) bool.

    A draw takes the same starts for all policies and both worlds, which did play the same ones.
    None where r is undefined in any of the draws.
    """
    x, y = np.asarray(real, np.float64), np.asarray(imagined, np.float64)
    starts = x.shape[1]
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(starts, np.full(starts, 1 / starts), size=draws).astype(np.float64)
    r = pearson(drawn @ x.T, drawn @ y.T)  # of counts, which are exact: (draws,)
    if np.isnan(r).any():
        return None
    return Interval(*np.quantile(r, [(1 - level) / 2, (1 + level) / 2]).tolist())


def leave_one_out(real: ArrayLike, imagined: ArrayLike) -> Interval | None:
    """Between which values r lies when one policy is left out; both (p,).

    None for fewer than four policies, and where r is undefined without one of them.
    """
    x, y = np.asarray(real), np.asarray(imagined)
    rest = np.array([np.delete(np.arange(len(x)), i) for i in range(len(x))])  # (p, p - 1)
    r = pearson(x[rest], y[rest])
    return None if len(x) < 4 or np.isnan(r).any() else Interval(float(r.min()), float(r.max()))


def permutation_floor(
    real: ArrayLike,
    imagined: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """What r a world without knowledge reaches: the quantile `level` of r of shuffled rates.

    Imagined rates (p,) are dealt to the policies in every order, or in `draws` random ones where
    there are more. The quantile is the least r that a share `level` of the orders does not exceed:
    with three policies it is the best order's, which chance finds in one of six. NaN where r is
    undefined.
    """
    y = np.asarray(imagined, np.float64)
    if math.factorial(len(y)) <= draws:
        dealt = np.array(list(itertools.permutations(y)))  # (p!, p)
    else:
        dealt = np.random.default_rng(seed).permuted(np.tile(y, (draws, 1)), axis=1)
    return float(np.quantile(pearson(real, dealt), level, method="inverted_cdf"))


def spearman(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Spearman's rho of (p,) and (p,): Pearson's r of the ranks, equal values sharing theirs."""
    return pearson(ranks(x), ranks(y))


def ranks(values: ArrayLike) -> np.ndarray:
    """Ranks from 1, float64 (p,); equal values get the mean of the ranks that they take up."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def mmrv(real: ArrayLike, imagined: ArrayLike, *, inclusive: bool = False) -> float:
    """Mean maximum rank violation (SIMPLER, arXiv 2405.05941) of rates (p,): in [0, 1], 0 best.

    The mean over policies i of the largest cost of a pair (i, j) that the two worlds order in
    different ways, that is (S_i < S_j) != (R_i < R_j) for imagined rates S and real rates R. Its
    cost is the real gap |R_i - R_j|; so an imagined tie costs the worse policy of the pair the gap.

    `inclusive` is the other convention in use: <= for both <, and the imagined gap |S_i - S_j|. An
    imagined tie costs nothing there; a real one that is imagined as none costs the policy that is
    imagined to be better.
    """
    r, s = np.asarray(real, np.float64), np.asarray(imagined, np.float64)
    before, rate = (np.less_equal, s) if inclusive else (np.less, r)
    violated = before.outer(s, s) != before.outer(r, r)  # (p, p)
    return float((violated * np.abs(np.subtract.outer(rate, rate))).max(1).mean())


def calibration(real: ArrayLike, imagined: ArrayLike) -> tuple[float, float]:
    """Slope and intercept of the least-squares line of real on imagined rates, both (p,).

    real = intercept + slope * imagined: what to expect really, given what was imagined. 1 and 0
    are best. NaN where the imagined rates are constant.
    """
    x, y = np.asarray(imagined, np.float64), np.asarray(real, np.float64)
    if np.ptp(x) == 0:
        return math.nan, math.nan
    a = x - x.mean()
    slope = float((a * (y - y.mean())).sum() / (a * a).sum())
    return slope, float(y.mean() - slope * x.mean())


def _checked(real: ArrayLike, imagined: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(real, np.float64), np.asarray(imagined, np.float64)
    if x.shape != y.shape or x.ndim not in (1, 2) or x.size == 0:
        raise ValueError(
            "Expected real and imagined success of the same policies, as rates (p,) or as "
            f"outcomes (p, starts) from the same starts; got {x.shape} and {y.shape}."
        )
    if len(x) < LEAST:
        raise ValueError(
            f"Agreement needs at least {LEAST} policies, got {len(x)}: two points always lie on a "
            "line. Play more policies."
        )
    for name, values in (("real", x), ("imagined", y)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"Expected {name} success in [0, 1], got {values}; use fractions.")
        if values.ndim == 2 and not np.isin(values, (0, 1)).all():
            raise ValueError(
                f"Expected {name} outcomes (p, starts) of 0 or 1, got {values}; rates are (p,)."
            )
    return x, y


def _number(value: float | np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def _ends(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else found._asdict()
