"""Hashing: the published SplitMix64 values, integers and arrays alike, thresholds that draw what they say."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medenv.hashing import GOLDEN, draw, draw_array, mix, seed_for, thresholds

keys = st.integers(0, 2**64 - 1)


def test_draw__gives_splitmix64() -> None:
    """The first outputs of SplitMix64 from seed 0, as the reference implementation prints them."""
    assert [draw(0, i) for i in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(GOLDEN) == draw(0, 0)


@given(keys, st.integers(0, 2**32))
def test_array_form__gives_the_same_bits(key: int, counter: int) -> None:
    array = np.array([key, key ^ 1, 0], np.uint64)
    expected = [draw(int(k), counter) for k in array]
    assert draw_array(array, counter).tolist() == expected
    assert draw_array(array, np.full(3, counter, np.uint64)).tolist() == expected
    assert draw_array(array, np.full(3, counter, np.int64)).tolist() == expected
    assert array.tolist() == [key, key ^ 1, 0], "the keys are not written over"


@given(st.lists(st.one_of(st.integers(-(2**63), 2**63), st.text(max_size=8)), min_size=1, max_size=4))
def test_seed_for__is_a_63_bit_function_of_its_parts(parts: list[int | str]) -> None:
    assert 0 <= seed_for(*parts) < 2**63
    assert seed_for(*parts) == seed_for(*parts)
    assert seed_for(*parts) != seed_for(*parts, 0)


def test_seed_for__tells_words_and_order_apart() -> None:
    seeds = [seed_for(i, word) for i in range(500) for word in ("train", "evaluation", "ab", "a")]
    seeds += [seed_for("a", "b"), seed_for("ab"), seed_for("b", "a"), seed_for(1, 2), seed_for(2, 1), seed_for(12)]
    assert len(set(seeds)) == len(seeds)


def test_thresholds__cover_the_whole_range_and_skip_what_is_impossible() -> None:
    steps = thresholds(np.array([0.25, 0.0, 0.5, 0.25, 0.0]))
    assert steps.dtype == np.uint64
    assert steps.tolist() == [2**30, 2**30, 3 * 2**30, 2**32, 2**32]
    assert thresholds(np.array([[0.1, 1.0], [0.9, 0.0]]), axis=0)[-1].tolist() == [2**32, 2**32]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda p: sum(p) > 1e-6))
def test_thresholds__do_not_hang_on_the_last_bit(p: list[float]) -> None:
    one = np.array(p)
    assert np.abs(thresholds(one).astype(float) - thresholds(one * (1 + 1e-15)).astype(float)).max() <= 1
    assert thresholds(one)[-1] == 2**32


def test_draws__are_uniform() -> None:
    u = (draw_array(np.full(200_000, 5, np.uint64), np.arange(200_000)) >> np.uint64(32)).astype(float) / 2**32
    counts = np.histogram(u, 20, (0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = .001
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01
