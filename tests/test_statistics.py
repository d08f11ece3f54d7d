"""Statistics against numbers worked by hand, and properties of the intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medenv.errors import MedenvError
from medenv.runs.statistics import (
    bootstrap_calibration_error,
    bootstrap_mean,
    bootstrap_means,
    brier_scores,
    expected_calibration_error,
    log_scores,
    paired_difference,
    top_k,
)


def test_brier__equals_the_sum_of_squares() -> None:
    # truth 0: (0.5 - 1)^2 + 0.25^2 + 0.25^2 = 0.375; truth 2: 0.5^2 + 0.25^2 + 0.75^2 = 0.875; certain and wrong: 2
    p = [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]
    assert brier_scores(p, [0, 2, 1]).tolist() == [0.375, 0.875, 2.0]


def test_log_score__is_floored() -> None:
    scores = log_scores([[0.25, 0.75], [1.0, 0.0]], [0, 1])
    assert scores[0] == pytest.approx(math.log(0.25)) and scores[1] == pytest.approx(math.log(1e-6))


def test_top_k__breaks_ties_at_random() -> None:
    flat = [[0.25] * 4]
    assert top_k(flat, [2], 1).tolist() == [0.25] and top_k(flat, [2], 3).tolist() == [0.75] and top_k(flat, [2], 5).tolist() == [1.0]
    # the truth shares places 2 and 3 with one other
    assert top_k([[0.4, 0.2, 0.2, 0.2 - 1e-9]], [1], 2).tolist() == [0.5]


def test_ece__by_hand() -> None:
    # bin (0.8, 0.867]: two cases of 0.85, one right: |1 - 1.7| = 0.7; bin (0.2, 0.267]: one of 0.25, right: 0.75; over 3 cases
    assert expected_calibration_error([0.85, 0.85, 0.25], [1, 0, 1]) == pytest.approx((0.7 + 0.75) / 3)


def test_ece__a_bin_holds_its_upper_edge() -> None:
    # with two bins 0.5 lies in (0, 0.5] with 0.3: |(1 + 0) - (0.5 + 0.3)| / 2 = 0.1
    assert expected_calibration_error([0.5, 0.3], [1, 0], bins=2) == pytest.approx(0.1)
    assert expected_calibration_error([0.0, 1.0], [0, 1]) == 0.0


def test_bootstrap_mean__agrees_with_the_normal_interval() -> None:
    values = np.random.Generator(np.random.PCG64(1)).normal(3.0, 2.0, 2000)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.01) and high == pytest.approx(values.mean() + half, abs=0.01)
    assert bootstrap_mean(values) == (low, high) != bootstrap_mean(values, seed=1)


def test_bootstrap_mean__covers_as_often_as_it_says() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    intervals = [bootstrap_mean(rng.random(60), seed=i, resamples=400) for i in range(200)]
    assert 0.89 <= np.mean([low <= 0.5 <= high for low, high in intervals]) <= 0.99


def test_bootstrap_means__columns_share_their_resamples() -> None:
    values = np.random.Generator(np.random.PCG64(3)).random((50, 1))
    low, high = bootstrap_means(np.hstack([values, 1 - values]))
    assert low[0] == pytest.approx(1 - high[1])
    one = bootstrap_mean(values[:, 0])
    assert one == pytest.approx((low[0], high[0]))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_intervals__are_ordered_and_inside_the_values(values: list[float]) -> None:
    low, high = bootstrap_mean(values, resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_calibration_interval__holds_the_estimate(cases: list[tuple[float, bool]]) -> None:
    confidence, right = [c for c, _ in cases], [float(r) for _, r in cases]
    low, high = bootstrap_calibration_error(confidence, right, resamples=200)
    assert 0.0 <= low <= expected_calibration_error(confidence, right) <= high


def test_paired_difference__shared_difficulty_cancels() -> None:
    hard = np.random.Generator(np.random.PCG64(4)).normal(0, 10, 500)
    difference, low, high = paired_difference(hard + 0.1, hard)
    assert difference == pytest.approx(0.1) and low == pytest.approx(0.1) and high == pytest.approx(0.1)
    with pytest.raises(MedenvError, match="3 and 2 values"):
        paired_difference([1, 2, 3], [1, 2])


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_statistics__refuse_what_is_not_a_number(values: list[float]) -> None:
    with pytest.raises(MedenvError, match="finite"):
        bootstrap_mean(values)
