"""Exact Shapley values of disclosed answers under a frozen knowledge base.

A player is one answer, given by its log-likelihoods [D]. A coalition S has the value v(S) of the belief given its answers alone:
`log_probability`, log p(truth | S); `probability`, p(truth | S); or `entropy`, -H(belief | S) in nats. Player i's value is
sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)) (Shapley 1953); the idea of crediting answers so is ProMed's
(arXiv 2508.13514). The values sum to v(all) - v(none).

How it is exact and fast. Players are split into two halves. The 2^(n/2) coalitions of each half are enumerated once, and the
normalisers of all 2^n coalitions are then one matrix product, lo [2^(n/2), D] . hi [2^(n/2), D]^T (entropy: two more). The weighted sums
over coalitions factor through the halves too, so that nothing of size n 2^n is ever made.

A child's answer counts only together with its parent's: an orphan is dropped from the coalition (`parents`).

Does not cover: which answers are players and when credit is paid (a reward's business), nor values that are not a belief's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError, unknown
from medenv.rewards.base import FLOOR

EXACT = 24  # players at most
VALUES = ("log_probability", "probability", "entropy")
_BLOCK = 256  # rows of the coalition table at once
_GAMES = 32  # games at once


class Sampled(NamedTuple):
    """Estimates of `sampled_shapley_values`: values [n] and their standard errors [n]."""

    values: NDArray[np.float64]
    standard_error: NDArray[np.float64]


def shapley_values(
    log_prior: NDArray,
    log_likelihoods: NDArray,
    truth: int | NDArray[np.integer] = 0,
    value: str = "log_probability",
    parents: Sequence[int] | None = None,
    dtype: type = np.float64,
) -> NDArray[np.float64]:
    """Shapley values [n] of n <= 24 answers, or [B, n] with a leading batch axis.

    `log_prior` [D] or [B, D]: log P(condition) before the answers, any normalisation. `log_likelihoods` [n, D] or [B, n, D]: of each
    answer, floored at log 1e-6. `truth`: condition index, or [B]; not read for entropy. `parents` [n]: index of the parent among the
    players or -1, shared by a batch. `dtype` float32 halves time and memory where the likelihoods cannot underflow, and falls back to
    float64 where they could; the result is float64. RewardError for shapes or names that do not fit, and above 24 players
    (`sampled_shapley_values` estimates these).

    >>> import numpy as np
    >>> log_p = np.log([[0.9, 0.1], [0.9, 0.1]])
    >>> shapley_values(np.log([0.5, 0.5]), log_p, truth=0).round(4).tolist()  # two equal answers share the gain
    [0.3404, 0.3404]
    """
    games, single = _games(log_prior, log_likelihoods, truth, value)
    n = games.likelihood.shape[1]
    if n > EXACT:
        raise RewardError(f"{n} players: exact values go to {EXACT}; use sampled_shapley_values")
    order, cut = _halves(_parents(parents, n))
    if not n:
        return np.zeros((len(games.truth), 0))[0 if single else slice(None)]
    out = np.empty((len(games.truth), n))
    step = _GAMES if n <= 14 else 1
    for start in range(0, len(out), step):
        some = slice(start, start + step)
        part = _Games(games.prior[some], games.likelihood[some], games.truth[some])
        out[start : start + step, order] = _exact(part, order, cut, _parents(parents, n), value, dtype)
    return out[0] if single else out


def sampled_shapley_values(
    log_prior: NDArray,
    log_likelihoods: NDArray,
    truth: int = 0,
    value: str = "log_probability",
    parents: Sequence[int] | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> Sampled:
    """Unbiased estimates for any number of players: antithetic pairs of permutations (each with its reverse), seeded.

    One game, arguments as in `shapley_values`. The standard error is over pairs, so `permutations` (even, >= 4) counts both.
    """
    games, _ = _games(log_prior, log_likelihoods, truth, value)
    if permutations < 4 or permutations % 2:
        raise RewardError(f"permutations is {permutations}: give an even number >= 4")
    likelihood, n = games.likelihood[0], games.likelihood.shape[1]
    parent, rng = _parents(parents, n), np.random.default_rng(seed)
    pairs = np.empty((permutations // 2, n))
    for k in range(len(pairs)):
        forward = rng.permutation(n)
        pairs[k] = sum(_marginals(games.prior[0], likelihood, int(games.truth[0]), value, parent, p) for p in (forward, forward[::-1])) / 2
    return Sampled(pairs.mean(0), pairs.std(0, ddof=1) / np.sqrt(len(pairs)))


def shapley_of_game(values: NDArray) -> NDArray[np.float64]:
    """Shapley values [n] of any game from its 2^n coalition values; bit i of the index says whether player i is in."""
    v = np.asarray(values, np.float64)
    n = v.size.bit_length() - 1
    if v.shape != (1 << n,):
        raise RewardError(f"a game of n players has 2**n values, got shape {v.shape}")
    if not n:
        return np.zeros(0)
    cut = n // 2
    return _reduce(lambda rows: v.reshape(1, 1 << (n - cut), 1 << cut)[:, rows], 1, n - cut, cut)[0][_unsplit(n, cut)]


# Arguments


class _Games(NamedTuple):
    prior: NDArray[np.float64]  # [B, D]
    likelihood: NDArray[np.float64]  # [B, n, D]
    truth: NDArray[np.int64]  # [B]


def _games(log_prior: NDArray, log_likelihoods: NDArray, truth: int | NDArray[np.integer], value: str) -> tuple[_Games, bool]:
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
    B, _, D = likelihood.shape
    prior = np.broadcast_to(prior, (B, D))
    if np.isnan(likelihood).any() or np.isnan(prior).any() or (likelihood > 1e-9).any() or not np.isfinite(prior.max(1)).all():
        raise RewardError("log-likelihoods must be logarithms of probabilities (<= 0, no NaN), and some condition must be possible")
    which = np.broadcast_to(np.asarray(truth, np.int64), (B,))
    if value != "entropy" and ((which < 0) | (which >= D)).any():
        raise RewardError(f"truth is {truth!r}: give condition indices in [0, {D})")
    return _Games(np.maximum(prior - prior.max(1, keepdims=True), -700.0), np.maximum(likelihood, np.log(FLOOR)), which), single


def _parents(parents: Sequence[int] | None, n: int) -> list[int]:
    out = [-1] * n if parents is None else [int(p) for p in parents]
    if len(out) != n or any(not -1 <= p < n for p in out):
        raise RewardError(f"parents {parents!r}: give {n} indices of players, -1 for none")
    for i in range(n):
        seen, node = set(), i
        while node >= 0:
            if node in seen:
                raise RewardError(f"parents {parents!r} form a cycle")
            seen.add(node)
            node = out[node]
    return out


def _halves(parents: list[int]) -> tuple[list[int], int]:
    """Players in an order whose first `cut` are one half: families stay together, halves as equal as they allow."""
    family: dict[int, list[int]] = {}
    for i in range(len(parents)):
        root = i
        while parents[root] >= 0:
            root = parents[root]
        family.setdefault(root, []).append(i)
    halves: tuple[list[int], list[int]] = ([], [])
    for members in sorted(family.values(), key=len, reverse=True):
        min(halves, key=len).extend(members)
    return halves[0] + halves[1], len(halves[0])


# Exact values


def _exact(games: _Games, order: list[int], cut: int, parents: list[int], value: str, dtype: type) -> NDArray[np.float64]:
    """[B, n] in the order given."""
    n = len(order)
    place = {player: k for k, player in enumerate(order)}
    moved = [place[parents[p]] if parents[p] >= 0 else -1 for p in order]
    players = games.likelihood[:, order]
    if dtype == np.float32 and (games.prior.min() + players.min(2).sum(1).min()) < -80.0:
        dtype = np.float64  # a product of likelihoods could underflow
    rows = _sums(players[:, :cut], moved[:cut]) + games.prior[:, None]  # [B, 2^cut, D]
    columns = _sums(players[:, cut:], [p - cut if p >= 0 else -1 for p in moved[cut:]])  # [B, 2^(n - cut), D]
    rows -= rows.max(2, keepdims=True)
    columns -= columns.max(2, keepdims=True)
    lo, hi = np.exp(rows, dtype=dtype, casting="same_kind"), np.exp(columns, dtype=dtype, casting="same_kind").transpose(0, 2, 1)
    each, truth = np.arange(len(games.truth)), games.truth
    of_rows, of_columns = rows[each, :, truth], columns[each, :, truth]
    weighted_lo, weighted_hi = (lo * rows.astype(dtype), hi * columns.astype(dtype).transpose(0, 2, 1)) if value == "entropy" else (lo, hi)

    def coalitions(some: slice) -> NDArray:
        total = np.matmul(lo[:, some], hi)  # [B, rows, 2^(n - cut)]
        if value == "probability":
            return np.exp(of_rows[:, some, None] + of_columns[:, None]).astype(dtype) / total
        if value == "log_probability":
            return (of_rows[:, some, None] + of_columns[:, None]).astype(dtype) - np.log(total)
        mean = np.matmul(weighted_lo[:, some], hi)
        mean += np.matmul(lo[:, some], weighted_hi)
        mean /= total
        mean -= np.log(total)
        return mean

    return _reduce(coalitions, len(games.truth), cut, n - cut)


def _sums(players: NDArray[np.float64], parents: list[int]) -> NDArray[np.float64]:
    """[B, 2^k, D] summed log-likelihoods of every coalition of k players, orphans dropped."""
    B, k, D = players.shape
    out = np.zeros((B, 1 << k, D))
    for i in range(k):
        np.add(out[:, : 1 << i], players[:, i, None], out=out[:, 1 << i : 2 << i])
    if any(p >= 0 for p in parents):
        kept = np.arange(1 << k)
        for _ in range(k):  # dropping a child may orphan its own children
            for i, p in enumerate(parents):
                if p >= 0:
                    kept = np.where((kept >> p) & 1, kept, kept & ~(1 << i))
        out = out[:, kept]
    return out


def _reduce(coalitions, games: int, first: int, second: int) -> NDArray[np.float64]:  # type: ignore[no-untyped-def]
    """Shapley values [games, first + second] from blocks of coalition values `coalitions(rows)` [games, rows, 2^second].

    phi_i = sum over coalitions with i of v (in + out) - sum over all of v out, where in and out are the weights by size.
    """
    n = first + second
    inside, outside = _weights(n)
    size_rows, size_columns = _sizes(first), _sizes(second)
    by_rows, by_columns, without = np.zeros((games, 1 << first)), np.zeros((games, 1 << second)), np.zeros(games)
    for start in range(0, 1 << first, _BLOCK):
        some = slice(start, min(start + _BLOCK, 1 << first))
        v = coalitions(some)
        size = size_rows[some, None] + size_columns
        without += np.einsum("brc,rc->b", v, outside[size])
        v = v * (inside + outside)[size]
        by_rows[:, some] = v.sum(2)
        by_columns += v.sum(1)
    return np.concatenate([by_rows @ _members(first), by_columns @ _members(second)], axis=1) - without[:, None]


@lru_cache(maxsize=64)
def _weights(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[n + 1] by coalition size: the weight of v where the player is in, and where it is not."""
    inside = np.array([0.0] + [1.0 / (n * comb(n - 1, s - 1)) for s in range(1, n + 1)])
    outside = np.array([1.0 / (n * comb(n - 1, s)) for s in range(n)] + [0.0])
    return inside, outside


@lru_cache(maxsize=64)
def _members(k: int) -> NDArray[np.float64]:
    """[2^k, k] whether player i is in coalition s."""
    return ((np.arange(1 << k)[:, None] >> np.arange(k)) & 1).astype(np.float64)


@lru_cache(maxsize=64)
def _sizes(k: int) -> NDArray[np.int64]:
    return _members(k).sum(1).astype(np.int64)


def _unsplit(n: int, cut: int) -> list[int]:
    """Where the players of a table [2^(n - cut), 2^cut] stand in `_reduce`'s result: columns hold the low bits."""
    return [*range(n - cut, n), *range(n - cut)]


# Sampling


def _marginals(
    prior: NDArray[np.float64], likelihood: NDArray[np.float64], truth: int, value: str, parents: list[int], order: NDArray[np.integer]
) -> NDArray[np.float64]:
    """[n] what each player adds when players join in this order; a child that comes before its parent adds with it."""
    out, inside = np.zeros(len(order)), np.zeros(len(order), bool)
    before = _value(prior, truth, value)
    for player in order:
        inside[player] = True
        counted = inside.copy()
        for _ in range(len(order)):
            orphans = [i for i in np.flatnonzero(counted) if parents[i] >= 0 and not counted[parents[i]]]
            if not orphans:
                break
            counted[orphans] = False
        after = _value(prior + likelihood[counted].sum(0), truth, value)
        out[player], before = after - before, after
    return out


def _value(scores: NDArray[np.float64], truth: int, value: str) -> float:
    log_p = scores - scores.max()
    log_p = log_p - np.log(np.exp(log_p).sum())
    if value == "entropy":
        return float((np.exp(log_p) * log_p).sum())
    return float(log_p[truth] if value == "log_probability" else np.exp(log_p[truth]))
