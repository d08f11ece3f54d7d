"""Exact Shapley values of disclosed answers under a frozen knowledge base, or under any value of coalitions.

A player is one answer, given by its log-likelihoods [D]. A coalition S has the value v(S) of the belief given its answers alone:
`log_probability`, log p(truth | S); `probability`, p(truth | S); or `entropy`, -H(belief | S) in nats. Player i's value is
sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)) (Shapley 1953); the idea of crediting answers so is ProMed's
(arXiv 2508.13514). The values sum to v(all) - v(none).

A child's answer counts only together with its parent's: an orphan is dropped from the coalition (`parents`).

- `shapley_values`: exact to 24 answers, for many games at once; how, is told in `shapley_kernel`.
- `sampled_shapley_values`: estimates for any number of answers.
- `shapley_of_value`: the same of a function of coalitions, for instance a language model's log P(answer | the facts in S).
- `shapley_of_game`: of a table of coalition values.

Does not cover: which answers are players and when credit is paid (a reward's business).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError, unknown
from medenv.rewards.base import FLOOR
from medenv.rewards.shapley_kernel import Games, depths, exact_values, log_normaliser, table_sums

EXACT = 24  # players at most
VALUES = ("log_probability", "probability", "entropy")
_LEAST = float(np.log(FLOOR))
PERMUTATIONS = 1000  # where estimates are asked for without a number
_CHUNK = 1 << 16  # coalitions in one call of a value

Value = Callable[[NDArray[np.bool_]], NDArray[np.floating]]
Parents = Sequence[int] | NDArray[np.integer]


class Sampled(NamedTuple):
    """Values [n] and their standard errors [n], which are 0 where the values are exact. All NaN: not scored."""

    values: NDArray[np.float64]
    standard_error: NDArray[np.float64]


def shapley_values(
    log_prior: NDArray,
    log_likelihoods: NDArray,
    truth: int | NDArray[np.integer] = 0,
    value: str = "log_probability",
    parents: Parents | None = None,
    dtype: type = np.float64,
) -> NDArray[np.float64]:
    """Shapley values [n] of n <= 24 answers, or [B, n] with a leading batch axis.

    `log_prior` [D] or [B, D]: log P(condition) before the answers, any normalisation. `log_likelihoods` [n, D] or [B, n, D]: of each
    answer, floored at log 1e-6. `truth`: condition index, or [B]; not read for entropy. `parents` [n], shared by a batch, or [B, n]:
    index of the parent among the players or -1. A game with fewer players than n has rows of zeros for the missing ones: they get
    exactly 0, and take no time. `dtype` of the tables: float32 is faster (measured: within 4e-6 of float64, to 20 players and 106
    conditions), and each game falls back to float64 where float32 could underflow; the result is float64, and sums to the gain in
    float64. A game has the same bits alone and in any batch. RewardError for shapes or names that do not fit, and above 24 players
    (`sampled_shapley_values` estimates these).

    >>> import numpy as np
    >>> log_p = np.log([[0.9, 0.1], [0.9, 0.1]])
    >>> shapley_values(np.log([0.5, 0.5]), log_p, truth=0).round(4).tolist()  # two equal answers share the gain
    [0.3404, 0.3404]
    """
    games, single = _games(log_prior, log_likelihoods, truth, value, parents)
    n = games.players.shape[1]
    if n > EXACT:
        raise RewardError(f"{n} players: exact values go to {EXACT}; use sampled_shapley_values")
    out = exact_values(games, value, dtype) if games.players.size else np.zeros(games.players.shape[:2])
    return out[0] if single else out


def sampled_shapley_values(
    log_prior: NDArray,
    log_likelihoods: NDArray,
    truth: int = 0,
    value: str = "log_probability",
    parents: Parents | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Sampled:
    """Unbiased estimates for any number of players: antithetic pairs of permutations (each with its reverse), seeded.

    One game, arguments as in `shapley_values`. The standard error is over pairs, so `permutations` (even, >= 4) counts both.
    """
    games, _ = _games(log_prior, log_likelihoods, truth, value, parents)
    prior, players, which = games.prior[0], games.players[0], int(games.truth[0])

    def worth(coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        scores = prior + coalitions @ players
        log_p = scores - log_normaliser(scores)[:, None]
        if value == "entropy":
            return (np.exp(log_p) * log_p).sum(1)
        return log_p[:, which] if value == "log_probability" else np.exp(log_p[:, which])

    return _sampled(worth, len(players), None if games.parents is None else games.parents[0], permutations, seed)


def shapley_of_value(value: Value, n: int, parents: Parents | None = None, permutations: int | None = None, seed: int = 0) -> Sampled:
    """Shapley values of n players from a function of coalitions, larger is better: for instance a language model's log-likelihood.

    `value` takes bool [M, n], who is in, and returns float [M]. It is asked for each distinct coalition once, at most 65,536 in a call;
    orphans (see `parents` in `shapley_values`) are dropped before. Exact to 24 players, which takes 2^n coalitions; with `permutations`
    (even, >= 4), and beyond, estimated as in `sampled_shapley_values` (1,000 unless told). NaN or an infinity anywhere means that the
    value could not be scored, and makes the whole result NaN. RewardError for arguments or results that do not fit.

    >>> shapley_of_value(lambda inside: inside.any(1).astype(float), 2).values.tolist()
    [0.5, 0.5]
    """
    if n < 0:
        raise RewardError(f"n is {n}: give a number of players >= 0")
    family = _parents(parents, 1, n)
    family = None if family is None else family[0]
    if permutations is not None or n > EXACT:
        return _sampled(value, n, family, PERMUTATIONS if permutations is None else permutations, seed)
    table = np.empty(1 << n)
    for start in range(0, 1 << n, _CHUNK):
        coalitions = np.arange(start, min(start + _CHUNK, 1 << n))
        inside = _members(coalitions, n)
        whole = (_without_orphans(inside, family) == inside).all(1)
        table[coalitions[whole]] = _ask(value, inside[whole])
    for start in range(0, 1 << n, _CHUNK) if family is not None else ():
        coalitions = np.arange(start, min(start + _CHUNK, 1 << n))
        table[coalitions] = table[_without_orphans(_members(coalitions, n), family) @ (1 << np.arange(n))]
    if not np.isfinite(table).all():
        return Sampled(np.full(n, np.nan), np.full(n, np.nan))
    return Sampled(shapley_of_game(table), np.zeros(n))


def shapley_of_game(values: NDArray) -> NDArray[np.float64]:
    """Shapley values [n] of any game from its 2^n coalition values; bit i of the index says whether player i is in."""
    v = np.asarray(values, np.float64)
    n = v.size.bit_length() - 1
    if v.shape != (1 << n,):
        raise RewardError(f"a game of n players has 2**n values, got shape {v.shape}")
    if n < 2:
        return np.diff(v)
    low = n // 2
    table = v.reshape(1 << (n - low), 1 << low)

    def fill(rows: slice, out: NDArray) -> None:
        out[0] = table[rows]

    sums = np.roll(table_sums(fill, 1, n - low, low, np.float64)[0], low)  # columns hold the low bits, and come last
    return sums + (v[-1] - v[0] - sums.sum()) / n


# Arguments


def _games(
    log_prior: NDArray, log_likelihoods: NDArray, truth: int | NDArray[np.integer], value: str, parents: Parents | None
) -> tuple[Games, bool]:
    if value not in VALUES:
        raise unknown("value", value, VALUES)
    prior, likelihood = np.asarray(log_prior, np.float64), np.asarray(log_likelihoods, np.float64)
    single = likelihood.ndim == 2
    if single:
        likelihood = likelihood[None]
    if likelihood.ndim != 3 or prior.shape[-1:] != likelihood.shape[-1:] or prior.ndim not in (1, 2):
        raise RewardError(
            f"log_prior {prior.shape} and log_likelihoods {np.shape(log_likelihoods)}: give [D] and [n, D], or [B, D] and [B, n, D]"
        )
    B, n, D = likelihood.shape
    top, low = likelihood.max(2), likelihood.min(2)
    best = np.broadcast_to(prior, (B, D)).max(1)
    if not (top <= 1e-9).all() or not np.isfinite(best).all():  # a maximum is NaN where any number is
        raise RewardError("log-likelihoods must be logarithms of probabilities (<= 0, no NaN), and some condition must be possible")
    which = np.broadcast_to(np.asarray(truth, np.int64), (B,))
    if value != "entropy" and ((which < 0) | (which >= D)).any():
        raise RewardError(f"truth is {truth!r}: give condition indices in [0, {D})")
    if (low < _LEAST).any():
        likelihood, top, low = (np.maximum(x, _LEAST) for x in (likelihood, top, low))
    prior = np.maximum(prior - best[:, None], -700.0)
    return Games(prior, likelihood, top, low < top, which, _parents(parents, B, n)), single


def _parents(parents: Parents | None, games: int, n: int) -> NDArray[np.int64] | None:
    """[B, n], or None where nobody has a parent."""
    if parents is None:
        return None
    given = np.asarray(parents, np.int64)
    if given.shape not in ((n,), (games, n)) or ((given < -1) | (given >= n)).any():
        raise RewardError(f"parents {parents!r}: give {n} indices of players, -1 for none")
    rows = np.atleast_2d(given)
    cyclic = (depths(rows) >= n).any(1)
    if n and cyclic.any():
        raise RewardError(f"parents {rows[cyclic.argmax()].tolist()} form a cycle")
    return np.ascontiguousarray(np.broadcast_to(rows, (games, n))) if (given >= 0).any() else None


# Coalitions of any value


def _sampled(value: Value, n: int, parents: NDArray[np.int64] | None, permutations: int, seed: int) -> Sampled:
    if permutations < 4 or permutations % 2:
        raise RewardError(f"permutations is {permutations}: give an even number >= 4")
    if not n:
        return Sampled(np.zeros(0), np.zeros(0))
    rng, pairs = np.random.default_rng(seed), permutations // 2
    forward = np.array([rng.permutation(n) for _ in range(pairs)], np.int64).reshape(pairs, n)
    orders = np.stack([forward, forward[:, ::-1]], axis=1)  # [pairs, 2, n]
    joined = np.argsort(orders, axis=2)[:, :, None] < np.arange(n + 1)[:, None]  # [pairs, 2, n + 1, n] who is in before the k-th joins
    packed = np.packbits(_without_orphans(joined.reshape(-1, n), parents), axis=1)
    distinct, place = np.unique(packed, axis=0, return_inverse=True)
    asked = np.unpackbits(distinct, axis=1, count=n).astype(bool)
    worth = np.concatenate([_ask(value, asked[start : start + _CHUNK]) for start in range(0, len(asked), _CHUNK)])
    if not np.isfinite(worth).all():
        return Sampled(np.full(n, np.nan), np.full(n, np.nan))
    added = np.empty(orders.shape)
    np.put_along_axis(added, orders, np.diff(worth[place.reshape(pairs, 2, n + 1)], axis=2), 2)
    means = added.mean(1)
    return Sampled(means.mean(0), means.std(0, ddof=1) / np.sqrt(pairs))


def _ask(value: Value, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
    found = np.asarray(value(coalitions), np.float64)
    if found.shape != (len(coalitions),):
        raise RewardError(f"the value of {len(coalitions)} coalitions has shape {found.shape}: return one number for each")
    return found


def _members(coalitions: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    return (coalitions[:, None] >> np.arange(n) & 1).astype(bool)


def _without_orphans(inside: NDArray[np.bool_], parents: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """A copy of the coalitions [M, n] in which a child is only where its parent is."""
    if parents is None:
        return inside
    out, depth = inside.copy(), depths(parents[None])[0]
    for child in np.argsort(depth, kind="stable"):
        if depth[child]:
            out[:, child] &= out[:, parents[child]]
    return out
