"""Comparing training runs: several seeds of each arm in several environments (Agarwal et al. 2021, arXiv 2108.13264).

Scores come as *strata*: for each environment a list with one score a run. Intervals are percentile intervals of a stratified bootstrap:
runs are resampled within their environment, environments stay as they are. They speak of other seeds on the same cases, not of other cases.
With few runs such intervals are too narrow: of five normal ones they hold the mean 83 times in 100, not 95. Differences between two arms,
whose runs share their seeds, come with Student's t of the pairs instead, which holds it 95 times.

A run that never reaches a target is censored: its time is infinite, larger than any other, and never a number in a mean.

Does not cover: intervals over cases (`statistics`), corrections for many comparisons, where the scores come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medenv.errors import MedenvError, RunError
from medenv.runs.statistics import LEVEL

RESAMPLES = 5000
TRIM = 0.25  # cut off at either end by the interquartile mean

Float64 = NDArray[np.float64]
Strata = Sequence[ArrayLike]
Interval = tuple[float, float]
Statistic = Callable[[list[Float64]], Float64]  # strata [..., runs] to [...]


def mean_score(strata: Strata) -> float:
    """Mean over environments of the mean over runs."""
    return float(mean(_strata(strata)))


def interquartile_mean(strata: Strata) -> float:
    """Mean of the middle half of all runs of all environments; of all of them where they are fewer than four.

    >>> interquartile_mean([[0.0, 1.0, 2.0, 300.0]])
    1.5
    """
    return float(iqm(_strata(strata)))


def stratified_interval(
    statistic: Statistic, strata: Strata, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval | None:
    """(low, high) for a statistic of one arm, such as `mean` or `iqm`. None where an environment has fewer than two runs."""
    runs = _strata(strata)
    if min(r.size for r in runs) < 2:
        return None
    return _percentiles(statistic(_resampled(runs, _generator(seed), resamples)), level)


def paired_interval(x: Strata, y: Strata, level: float = LEVEL) -> Interval | None:
    """(low, high) for the mean over environments of the mean of x - y, where run k of `x` and run k of `y` share their seed.

    Student's t; with several environments, degrees of freedom after Welch and Satterthwaite (1946, doi 10.2307/3002019). None where an
    environment has fewer than two pairs. MedenvError for runs that are no pairs; RunError where scipy is not installed.
    """
    try:
        from scipy.stats import t as student
    except ImportError as error:
        raise RunError('intervals of differences need scipy, which is not installed: pip install "medenv[ray]"') from error
    a, b = _same_strata(x, y)
    if any(r.size != s.size for r, s in zip(a, b, strict=True)):
        raise MedenvError(f"pairs are as many runs of one arm as of the other; got {[r.size for r in a]} and {[r.size for r in b]}")
    if min(r.size for r in a) < 2:
        return None
    pairs = [r - s for r, s in zip(a, b, strict=True)]
    variances = np.array([d.var(ddof=1) / d.size for d in pairs])  # of each environment's mean
    middle, total = float(mean(pairs)), float(variances.sum())
    if total == 0.0:
        return middle, middle
    freedom = total**2 / (variances**2 / [d.size - 1 for d in pairs]).sum()
    half = float(student.ppf(_tails(level)[1], freedom)) * math.sqrt(total) / len(pairs)
    return middle - half, middle + half


def probability_of_improvement(x: Strata, y: Strata) -> float:
    """P(a run of `x` scores higher than a run of `y`), the mean over environments; a tie counts as half.

    >>> probability_of_improvement([[1.0, 3.0]], [[0.0, 3.0]])
    0.625
    """
    a, b = _same_strata(x, y)
    return float(_improvement(a, b))


def improvement_interval(x: Strata, y: Strata, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval | None:
    """(low, high) for `probability_of_improvement`, two arms resampled apart. None where an environment has fewer than two runs."""
    a, b = _same_strata(x, y)
    if min(r.size for r in (*a, *b)) < 2:
        return None
    rng = _generator(seed)
    return _percentiles(_improvement(_resampled(a, rng, resamples), _resampled(b, rng, resamples)), level)


def performance_profile(strata: Strata, thresholds: ArrayLike) -> Float64:
    """Share of runs [t] that score higher than each threshold [t]."""
    return _profile(_strata(strata), np.asarray(thresholds, np.float64))


def profile_band(
    strata: Strata, thresholds: ArrayLike, seed: int = 0, resamples: int = 2000, level: float = LEVEL
) -> tuple[Float64, Float64] | None:
    """Low [t] and high [t] for `performance_profile`, at each threshold by itself. None where an environment has fewer than two runs."""
    runs, taus = _strata(strata), np.asarray(thresholds, np.float64)
    if min(r.size for r in runs) < 2:
        return None
    low, high = np.quantile(_profile(_resampled(runs, _generator(seed), resamples), taus), _tails(level), axis=0)
    return low, high


def first_reach(steps: ArrayLike, values: ArrayLike, target: float) -> float:
    """Steps at which a curve first reaches `target`, on the line between the two checkpoints around it; inf if it never does.

    `steps` [c] rising, `values` [c]. A curve that starts at or above the target reaches it at its first checkpoint.

    >>> first_reach([0, 100, 200], [0.0, 0.4, 0.8], 0.5)
    125.0
    """
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if x.shape != y.shape or x.ndim != 1 or (np.diff(x) <= 0).any() or not np.isfinite(y).all():
        raise MedenvError(f"a curve needs rising steps and as many finite values, got {x.shape} steps and {y.shape} values")
    at = np.flatnonzero(y >= target)
    if at.size == 0:
        return math.inf
    k = int(at[0])
    if k == 0:
        return float(x[0])
    share = (target - y[k - 1]) / (y[k] - y[k - 1])
    return float(x[k - 1] + share * (x[k] - x[k - 1]))


def median_time(times: ArrayLike) -> float:
    """Median of times [n] of which some may be inf; inf where the middle ones are not all finite.

    >>> median_time([100.0, 300.0, math.inf]), median_time([100.0, math.inf])
    (300.0, inf)
    """
    t = np.sort(np.asarray(times, np.float64))
    if t.size == 0 or np.isnan(t).any():
        raise MedenvError(f"a median needs at least one time, none of them NaN; got {t.tolist()}")
    return float(_middle(t))


def median_time_interval(times: ArrayLike, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval | None:
    """(low, high) for `median_time`; an end may be inf. None for fewer than two times."""
    runs = [np.asarray(times, np.float64)]
    if runs[0].size < 2:
        return None
    medians = np.sort(_middle(np.sort(_resampled(runs, _generator(seed), resamples)[0], axis=-1)))
    low, high = _tails(level)
    last = resamples - 1
    return float(medians[math.floor(low * last)]), float(medians[math.ceil(high * last)])  # outwards: no mean of a number and inf


def mean(strata: list[Float64]) -> Float64:
    """As `mean_score`: a statistic for the intervals."""
    return np.mean([s.mean(-1) for s in strata], axis=0)


def iqm(strata: list[Float64]) -> Float64:
    """As `interquartile_mean`: a statistic for the intervals."""
    pooled = np.sort(np.concatenate(strata, axis=-1), axis=-1)
    cut = int(TRIM * pooled.shape[-1])
    return pooled[..., cut : pooled.shape[-1] - cut].mean(-1)


def _improvement(x: list[Float64], y: list[Float64]) -> Float64:
    each = []
    for a, b in zip(x, y, strict=True):
        left, right = a[..., :, None], b[..., None, :]
        each.append(((left > right) + 0.5 * (left == right)).mean((-2, -1)))
    return np.mean(each, axis=0)


def _profile(strata: list[Float64], thresholds: Float64) -> Float64:
    pooled = np.concatenate(strata, axis=-1)
    return (pooled[..., None] > thresholds).mean(-2)


def _middle(ordered: Float64) -> Float64:
    n = ordered.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2


def _resampled(runs: list[Float64], rng: np.random.Generator, resamples: int) -> list[Float64]:
    """For each stratum [resamples, runs]: its runs drawn with replacement."""
    return [r[rng.integers(r.size, size=(resamples, r.size))] for r in runs]


def _percentiles(values: Float64, level: float) -> Interval:
    low, high = np.quantile(values, _tails(level))
    return float(low), float(high)


def _strata(strata: Strata) -> list[Float64]:
    out = [np.asarray(s, np.float64) for s in strata]
    if not out or any(s.ndim != 1 or s.size == 0 or np.isnan(s).any() for s in out):
        shapes = [s.shape for s in out]
        raise MedenvError(f"scores must be a list of runs for each environment, none empty and none NaN; got shapes {shapes}")
    return out


def _same_strata(x: Strata, y: Strata) -> tuple[list[Float64], list[Float64]]:
    a, b = _strata(x), _strata(y)
    if len(a) != len(b):
        raise MedenvError(f"two arms are compared in the same environments; got {len(a)} and {len(b)}")
    return a, b


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _tails(level: float) -> tuple[float, float]:
    return (1.0 - level) / 2.0, (1.0 + level) / 2.0
