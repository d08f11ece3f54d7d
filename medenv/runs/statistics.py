"""Statistics of evaluations: scores of probabilities, and intervals.

Everything is seeded and vectorised. Intervals are percentile bootstraps (Efron 1979, doi 10.1214/aos/1176344552): resample the
consultations with replacement, take the 2.5th and 97.5th percentile of the statistic.

Does not cover: training seeds (`comparisons`), significance tests, and corrections for many comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medenv.errors import MedenvError
from medenv.rewards.base import FLOOR

RESAMPLES = 2000
LEVEL = 0.95
BINS = 15
_CHUNK = 2_000_000  # numbers held at once while resampling

Float64 = NDArray[np.float64]
Interval = tuple[float, float]


def brier_scores(probabilities: ArrayLike, truth: ArrayLike) -> Float64:
    """Multi-class Brier score of each case [n] in [0, 2]: sum over d of (p_d - 1[d = truth])^2, 0 is perfect.

    `probabilities` [n, D], `truth` [n] condition indices. Brier 1950, Monthly Weather Review 78.

    >>> brier_scores([[0.5, 0.25, 0.25]], [0]).tolist()
    [0.375]
    """
    p, d = _differentials(probabilities, truth)
    at = p[np.arange(len(d)), d]
    return (p * p).sum(1) - 2.0 * at + 1.0


def log_scores(probabilities: ArrayLike, truth: ArrayLike) -> Float64:
    """Natural logarithm of the probability given to the truth [n], floored at 1e-6; 0 is perfect. Good 1952, JRSS B 14."""
    p, d = _differentials(probabilities, truth)
    return np.log(np.maximum(p[np.arange(len(d)), d], FLOOR))


def top_k(probabilities: ArrayLike, truth: ArrayLike, k: int) -> Float64:
    """Chance [n] that the truth is among the first `k` when ties are broken at random: so a flat differential earns k/D.

    >>> top_k([[0.25, 0.25, 0.25, 0.25]], [3], 3).tolist()
    [0.75]
    """
    p, d = _differentials(probabilities, truth)
    at = p[np.arange(len(d)), d][:, None]
    above, tied = (p > at).sum(1), (p == at).sum(1)
    return np.clip((k - above) / tied, 0.0, 1.0)


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """sum over bins of (n_b / n) |mean correct - mean confidence|, equal-width bins (a, b] on the top probability.

    `confidence` [n] in [0, 1], `correct` [n] 0 or 1. Guo et al. 2017, arXiv 1706.04599.
    """
    excess = _bin_excess(_numbers(confidence), _numbers(correct), bins)
    return float(np.abs(excess.sum(0)).sum() / len(excess))


def bootstrap_mean(values: ArrayLike, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """(low, high) for the mean of `values` [n]."""
    low, high = bootstrap_means(_numbers(values)[:, None], seed, resamples, level)
    return float(low[0]), float(high[0])


def bootstrap_means(values: ArrayLike, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> tuple[Float64, Float64]:
    """Low [k] and high [k] for the column means of `values` [n, k]: one set of resamples for all columns."""
    table = _numbers(values)
    means = np.concatenate([counts @ table for counts in _resamples(len(table), seed, resamples)]) / len(table)
    low, high = np.quantile(means, _tails(level), axis=0)
    return low, high


def bootstrap_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL, bins: int = BINS
) -> Interval:
    """(low, high) for `expected_calibration_error`.

    A resample's error is larger on average than the sample's (the absolute value turns noise into error), so the percentiles
    are moved down by that mean excess; the interval ends at 0 and holds the estimate.
    """
    p, right = _numbers(confidence), _numbers(correct)
    excess = _bin_excess(p, right, bins)
    estimate = np.abs(excess.sum(0)).sum() / len(p)
    errors = np.concatenate([np.abs(counts @ excess).sum(1) for counts in _resamples(len(p), seed, resamples)]) / len(p)
    low, high = np.quantile(errors, _tails(level)) - (errors.mean() - estimate)
    return float(max(0.0, min(low, estimate))), float(max(high, estimate))


def paired_difference(
    first: ArrayLike, second: ArrayLike, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float, float]:
    """(mean of first - second, low, high) over the same cases [n]: the pairs are resampled, so shared difficulty cancels."""
    a, b = _numbers(first), _numbers(second)
    if a.shape != b.shape:
        raise MedenvError(f"paired_difference: {a.size} and {b.size} values; give both doctors the same cases in the same order")
    low, high = bootstrap_mean(a - b, seed, resamples, level)
    return float((a - b).mean()), low, high


def _numbers(values: ArrayLike) -> Float64:
    out = np.asarray(values, np.float64)
    if out.size == 0 or not np.isfinite(out).all():
        bad = int((~np.isfinite(out)).sum())
        raise MedenvError(f"statistics need at least one value, all finite; got {out.size}, of which {bad} are not")
    return out


def _differentials(probabilities: ArrayLike, truth: ArrayLike) -> tuple[Float64, NDArray[np.intp]]:
    p, d = np.asarray(probabilities, np.float64), np.asarray(truth, np.intp)
    if p.ndim != 2 or d.shape != p.shape[:1]:
        raise MedenvError(f"probabilities must have shape [n, D] and truth [n], got {p.shape} and {d.shape}")
    return p, d


def _bin_excess(confidence: Float64, correct: Float64, bins: int) -> Float64:
    """[n, bins] correct - confidence of each case in the column of its bin."""
    which = np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)
    out = np.zeros((confidence.size, bins))
    out[np.arange(confidence.size), which] = correct - confidence
    return out


def _resamples(n: int, seed: int, resamples: int) -> Iterator[Float64]:
    """Counts [m, n]: how often each of n values stands in each resample; `resamples` rows in all."""
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = max(1, min(resamples, _CHUNK // n))
    for start in range(0, resamples, rows):
        m = min(rows, resamples - start)
        pick = rng.integers(n, size=(m, n)) + np.arange(m)[:, None] * n
        yield np.bincount(pick.ravel(), minlength=m * n).reshape(m, n).astype(np.float64)


def _tails(level: float) -> list[float]:
    if not 0.0 < level < 1.0:
        raise MedenvError(f"level is {level!r}: give a number between 0 and 1, such as 0.95")
    return [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
