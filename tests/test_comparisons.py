"""Comparisons of runs against rliable's own numbers, scipy, brute force and hand-worked cases; properties of times that may be infinite."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rliable_fixture import FILE, THRESHOLDS, scores

from medenv.errors import MedenvError
from medenv.runs.comparisons import (
    first_reach,
    improvement_interval,
    interquartile_mean,
    iqm,
    mean,
    median_time,
    median_time_interval,
    paired_interval,
    performance_profile,
    probability_of_improvement,
    profile_band,
    stratified_interval,
)

RLIABLE = json.loads(FILE.read_text(encoding="utf-8"))
SCORES = {name: list(s.T) for name, s in scores().items()}  # [runs, environments] to strata
CHANCE = 0.015  # two bootstraps of other draws differ by about this much at their ends
runs = st.lists(st.floats(-10, 10), min_size=1, max_size=7)


@pytest.mark.parametrize("name", SCORES)
def test_estimates_and_intervals__equal_rliable(name: str) -> None:
    found = {"mean": float(mean([np.array(s) for s in SCORES[name]])), "iqm": interquartile_mean(SCORES[name])}
    for key, statistic in (("mean", mean), ("iqm", iqm)):
        estimate, low, high = RLIABLE[key][name]
        assert found[key] == pytest.approx(estimate, abs=1e-12)
        assert stratified_interval(statistic, SCORES[name], resamples=20_000) == pytest.approx((low, high), abs=CHANCE)


@pytest.mark.parametrize("pair", ["x,y", "x,z"])
def test_probability_of_improvement__equals_rliable(pair: str) -> None:
    x, y = (SCORES[k] for k in pair.split(","))
    estimate, low, high = RLIABLE["improvement"][pair]
    assert probability_of_improvement(x, y) == pytest.approx(estimate, abs=1e-12)
    assert improvement_interval(x, y) == pytest.approx((low, high), abs=2 * CHANCE)


@pytest.mark.parametrize("name", SCORES)
def test_performance_profile__equals_rliable(name: str) -> None:
    estimate, low, high = RLIABLE["profile"][name]
    assert performance_profile(SCORES[name], THRESHOLDS).tolist() == pytest.approx(estimate, abs=1e-12)
    band = profile_band(SCORES[name], THRESHOLDS, resamples=20_000)
    assert band is not None
    steps = 1 / (len(SCORES[name]) * len(SCORES[name][0])) + 1e-9  # a share of runs moves in steps
    assert np.allclose(band, (low, high), rtol=0, atol=steps)


@given(st.lists(runs, min_size=1, max_size=4))
def test_interquartile_mean__equals_scipy(strata: list[list[float]]) -> None:
    trim_mean = pytest.importorskip("scipy.stats").trim_mean
    assert interquartile_mean(strata) == pytest.approx(trim_mean(np.concatenate(strata), 0.25), abs=1e-9)


@given(st.lists(st.tuples(runs, runs), min_size=1, max_size=3))
def test_probability_of_improvement__equals_counting_pairs(pairs: list[tuple[list[float], list[float]]]) -> None:
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    each = [np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(*pair)]) for pair in pairs]
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(each))
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)


@given(st.lists(st.lists(st.floats(-10, 10), min_size=2, max_size=6), min_size=1, max_size=3))
def test_intervals__are_ordered_and_within_the_runs(strata: list[list[float]]) -> None:
    for statistic in (mean, iqm):
        interval = stratified_interval(statistic, strata, resamples=100)
        assert interval is not None
        assert min(map(min, strata)) - 1e-9 <= interval[0] <= interval[1] <= max(map(max, strata)) + 1e-9


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=7))
def test_paired_interval__equals_scipys_of_one_environment(pairs: list[tuple[float, float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = np.array(pairs).T
    found = paired_interval([x], [y])
    assert found is not None
    if np.ptp(x - y) < 1e-6:
        assert found == pytest.approx([np.mean(x - y)] * 2, abs=1e-5)
    else:
        assert found == pytest.approx(tuple(stats.ttest_rel(x, y).confidence_interval(0.95)), abs=1e-9)


def test_paired_interval__over_environments_is_welchs() -> None:
    # the mean of two independent paired differences: Welch's interval of d1 - (-d2), halved
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.Generator(np.random.PCG64(3))
    x, y = [rng.normal(size=5), rng.normal(size=3)], [rng.normal(size=5), rng.normal(size=3)]
    welch = stats.ttest_ind(x[0] - y[0], -(x[1] - y[1]), equal_var=False).confidence_interval(0.95)
    assert paired_interval(x, y) == pytest.approx((welch[0] / 2, welch[1] / 2))


def test_paired_interval__is_of_pairs() -> None:
    hard = np.array([0.0, 10.0, 20.0])  # seeds differ by much, arms of a seed by little
    assert paired_interval([hard], [hard]) == (0.0, 0.0)
    low, high = paired_interval([hard + np.array([0.9, 1.0, 1.1])], [hard]) or (0, 0)
    assert 0.7 < low < 1.0 < high < 1.3
    with pytest.raises(MedenvError, match=r"got \[3\] and \[2\]"):
        paired_interval([hard], [hard[:2]])


def test_strata__are_resampled_apart() -> None:
    # between environments lie 10, within them nothing: a bootstrap over the pooled runs would not be a point
    apart = [[0.0, 0.0, 0.0], [10.0, 10.0, 10.0]]
    assert stratified_interval(mean, apart) == (5.0, 5.0) and stratified_interval(iqm, apart) == (5.0, 5.0)


def test_intervals__cover_as_often_as_they_say() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    hit = [low <= 0.0 <= high for low, high in (stratified_interval(mean, rng.normal(size=(2, 12)), k, 400) or (1, 1) for k in range(300))]
    assert 0.86 <= np.mean(hit) <= 0.98


def test_intervals_of_five_runs__cover_as_often_as_is_told() -> None:
    rng = np.random.Generator(np.random.PCG64(6))
    x, y = rng.normal(size=(1000, 1, 5)), rng.normal(size=(1000, 1, 5))
    percentile = [stratified_interval(mean, a, k, 300) or (1, 1) for k, a in enumerate(x)]
    paired = [paired_interval(a, b) or (1, 1) for a, b in zip(x, y, strict=True)]
    shares = [np.mean([low <= 0 <= high for low, high in each]) for each in (percentile, paired)]
    assert 0.80 <= shares[0] <= 0.86 and 0.935 <= shares[1] <= 0.965  # 83 and 95 times in 100, and chance


def test_one_run__has_no_interval() -> None:
    one, two = [[1.0]], [[1.0, 2.0]]
    assert stratified_interval(mean, one) is None and profile_band(one, [0.0]) is None and median_time_interval([3.0]) is None
    assert improvement_interval(one, two) is None and paired_interval(one, one) is None


def test_first_reach__lies_between_checkpoints() -> None:
    assert first_reach([0, 10, 20], [0.0, 0.5, 1.0], 0.75) == 15
    assert first_reach([0, 10, 20], [0.0, 0.5, 1.0], 0.5) == 10
    assert first_reach([5, 10], [1.0, 0.0], 0.9) == 5  # there from the first checkpoint
    assert first_reach([0, 10, 20, 30], [0.0, 1.0, 0.0, 1.0], 0.5) == 5  # the first time, though it falls again
    assert first_reach([0, 10], [0.0, 0.89], 0.9) == math.inf
    assert first_reach([], [], 0.9) == math.inf


@pytest.mark.parametrize(("steps", "values"), [([0, 0], [1, 2]), ([0, 1], [1]), ([0, 1], [math.nan, 1])])
def test_first_reach__refuses_what_is_no_curve(steps: list[float], values: list[float]) -> None:
    with pytest.raises(MedenvError, match="rising steps"):
        first_reach(steps, values, 0.5)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(-1, 1))
def test_first_reach__is_on_the_curve(values: list[float], target: float) -> None:
    steps = np.arange(len(values)) * 10.0
    at = first_reach(steps, values, target)
    if math.isinf(at):
        assert max(values) < target
    else:
        assert np.interp(at, steps, values) >= target - 1e-6
        assert all(v < target for v in np.array(values)[steps < at - 1e-6])


def test_censored_times__count_as_later_than_any() -> None:
    assert median_time([1.0, 2.0, math.inf]) == 2.0
    assert median_time([1.0, math.inf]) == median_time([1.0, math.inf, math.inf]) == math.inf  # never 1, never a mean with a number
    assert probability_of_improvement([[-1.0, -math.inf]], [[-math.inf, -math.inf]]) == 0.75  # two that never reach it tie
    low, high = median_time_interval([1.0, 2.0, math.inf, math.inf]) or (0, 0)
    assert 1.0 <= low < math.inf and high == math.inf


@given(st.lists(st.one_of(st.floats(0, 100), st.just(math.inf)), min_size=2, max_size=9))
def test_median_time__equals_the_median_and_lies_in_its_interval(times: list[float]) -> None:
    finite = [min(t, 1e9) for t in times]
    found, expected = median_time(times), float(np.median(finite))
    assert (math.isinf(found) and expected > 1e6) or found == pytest.approx(expected)
    low, high = median_time_interval(times, resamples=400) or (1.0, 0.0)
    assert low <= found <= high


@pytest.mark.parametrize("strata", [[], [[]], [[1.0], []], [[math.nan]], [[[1.0]]]])
def test_scores__that_are_none_are_refused(strata: list[list[float]]) -> None:
    with pytest.raises(MedenvError, match="none empty and none NaN"):
        interquartile_mean(strata)
    with pytest.raises(MedenvError, match="1 and 2"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
