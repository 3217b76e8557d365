"""How far a success probability can be trusted, and the threshold that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from wm_gym.success.classifier import held

THRESHOLDS = tuple(t / 20 for t in range(1, 20))  # 0.05 to 0.95


class Watched(NamedTuple):
    """What a classifier says of episodes, and the truth: one array (t,) of each an episode."""

    probabilities: Sequence[np.ndarray]  # float32
    labels: Sequence[np.ndarray]  # bool: whether the task is done at that step
    weights: np.ndarray | None = None  # (episodes,): how much each counts; alike without


class Calibration(NamedTuple):
    """What episodes that a classifier has not seen say about it at its chosen threshold.

    A world model that imagines them may have seen them: what it imagines of others is worse.
    Where episodes have weights, all that goes by episode is weighted.
    """

    threshold: float
    expected_calibration_error: float
    reliability: list[tuple[float, float, int]]
    """Per bin of predicted probability: mean prediction, share of true successes, windows."""
    precision: float  # by episode, as the next three
    recall: float
    f1: float
    false_success: float
    """Share of failed episodes that are called a success."""
    delay: float
    """Mean steps from the true success to the verdict, over episodes where both happen."""
    false_per_thousand: float
    """Hits among 1,000 windows that end where the task is not done."""
    by_threshold: list[tuple[float, float, float, float]]
    """Every threshold, with precision, recall and F1 by episode there."""


def reliability_curve(
    probability: np.ndarray, label: np.ndarray, bins: int = 10
) -> tuple[list[tuple[float, float, int]], float]:
    """Compare predicted with observed frequency in equal bins of [0, 1].

    probability, label: (windows,). Returns the non-empty bins and the expected calibration error
    (Naeini et al. 2015): the mean gap, weighted by the windows in the bin.
    """
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)
    curve, error = [], 0.0
    for b in range(bins):
        inside = bin_of == b
        if inside.any():
            predicted, observed = probability[inside].mean(), label[inside].mean()
            curve.append((float(predicted), float(observed), int(inside.sum())))
            error += inside.mean() * abs(predicted - observed)
    return curve, float(error)


def first_success(probability: np.ndarray, threshold: float, k: int, n: int) -> int | None:
    """Step of the first verdict of success in an episode's probabilities (t,), or None."""
    verdict = held(torch.from_numpy(np.asarray(probability) >= threshold), k, n).numpy()
    return int(verdict.argmax()) if verdict.any() else None


def episode_scores(
    probabilities: Sequence[np.ndarray],
    successes: Sequence[int | None],
    threshold: float,
    k: int,
    n: int,
    weights: np.ndarray | None = None,
) -> tuple[float, float, float, float, float]:
    """Return precision, recall, F1, false-success rate and mean delay over episodes.

    probabilities: one (t,) array an episode; successes: step of the true first success, or None;
    weights: how much each episode counts. A verdict counts as right when the episode does succeed,
    however early or late it comes.
    """
    verdicts = [first_success(p, threshold, k, n) for p in probabilities]
    weights = np.ones(len(verdicts)) if weights is None else weights
    called, true = (np.array([x is not None for x in found]) for found in (verdicts, successes))
    hit, false = (float(weights[called & kind].sum()) for kind in (true, ~true))
    succeeded, failed = float(weights[true].sum()), float(weights[~true].sum())
    precision = hit / (hit + false) if hit + false else 0.0
    recall = hit / succeeded if succeeded else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
    both = np.flatnonzero(called & true)
    late = [verdicts[i] - successes[i] for i in both]
    delay = float(np.average(late, weights=weights[both])) if late else 0.0
    return precision, recall, f1, false / failed if failed else 0.0, delay


def calibrate(
    probabilities: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    k: int,
    n: int,
    false_success_limit: float = 0.05,
    threshold: float | None = None,
    weights: np.ndarray | None = None,
) -> Calibration:
    """Choose the threshold on held-out episodes and report what it gives.

    probabilities, labels: (t,) float and bool, one pair an episode; weights (episodes,): how much
    each counts. The rule: among `THRESHOLDS` with a false-success rate of at most the limit, the
    best F1 by episode; of equal ones the middle. When none meets the limit, the one with the fewest
    false successes. `threshold`: report what this one gives, on that grid or not.
    """
    successes = [int(label.argmax()) if label.any() else None for label in labels]
    scores = {t: episode_scores(probabilities, successes, t, k, n, weights) for t in THRESHOLDS}
    if threshold is None:
        fewest = max(min(s[3] for s in scores.values()), false_success_limit)
        best = max(s[2] for s in scores.values() if s[3] <= fewest)
        equal = [t for t, s in scores.items() if s[3] <= fewest and s[2] == best]
        threshold = equal[len(equal) // 2]
    every, done = np.concatenate(probabilities), np.concatenate(labels)
    curve, error = reliability_curve(every, done)
    false = 1000 * float((every[~done] >= threshold).mean()) if not done.all() else 0.0
    table = [(t, *s[:3]) for t, s in scores.items()]
    chosen = episode_scores(probabilities, successes, threshold, k, n, weights)
    return Calibration(threshold, error, curve, *chosen, false, table)


def choose_rule(
    imagined: Watched,
    recorded: Watched,
    false_success_limit: float,
    holds: tuple[int, ...] = (2, 4, 6, 8),
) -> tuple[int, Calibration, Calibration]:
    """Choose how long a success must hold, and the threshold.

    imagined: of held-out episodes' actions played in the imagined world, what the classifier says
    and what came of them in the real one; recorded: of these episodes themselves. For every hold,
    all of the last `hold` windows must hit, at the threshold that `calibrate` finds on what is
    imagined. Of these rules those with the fewest false successes there over the limit are left,
    and of them the shortest hold whose mean of both F1 is within one standard error of the best:
    a simulator counts a success of one step. Returns the hold, and what the imagined and the
    recorded episodes say of its rule.
    """
    found = []
    for hold in holds:
        rule = {"k": hold, "n": hold}
        chosen = calibrate(**imagined._asdict(), **rule, false_success_limit=false_success_limit)
        real = calibrate(**recorded._asdict(), **rule, threshold=chosen.threshold)
        found.append((hold, chosen, real))
    over = [max(chosen.false_success - false_success_limit, 0) for _, chosen, _ in found]
    left = [rule for rule, false in zip(found, over, strict=True) if false == min(over)]
    mean_f1 = [(chosen.f1 + real.f1) / 2 for _, chosen, real in left]
    best = max(mean_f1)
    error = (best * (1 - best) / len(imagined.labels)) ** 0.5
    return next(rule for rule, f1 in zip(left, mean_f1, strict=True) if f1 >= best - error)
