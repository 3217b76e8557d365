"""Success rates and their differences, always with an interval."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Rate(NamedTuple):
    """Successes among n episodes, as fractions in [0, 1], with the interval's ends."""

    n: int
    successes: int
    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        """Print as `50.0 % [40.4, 59.6] (n = 100)`."""
        return (
            f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n = {self.n})"
        )


class Difference(NamedTuple):
    """A difference of success rates in percentage points, with the interval's ends."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        """Print as `+12.5 points [3.1, 21.9]`."""
        return f"{self.points:+.1f} points [{self.low:.1f}, {self.high:.1f}]"


def wilson(successes: int, n: int, level: float = 0.95) -> Rate:
    """Wilson's score interval (JASA 22, 1927) of `successes` among `n` episodes."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"Need 0 <= successes <= n and n > 0; got {successes} of {n}.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # Exact at the ends, where rounding would leave 1e-17.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Rate(int(n), int(successes), p, low, high)


def rate(success: ArrayLike, level: float = 0.95) -> Rate:
    """Wilson's interval of a (n,) bool array of successes."""
    flags = np.asarray(success, bool)
    return wilson(int(flags.sum()), flags.size, level)


def rate_difference(before: Rate, after: Rate, *, level: float = 0.95) -> Difference:
    """How much higher a rate is than one that was measured on other episodes.

    The interval is Newcombe's (Statistics in Medicine 17, 1998, method 10), made of Wilson's two.
    """
    first, second = (wilson(r.successes, r.n, level) for r in (before, after))
    gain = second.rate - first.rate
    below = np.hypot(second.rate - second.low, first.high - first.rate)
    above = np.hypot(second.high - second.rate, first.rate - first.low)
    return Difference(100 * gain, 100 * float(gain - below), 100 * float(gain + above))


def paired_difference(
    base: ArrayLike, improved: ArrayLike, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Difference:
    """How much better `improved` is than `base` on the same starts; both (starts,).

    The interval is the percentile bootstrap over starts, which keeps every pair together.
    """
    return pooled_difference([base], [improved], level=level, draws=draws, seed=seed)


def pooled_difference(
    base: ArrayLike, improved: ArrayLike, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Difference:
    """The mean difference over replicates; both (replicates, starts), column s on start s.

    Entries are successes, bool, or the share of them among the seeds of a replicate, in [0, 1]:
    seeds that share demonstrations, base policy and world model are no replicates of each other.

    Each draw of the bootstrap resamples replicates, then starts. The starts drawn are the same for
    all replicates of a draw, because the replicates did play the same starts: an easy draw of
    starts is easy for all. With two or three replicates such an interval is a rough guide.
    """
    first, second = np.asarray(base, np.float64), np.asarray(improved, np.float64)
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(
            "Paired success arrays must have one shape, with an entry for each start; "
            f"got {first.shape[-1:] or first.shape} and {second.shape[-1:] or second.shape}."
        )
    gain = second - first  # (replicates, starts)
    low, high = _bootstrap(gain, level, draws, seed)
    return Difference(100 * float(gain.mean()), 100 * low, 100 * high)


def pooled_rate(
    success: ArrayLike, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Rate:
    """The rate over replicates, (replicates, starts) bool; of one, Wilson's.

    Of several, the interval reaches as far as Wilson's or the bootstrap of `pooled_difference`,
    whichever is further: episodes of one replicate share its weights, and are not independent.
    """
    flags = np.asarray(success, bool)
    if flags.ndim != 2 or flags.size == 0:
        raise ValueError(f"Expected successes (replicates, starts), got {flags.shape}.")
    pooled = rate(flags, level)
    if len(flags) == 1:
        return pooled
    low, high = _bootstrap(flags.astype(np.float64), level, draws, seed)
    return pooled._replace(low=min(low, pooled.low), high=max(high, pooled.high))


def _bootstrap(values: np.ndarray, level: float, draws: int, seed: int) -> tuple[float, float]:
    """Where the mean of (replicates, starts) lies when both are drawn anew: the interval's ends."""
    rng = np.random.default_rng(seed)
    runs, starts = values.shape
    run_share = rng.multinomial(runs, np.full(runs, 1 / runs), size=draws) / runs  # (draws, runs)
    start_share = rng.multinomial(starts, np.full(starts, 1 / starts), size=draws) / starts
    means = ((run_share @ values) * start_share).sum(1)  # (draws,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
