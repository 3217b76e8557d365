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

    probabilities: list[np.ndarray]  # float32
    labels: list[np.ndarray]  # bool: whether the task is done at that step


class Calibration(NamedTuple):
    """What held-out episodes say about a classifier at its chosen threshold."""

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
    probabilities: list[np.ndarray], successes: list[int | None], threshold: float, k: int, n: int
) -> tuple[float, float, float, float, float]:
    """Return precision, recall, F1, false-success rate and mean delay over episodes.

    probabilities: one (t,) array an episode; successes: step of the true first success, or None.
    A verdict counts as right when the episode does succeed, however early or late it comes.
    """
    verdicts = [first_success(p, threshold, k, n) for p in probabilities]
    pairs = list(zip(verdicts, successes, strict=True))
    hit = sum(v is not None and s is not None for v, s in pairs)
    false = sum(v is not None and s is None for v, s in pairs)
    true = sum(s is not None for s in successes)
    failed = len(successes) - true
    precision = hit / (hit + false) if hit + false else 0.0
    recall = hit / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
    delays = [v - s for v, s in pairs if v is not None and s is not None]
    delay = float(np.mean(delays)) if delays else 0.0
    return precision, recall, f1, false / failed if failed else 0.0, delay


def calibrate(
    probabilities: list[np.ndarray],
    labels: list[np.ndarray],
    k: int,
    n: int,
    false_success_limit: float = 0.05,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Calibration:
    """Choose the threshold on held-out episodes and report what it gives.

    probabilities, labels: (t,) float and bool, one pair an episode. The rule: among `thresholds`
    with a false-success rate of at most the limit, the best F1 by episode;
    of equal ones the middle. When none meets the limit, the one with the fewest false successes.
    """
    successes = [int(label.argmax()) if label.any() else None for label in labels]
    scores = [episode_scores(probabilities, successes, float(t), k, n) for t in thresholds]
    fewest = max(min(s[3] for s in scores), false_success_limit)
    best = max(s[2] for s in scores if s[3] <= fewest)
    equal = [i for i, s in enumerate(scores) if s[3] <= fewest and s[2] == best]
    chosen = equal[len(equal) // 2]
    curve, error = reliability_curve(np.concatenate(probabilities), np.concatenate(labels))
    return Calibration(float(thresholds[chosen]), error, curve, *scores[chosen])


def choose_rule(
    imagined: Watched,
    recorded: Watched,
    false_success_limit: float = 0.10,
    holds: tuple[int, ...] = (2, 4, 6, 8),
) -> tuple[int, Calibration, Calibration]:
    """Choose how long a success must hold, and the threshold.

    imagined: of held-out episodes' actions played in the imagined world, what the classifier says
    and what came of them in the real one; recorded: of these episodes themselves. For every hold,
    all of the last `hold` windows must hit, at the threshold that `calibrate` finds on what is
    imagined; of these rules those with the fewest false successes there over the limit come first,
    then the best mean of both F1, then the shortest hold. Returns the hold, and what the imagined
    and the recorded episodes say of its rule.
    """
    found = []
    for hold in holds:
        chosen = calibrate(*imagined, hold, hold, false_success_limit)
        real = calibrate(*recorded, hold, hold, thresholds=[chosen.threshold])
        found.append((hold, chosen, real))
    return min(
        found,
        key=lambda rule: (
            max(rule[1].false_success - false_success_limit, 0),
            -(rule[1].f1 + rule[2].f1),
            rule[0],
        ),
    )
