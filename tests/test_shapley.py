"""Shapley values: axioms, games with known answers, brute force over orders, families, batches, estimates, bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medenv.errors import MedenvError
from medenv.rewards.shapley import VALUES, sampled_shapley_values, shapley_of_game, shapley_values


def draw(n: int, seed: int, conditions: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.log(rng.dirichlet(np.ones(conditions))), np.log(rng.uniform(0.02, 1.0, (n, conditions)))


def worth(prior: np.ndarray, players: np.ndarray, truth: int, value: str) -> float:
    p = np.exp(prior + players.sum(0))
    p /= p.sum()
    return {"log_probability": np.log(p[truth]), "probability": p[truth], "entropy": (p * np.log(p)).sum()}[value]


def by_orders(prior: np.ndarray, players: np.ndarray, truth: int, value: str, parents: list[int]) -> np.ndarray:
    """The definition: the mean over all orders of what a player adds, orphans not counting."""
    n = len(players)

    def counted(inside: set[int]) -> list[int]:
        def rooted(i: int) -> bool:
            return i in inside and (parents[i] < 0 or rooted(parents[i]))

        return [i for i in range(n) if rooted(i)]

    out = np.zeros(n)
    for order in itertools.permutations(range(n)):
        inside: set[int] = set()
        before = worth(prior, players[[]], truth, value)
        for player in order:
            inside.add(player)
            after = worth(prior, players[counted(inside)], truth, value)
            out[player] += after - before
            before = after
    return out / math.factorial(n)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("parents", [None, [-1, 0, 0, -1, 3], [-1, 0, 1, 2, -1]])
def test_values__equal_the_definition(value: str, parents: list[int] | None) -> None:
    prior, players = draw(5, 1)
    found = shapley_values(prior, players, 2, value, parents)
    assert np.allclose(found, by_orders(prior, players, 2, value, parents or [-1] * 5), atol=1e-12)
    single = shapley_values(prior, players, 2, value, parents, dtype=np.float32)
    assert np.abs(single - found).max() <= 1e-4 * max(1.0, abs(found.sum()))


@given(st.integers(1, 10), st.integers(0, 10_000), st.sampled_from(VALUES))
def test_values__are_efficient(n: int, seed: int, value: str) -> None:
    prior, players = draw(n, seed)
    gain = worth(prior, players, 1, value) - worth(prior, players[:0], 1, value)
    assert shapley_values(prior, players, 1, value).sum() == pytest.approx(gain, abs=1e-9)


@given(st.integers(0, 10_000), st.sampled_from(VALUES))
def test_values__treat_equals_equally_and_give_a_dummy_nothing(seed: int, value: str) -> None:
    prior, players = draw(7, seed)
    players[5] = players[1]
    players[3] = np.log(0.4)  # says the same under every condition
    found = shapley_values(prior, players, 0, value)
    assert found[5] == pytest.approx(found[1], abs=1e-10)
    assert found[3] == pytest.approx(0.0, abs=1e-10)


@given(st.integers(1, 6), st.integers(0, 10_000))
def test_games__are_linear_and_random_ones_equal_their_dividends(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dividends = rng.normal(size=1 << n)
    dividends[0] = 0.0
    v = np.array([sum(dividends[t] for t in range(1 << n) if t & s == t) for s in range(1 << n)])
    want = [sum(dividends[t] / t.bit_count() for t in range(1 << n) if t >> i & 1) for i in range(n)]
    assert np.allclose(shapley_of_game(v), want)
    other = rng.normal(size=1 << n)
    assert np.allclose(shapley_of_game(2 * v - 3 * other), 2 * shapley_of_game(v) - 3 * shapley_of_game(other))


@pytest.mark.parametrize(
    ("game", "want"),
    [
        ([0, 1, 1, 1, 1, 1, 1, 1], [1 / 3] * 3),  # OR
        ([0, 0, 0, 0, 0, 0, 0, 1], [1 / 3] * 3),  # AND
        ([0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 4]),  # additive
        ([0, 0, 0, 0, 0, 1, 1, 1], [1 / 6, 1 / 6, 2 / 3]),  # gloves: players 0 and 1 hold a left one, 2 the right one
        ([5], []),
    ],
)
def test_known_games(game: list[float], want: list[float]) -> None:
    assert np.allclose(shapley_of_game(np.array(game, float)), want)


@pytest.mark.parametrize("value", VALUES)
def test_batch__equals_its_games(value: str) -> None:
    drawn = [draw(9, seed) for seed in range(40)]
    prior, players = (np.stack(x) for x in zip(*drawn, strict=True))
    truth = np.arange(40) % 6
    found = shapley_values(prior, players, truth, value, parents=[-1, 0, 0, -1, -1, 4, -1, -1, -1])
    alone = [
        shapley_values(p, q, int(t), value, parents=[-1, 0, 0, -1, -1, 4, -1, -1, -1])
        for p, q, t in zip(prior, players, truth, strict=True)
    ]
    assert found.shape == (40, 9) and np.allclose(found, alone, atol=1e-12)


def test_underflow__falls_back_to_float64() -> None:
    prior = np.log(np.full(3, 1 / 3))
    players = np.full((20, 3), -13.0) + np.eye(20, 3) * 12.0
    exact, quick = (shapley_values(prior, players, 0, dtype=dtype) for dtype in (np.float64, np.float32))
    assert np.isfinite(quick).all() and np.allclose(quick, exact)


def test_sampling__is_unbiased_seeded_and_knows_its_error() -> None:
    prior, players = draw(10, 3)
    parents = [-1, 0, -1, 2, 2, -1, -1, -1, -1, -1]
    exact = shapley_values(prior, players, 1, parents=parents)
    found = sampled_shapley_values(prior, players, 1, parents=parents, permutations=2000)
    assert (np.abs(found.values - exact) <= 4.5 * found.standard_error + 1e-12).all()
    assert (found.standard_error[5:] < 0.05).all() and found.values.sum() == pytest.approx(exact.sum())
    again = sampled_shapley_values(prior, players, 1, parents=parents, permutations=2000)
    assert (again.values == found.values).all()
    many = sampled_shapley_values(*draw(40, 0), permutations=10)
    assert many.values.shape == (40,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"log_likelihoods": np.zeros((25, 6))}, "25 players"),
        ({"log_likelihoods": np.zeros((3, 5))}, "shape|give"),
        ({"log_likelihoods": np.ones((3, 6))}, "logarithms"),
        ({"log_likelihoods": np.full((3, 6), np.nan)}, "NaN"),
        ({"value": "entropie"}, "did you mean 'entropy'"),
        ({"truth": 6}, "truth is 6"),
        ({"parents": [1, 0, -1]}, "cycle"),
        ({"parents": [0]}, "give 3"),
    ],
)
def test_bad_input__says_what_is_wrong(arguments: dict, words: str) -> None:
    with pytest.raises(MedenvError, match=words):
        shapley_values(**{"log_prior": np.zeros(6), "log_likelihoods": np.zeros((3, 6)), "truth": 0} | arguments)
    with pytest.raises(MedenvError, match="even number"):
        sampled_shapley_values(np.zeros(6), np.zeros((3, 6)), permutations=3)


def test_no_players__is_an_empty_sum() -> None:
    assert shapley_values(np.zeros(4), np.zeros((0, 4))).shape == (0,)
    assert shapley_values(np.zeros(4), np.zeros((2, 0, 4))).shape == (2, 0)
