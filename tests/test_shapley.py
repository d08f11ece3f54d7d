"""Shapley values: axioms, known games, brute force, another library, families, batches, bits, any value, estimates, bad input."""

from __future__ import annotations

import importlib.util
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medenv.errors import MedenvError
from medenv.rewards.shapley import VALUES, sampled_shapley_values, shapley_of_game, shapley_of_value, shapley_values


def draw(n: int, seed: int, conditions: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.log(rng.dirichlet(np.ones(conditions))), np.log(rng.uniform(0.02, 1.0, (n, conditions)))


def draw_batch(games: int, n: int, seed: int, conditions: int = 6) -> tuple[np.ndarray, np.ndarray]:
    prior, players = zip(*(draw(n, seed + k, conditions) for k in range(games)), strict=True)
    return np.stack(prior), np.stack(players)


def draw_families(games: int, n: int, seed: int) -> np.ndarray:
    """Random forests [games, n]: every other game has none, the rest any depth, and parents on either side of their children."""
    rng = np.random.default_rng(seed)
    out = np.full((games, n), -1)
    for family in out[::2]:
        order, share = rng.permutation(n), rng.uniform(0.3, 1.0)
        for i in range(1, n):
            if rng.random() < share:
                family[order[i]] = order[rng.integers(i)]
    return out


def worth(prior: np.ndarray, players: np.ndarray, truth: int, value: str) -> float:
    p = np.exp(prior + players.sum(0))
    p /= p.sum()
    return {"log_probability": np.log(p[truth]), "probability": p[truth], "entropy": (p * np.log(p)).sum()}[value]


def belief_value(prior: np.ndarray, players: np.ndarray, truth: int, value: str):
    """`worth` of many coalitions bool [M, n]."""

    def of(inside: np.ndarray) -> np.ndarray:
        p = np.exp(prior + inside @ players)
        p /= p.sum(1, keepdims=True)
        return {"log_probability": np.log(p[:, truth]), "probability": p[:, truth], "entropy": (p * np.log(p)).sum(1)}[value]

    return of


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
    prior, players = draw_batch(40, 9, 0)
    truth, parents = np.arange(40) % 6, [-1, 0, 0, -1, -1, 4, -1, -1, -1]
    found = shapley_values(prior, players, truth, value, parents)
    alone = [shapley_values(p, q, int(t), value, parents) for p, q, t in zip(prior, players, truth, strict=True)]
    assert found.shape == (40, 9) and np.allclose(found, alone, atol=1e-12)


@pytest.mark.parametrize("value", VALUES)
def test_families__may_differ_within_a_batch(value: str) -> None:
    prior, players = draw_batch(60, 5, 100)
    parents = draw_families(60, 5, 7)
    assert len(np.unique(parents, axis=0)) > 20
    found = shapley_values(prior, players, 3, value, parents)
    want = [by_orders(p, q, 3, value, f.tolist()) for p, q, f in zip(prior, players, parents, strict=True)]
    assert np.abs(found - np.array(want)).max() <= 1e-12
    prior, players = draw_batch(100, 9, 500)  # halves of many sizes
    parents = draw_families(100, 9, 8)
    found = shapley_values(prior, players, 3, value, parents)
    want = [shapley_of_value(belief_value(p, q, 3, value), 9, f).values for p, q, f in zip(prior, players, parents, strict=True)]
    assert np.abs(found - np.array(want)).max() <= 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", VALUES)
def test_game__has_the_same_bits_in_any_batch(value: str, dtype: type) -> None:
    prior, players = draw_batch(64, 12, 200, conditions=49)
    players[5, :, 1:] = np.log(1e-6)  # one that needs float64
    players[5, 0] = np.log(1e-6) - players[5, 1]
    players[7::3, 8:] = 0.0  # smaller games among them
    parents = np.where(players.any(2), draw_families(64, 12, 3), -1)
    whole = shapley_values(prior, players, 2, value, parents, dtype)
    for size in (1, 7):
        for start in range(0, 64, size):
            some = slice(start, start + size)
            assert np.array_equal(shapley_values(prior[some], players[some], 2, value, parents[some], dtype), whole[some])
    assert np.array_equal(shapley_values(prior[9], players[9], 2, value, parents[9], dtype), whole[9])


@pytest.mark.parametrize("value", VALUES)
def test_likelihoods__are_floored(value: str) -> None:
    prior, players = draw(5, 6)
    prior[5], players[0, 4], players[1, 2], players[1, 3] = -np.inf, -np.inf, np.log(1e-9), np.log(1e-6)
    floored = np.maximum(players, np.log(1e-6))
    assert np.allclose(
        shapley_values(prior, players, 1, value), by_orders(np.maximum(prior, -700.0), floored, 1, value, [-1] * 5), atol=1e-12
    )


@pytest.mark.parametrize("value", VALUES)
def test_missing_players__get_exactly_nothing_and_change_nothing(value: str) -> None:
    prior, players = draw_batch(30, 6, 300)
    padded = np.zeros((30, 24, 6))
    padded[:, 3:9] = players
    found = shapley_values(prior, padded, 1, value)  # at the size of 24 players this would take minutes
    assert np.array_equal(found[:, 3:9], shapley_values(prior, players, 1, value))
    assert (found[:, :3] == 0.0).all() and (found[:, 9:] == 0.0).all()
    assert (shapley_values(prior, np.zeros((30, 4, 6)), 1, value) == 0.0).all()


def test_parent_that_says_nothing__is_still_needed() -> None:
    prior, players = draw(3, 5)
    players[0] = 0.0
    for value in VALUES:
        found = shapley_values(prior, players, 1, value, [-1, 0, -1])
        assert np.allclose(found, by_orders(prior, players, 1, value, [-1, 0, -1]), atol=1e-12) and found[0] != 0.0


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("n", [3, 8, 12, 17])
def test_float32__is_close_and_adds_up_to_the_gain_in_float64(n: int, value: str) -> None:
    games = 40 if n <= 12 else 2
    prior, players = draw_batch(games, n, 400, conditions=49)
    exact, quick = (shapley_values(prior, players, 0, value, dtype=dtype) for dtype in (np.float64, np.float32))
    assert 0.0 < np.abs(quick - exact).max() <= 4e-6
    assert np.abs(quick.sum(1) - exact.sum(1)).max() <= 1e-13


def test_underflow__falls_back_to_float64_for_that_game() -> None:
    prior = np.log(np.full((2, 3), 1 / 3))
    players = np.stack([np.full((20, 3), -13.0) + np.eye(20, 3) * 12.0, draw(20, 1, 3)[1]])
    players[0, :10, 0] = players[0, 10:, 1] = 0.0  # each condition is all but excluded by ten answers
    players[0, :, 2] = -13.0
    exact, quick = (shapley_values(prior, players, 0, dtype=dtype) for dtype in (np.float64, np.float32))
    assert np.array_equal(quick[0], exact[0])
    assert not np.array_equal(quick[1], exact[1]) and np.allclose(quick[1], exact[1], atol=1e-5)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("n", [3, 6, 9])
def test_values__equal_shapiq(n: int, value: str) -> None:
    if importlib.util.find_spec("shapiq") is None:
        pytest.skip("shapiq is not installed: pip install medenv[dev]")
    from shapiq import ExactComputer

    for seed in range(3):
        prior, players = draw(n, seed)
        computer = ExactComputer(belief_value(prior, players, 1, value), n_players=n)
        want = computer(index="SV", order=1).get_n_order_values(1)
        assert np.abs(shapley_values(prior, players, 1, value) - want).max() <= 1e-8
        table = belief_value(prior, players, 1, value)((np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(bool))
        assert np.abs(shapley_of_game(table) - want).max() <= 1e-8


class Recorded:
    """A value of coalitions that remembers what it was asked."""

    def __init__(self, value) -> None:
        self.value, self.asked = value, []

    def __call__(self, inside: np.ndarray) -> np.ndarray:
        assert inside.dtype == bool and inside.ndim == 2
        self.asked += [tuple(row) for row in inside.tolist()]
        return self.value(inside)


@pytest.mark.parametrize("value", VALUES)
def test_any_value__equals_the_beliefs_and_is_asked_once(value: str) -> None:
    prior, players = draw(8, 9)
    parents = [3, -1, -1, 2, -1, 4, -1, -1]
    recorded = Recorded(belief_value(prior, players, 1, value))
    found = shapley_of_value(recorded, 8, parents)
    assert np.allclose(found.values, shapley_values(prior, players, 1, value, parents), atol=1e-12) and (found.standard_error == 0.0).all()
    assert len(set(recorded.asked)) == len(recorded.asked) == 4 * 3 * 8  # chain of three: 4 ways, of two: 3, three singles
    assert all(inside[p] for inside in recorded.asked for c, p in enumerate(parents) if p >= 0 and inside[c])


def test_any_value__is_estimated_on_request_and_beyond_24() -> None:
    prior, players = draw(9, 4)
    parents = [-1, 0, -1, 2, 2, -1, -1, -1, -1]
    recorded = Recorded(belief_value(prior, players, 1, "log_probability"))
    found = shapley_of_value(recorded, 9, parents, permutations=400, seed=3)
    assert len(set(recorded.asked)) == len(recorded.asked) <= 2**9
    assert all(inside[p] for inside in recorded.asked for c, p in enumerate(parents) if p >= 0 and inside[c])
    same = sampled_shapley_values(prior, players, 1, parents=parents, permutations=400, seed=3)
    assert np.allclose(found.values, same.values) and np.allclose(found.standard_error, same.standard_error)
    weight = np.arange(30.0)
    many = shapley_of_value(lambda inside: inside @ weight, 30, permutations=8)
    assert np.allclose(many.values, weight) and np.allclose(many.standard_error, 0.0, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("permutations", [None, 64])
def test_any_value__not_scored_makes_the_game_nan(bad: float, permutations: int | None) -> None:
    def value(inside: np.ndarray) -> np.ndarray:
        return np.where(inside[:, 0] & ~inside[:, 1:].any(1), bad, inside.sum(1))

    found = shapley_of_value(value, 4, permutations=permutations)
    assert np.isnan(found.values).all() and np.isnan(found.standard_error).all() and found.values.shape == (4,)


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
        ({"log_likelihoods": np.zeros((2, 3, 6)), "parents": np.array([[-1, 0, 1], [1, 2, 0]])}, r"\[1, 2, 0\] form a cycle"),
        ({"log_likelihoods": np.zeros((2, 3, 6)), "parents": np.zeros((3, 3), int)}, "give 3"),
    ],
)
def test_bad_input__says_what_is_wrong(arguments: dict, words: str) -> None:
    with pytest.raises(MedenvError, match=words):
        shapley_values(**{"log_prior": np.zeros(6), "log_likelihoods": np.zeros((3, 6)), "truth": 0} | arguments)
    with pytest.raises(MedenvError, match="even number"):
        sampled_shapley_values(np.zeros(6), np.zeros((3, 6)), permutations=3)
    with pytest.raises(MedenvError, match="even number"):
        shapley_of_value(lambda inside: inside.sum(1), 3, permutations=5)
    with pytest.raises(MedenvError, match=r"8 coalitions has shape \(8, 3\)"):
        shapley_of_value(lambda inside: inside, 3)
    with pytest.raises(MedenvError, match="n is -1"):
        shapley_of_value(lambda inside: inside.sum(1), -1)


def test_no_players__is_an_empty_sum() -> None:
    assert shapley_values(np.zeros(4), np.zeros((0, 4))).shape == (0,)
    assert shapley_values(np.zeros(4), np.zeros((2, 0, 4))).shape == (2, 0)
    assert shapley_values(np.zeros(4), np.zeros((0, 3, 4)), parents=np.zeros((0, 3), int)).shape == (0, 3)
    assert shapley_of_value(lambda inside: inside.sum(1), 0).values.shape == (0,)
    assert shapley_of_value(lambda inside: inside.sum(1), 0, permutations=4).values.shape == (0,)
