"""The arithmetic of `medenv.rewards.shapley`: many games at once, each by two halves and one matrix product.

Tables. A coalition S has the normaliser Z(S) = sum over conditions of prior times the likelihoods of the players in S. Players are split
into two halves; the 2^a and 2^b products of each half are made by doubling, one multiplication an entry, and the normalisers of all
2^(a + b) coalitions are their matrix product. What a coalition is worth follows from them entry by entry.

Sums. Player i's value weighs v(S) by (s - 1)! (n - s)! / n! where i is in, and by -s! (n - s - 1)! / n! where it is not. The difference of
the two is w(s) = (s - 1)! (n - s - 1)! / (n - 1)!, and the second is -s / n of that. So with X_i = sum of w(s) v(S) over the S with i,
neither empty nor full, the value is X_i - mean X + (v(all) - v(none)) / n: one multiplication and two sums of the table. The last term is
computed apart in float64, so that values add up to the gain whatever the table's precision.

Places. A family stays within one half (greedy packing, largest first); orphans are dropped by an index into the half's table. A player
that says the same under every condition, as do all that descend from it, gets 0 and no place. Games are grouped by the sizes of their
halves, small ones filled up with such players. Everything is computed from the game itself, so it has the same bits in any batch.

Does not cover: arguments and their errors (`shapley`), estimates by sampling.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from math import comb, prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAFE = float(np.log(1e-30))  # a game whose smallest normaliser, that of all players, is below is computed in float64
_TILE = 1 << 16  # entries of the table at once: they stay in the processor's cache
_HALVES = 1 << 17  # entries of one half's tables at once, for the same reason
_KEPT = 1 << 19  # entries of the largest array whose memory is kept for the next call


class _Rooms(threading.local):
    def __init__(self) -> None:
        self.of: dict[tuple[str, type], NDArray] = {}


_rooms = _Rooms()

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Games(NamedTuple):
    """B games of n players and D conditions."""

    prior: Floats  # [B, D] logarithms, the largest of a row is 0
    players: Floats  # [B, n, D] log-likelihoods
    top: Floats  # [B, n] the largest of each player's
    informs: NDArray[np.bool_]  # [B, n] whether a player's likelihoods differ between conditions
    truth: Ints  # [B]
    parents: Ints | None  # [B, n] index of the parent or -1; None where nobody has one


class _Seats(NamedTuple):
    order: Ints  # [B, n] players of the first half, of the second, without a place; parents before their children
    first: Ints  # [B] how many in the first half, never fewer than in the second
    placed: Ints  # [B] how many in both


class _Group(NamedTuple):
    """G games with halves of one size, a and b players."""

    games: Ints  # [G] which ones
    a: int
    player: Ints  # [G, a + b] of B n players; any where nobody sits
    filled: NDArray[np.bool_]  # [G, a + b] whether somebody sits
    kept: tuple[Ints | None, Ints | None]  # [2^a, G] and [2^b, G]: the coalition without its orphans; None where nobody has a parent


def exact_values(games: Games, value: str, dtype: type) -> Floats:
    """Shapley values [B, n]; `dtype` of the tables, float32 or float64."""
    final = games.prior + (games.players.sum(1) - games.top.cumsum(1)[:, -1:])  # in order: missing players change no bit
    gain = _worth(final, games.truth, value) - _worth(games.prior, games.truth, value)
    depth = None if games.parents is None else depths(games.parents)
    placed = _placed(games)
    seats = _seats(placed, games.parents, depth)
    wide = (final.max(1) < SAFE) | (dtype != np.float32)
    a, b = _bucket(seats.first, seats.placed - seats.first)
    code = np.where(seats.placed > 0, (wide * 64 + a) * 64 + b, -1)
    out = np.zeros(games.players.shape[:2])
    for c in sorted({*code.tolist()} - {-1}):
        group = _group(seats, games.parents, np.flatnonzero(code == c), c // 64 % 64, c % 64)
        sums = _group_sums(games, group, value, np.float64 if c >> 12 else np.float32)
        sums[~group.filled] = 0.0
        sums += ((gain[group.games] - sums.sum(1)) / seats.placed[group.games])[:, None]
        out.reshape(-1)[group.player[group.filled]] = sums[group.filled]
    if value != "log_probability":
        return out
    shares, there = _truth_shares(games, depth), placed
    values = out + shares  # shares may be large: what adding them up rounds off is spread, so that the sum is the gain in any BLAS's order
    left = gain - _in_order(values - shares)
    return values + there * (left / np.maximum(seats.placed, 1))[:, None]


def _in_order(values: Floats) -> Floats:
    """[B] sums along rows from the first on: missing players change no bit."""
    return values.cumsum(1)[:, -1]


def table_sums(fill: Callable[[slice, NDArray], None], games: int, a: int, b: int, dtype: type) -> Floats:
    """X [games, a + b] of a table of coalition values, one half along rows, one along columns: see the module.

    `fill(rows, out)` writes these rows to out [games, rows, 2^b].
    """
    weights, size = _weights(a, b, dtype), _sizes(a)
    height = max(1, min(1 << a, _TILE >> b))
    table, weight = _room("table", (games, height, 1 << b), dtype), _room("weight", (height, 1 << b), dtype)
    ones: NDArray = np.ones(max(height, 1 << b), dtype)
    of_rows, of_columns = np.empty((games, 1, 1 << a)), np.zeros((games, 1, 1 << b))
    for start in range(0, 1 << a, height):
        rows = slice(start, start + height)
        fill(rows, table)
        table *= np.take(weights, size[rows], axis=0, out=weight, mode="clip")
        of_rows[:, 0, rows] = np.matmul(table, ones[: 1 << b])
        of_columns[:, 0] += np.matmul(ones[:height], table)
    return np.concatenate([np.matmul(of_rows, _members(a)), np.matmul(of_columns, _members(b))], axis=2)[:, 0]


def depths(parents: Ints) -> Ints:
    """[B, n] how many ancestors each player has, given parents [B, n]; n where they form a cycle."""
    depth, at = np.zeros(parents.shape, np.int64), parents
    while (at >= 0).any() and depth.max(initial=0) < parents.shape[1]:
        depth += at >= 0
        at = _up(parents, at)
    return depth


# Games with halves of one size


def _group(seats: _Seats, parents: Ints | None, games: Ints, a: int, b: int) -> _Group:
    n, base = seats.order.shape[1], games[:, None] * seats.order.shape[1]
    first, count = seats.first[games, None], seats.placed[games, None]
    place = np.concatenate([np.broadcast_to(np.arange(a), (len(games), a)), first + np.arange(b)], axis=1)
    filled = place < np.concatenate([np.repeat(first, a, 1), np.repeat(count, b, 1)], axis=1)
    player = base + seats.order.reshape(-1)[base + np.minimum(place, n - 1)]
    if parents is None:
        return _Group(games, a, player, filled, (None, None))
    parent = np.where(filled, parents.reshape(-1)[player], -1)
    seat = np.argsort(seats.order[games], axis=1)[np.arange(len(games))[:, None], parent]
    seat[:, a:] -= first
    return _Group(games, a, player, filled, (_kept(parent[:, :a], seat[:, :a]), _kept(parent[:, a:], seat[:, a:])))


def _kept(parent: Ints, seat: Ints) -> Ints | None:
    """[2^k, G] what is left of each coalition of k players; `seat` [G, k] says where in the half the parent [G, k] sits."""
    if (parent < 0).all():
        return None
    G, k = parent.shape
    bit = np.where(parent < 0, k, seat)  # bit k is always set
    out = np.full((1 << k, G), 1 << k)
    for i in range(k):
        h = 1 << i
        out[h : 2 * h] = out[:h] | ((out[:h] >> bit[:, i]) & 1) << i
    return out - (1 << k)


def _group_sums(games: Games, group: _Group, value: str, dtype: type) -> Floats:
    """X [G, a + b], negated for log_probability, where the table holds log Z."""
    (G, n), a, D = group.player.shape, group.a, games.players.shape[2]
    out = np.empty((G, n))
    step = max(1, min(_TILE >> n, _HALVES // (D << a)))
    for start in range(0, G, step):
        some = slice(start, start + step)
        player = group.player[some].T
        players = games.players.reshape(-1, D).take(player, axis=0)  # [a + b, G, D]
        players -= games.top.reshape(-1)[player][:, :, None]
        if not group.filled[some].all():
            players[~group.filled[some].T] = 0.0
        kept_lo, kept_hi = (None if kept is None else kept[:, some] for kept in group.kept)
        which = group.games[some]
        fill = _filler(games.prior[which], players, (kept_lo, kept_hi), games.truth[which], a, value, dtype)
        out[some] = table_sums(fill, len(which), a, n - a, dtype)
    return -out if value == "log_probability" else out


def _filler(
    prior: Floats, players: Floats, kept: tuple[Ints | None, Ints | None], truth: Ints, a: int, value: str, dtype: type
) -> Callable[[slice, NDArray], None]:
    """What writes rows of the table: log Z (log_probability), p(truth), or -entropy."""
    likelihood: NDArray = np.exp(players).astype(dtype)
    lo = _table("lo", np.multiply, np.exp(prior).astype(dtype), likelihood[:a], kept[0])  # [2^a, G, D]
    hi = _table("hi", np.multiply, dtype(1), likelihood[a:], kept[1])
    left, right = lo.transpose(1, 0, 2), hi.transpose(1, 2, 0)

    def log_z(rows: slice, out: NDArray) -> None:
        np.matmul(left[:, rows], right, out=out)
        np.log(out, out=out)

    if value == "log_probability":
        return log_z
    if value == "probability":
        each = np.arange(len(truth))
        of_rows, of_columns = lo[:, each, truth].T[:, :, None], hi[:, each, truth].T[:, None]

        def probability(rows: slice, out: NDArray) -> None:
            np.matmul(left[:, rows], right, out=out)
            np.divide(of_columns, out, out=out)
            out *= of_rows[:, rows]

        return probability
    logs: NDArray = players.astype(dtype)
    weighted_lo = _table("weighted_lo", np.add, prior.astype(dtype), logs[:a], kept[0])
    weighted_hi = _table("weighted_hi", np.add, dtype(0), logs[a:], kept[1])
    weighted_lo *= lo
    weighted_hi *= hi
    left2, right2 = weighted_lo.transpose(1, 0, 2), weighted_hi.transpose(1, 2, 0)

    def entropy(rows: slice, out: NDArray) -> None:
        mean = np.matmul(left2[:, rows], right, out=_room("mean", out.shape, dtype))
        mean += np.matmul(left[:, rows], right2, out=out)
        mean /= np.matmul(left[:, rows], right, out=out)
        np.log(out, out=out)
        np.subtract(mean, out, out=out)

    return entropy


def _table(name: str, operation: np.ufunc, start: NDArray, players: NDArray, kept: Ints | None) -> NDArray:
    """[2^k, G, D] of every coalition of the k players [k, G, D], joined to `start` [G, D]."""
    k, G, D = players.shape
    out = _room(name, (1 << k, G, D), start.dtype.type)
    out[0] = start
    for i in range(k):
        operation(out[: 1 << i], players[i], out=out[1 << i : 2 << i])
    if kept is None:
        return out
    whole = _room(name + " whole", out.shape, start.dtype.type)
    return out.reshape(-1, D).take(kept * G + np.arange(G), axis=0, out=whole, mode="clip")


def _room(name: str, shape: tuple[int, ...], dtype: type) -> NDArray:
    """An array to write to, the same memory for the same name: fresh memory would cost more than the arithmetic. Large ones are let go."""
    size, room = prod(shape), _rooms.of.get((name, dtype))
    if size > _KEPT:
        return np.empty(shape, dtype)
    if room is None or room.size < size:
        room = _rooms.of[name, dtype] = np.empty(size, dtype)
    return room[:size].reshape(shape)


# Who plays where


def _placed(games: Games) -> NDArray[np.bool_]:
    """[B, n] players that tell conditions apart, or that one of their descendants does."""
    placed = games.informs
    if games.parents is None:
        return placed
    placed = placed.copy()
    while True:
        row, player = np.nonzero(placed & (games.parents >= 0))
        above = games.parents[row, player]
        if placed[row, above].all():
            return placed
        placed[row, above] = True


def _seats(placed: NDArray[np.bool_], parents: Ints | None, depth: Ints | None) -> _Seats:
    n, count = placed.shape[1], placed.sum(1)
    if parents is None or depth is None:  # in turns, as families of one would be packed
        half, first, depth = 1 - placed.cumsum(1) % 2, (count + 1) // 2, np.zeros((1, n), np.int64)
    else:
        half, first = _packed(placed, parents)
    return _Seats(np.argsort(np.where(placed, half * n + depth, 2 * n), axis=1, kind="stable"), first, count)


def _packed(placed: NDArray[np.bool_], parents: Ints) -> tuple[Ints, Ints]:
    """Half (0, 1) of each player [B, n] and the size [B] of half 0: the next largest family goes to the smaller half."""
    B, n = parents.shape
    each, root = np.arange(B), np.broadcast_to(np.arange(n), (B, n))
    while ((up := _up(parents, root)) >= 0).any():
        root = np.where(up >= 0, up, root)
    root = each[:, None] * n + root
    size = np.bincount(root[placed], minlength=B * n).reshape(B, n)
    largest = np.argsort(-size, axis=1, kind="stable")
    half, count = np.zeros((B, n), np.int64), np.zeros((2, B), np.int64)
    for family in largest.T[: (size > 0).sum(1).max(initial=0)]:
        smaller = (count[1] < count[0]).astype(np.int64)
        half[each, family] = smaller
        count[smaller, each] += size[each, family]
    half ^= (count[1] > count[0])[:, None]
    return half.reshape(-1)[root], count.max(0)


def _up(parents: Ints, at: Ints) -> Ints:
    """[B, n] parents of the players `at` [B, n]; -1 stays -1."""
    return np.where(at >= 0, parents[np.arange(len(at))[:, None], at], -1)


def _bucket(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """Sizes of the halves to compute with: small ones are made equal, so that few groups are left."""
    a = np.maximum(first, 3)
    return a, np.where(a < 6, a, second)


# Parts of the formula


def _truth_shares(games: Games, depth: Ints | None) -> Floats:
    """[B, n] Shapley values of log P(answers in S | truth): a child's term is shared equally with all its ancestors."""
    each = np.arange(len(games.truth))
    own = games.players[each, :, games.truth] - games.top
    if games.parents is None or depth is None:
        return own
    out, share = own / (depth + 1), own / (depth + 1)
    at, n = games.parents, own.shape[1]
    while (some := at >= 0).any():
        out += np.bincount((each[:, None] * n + at)[some], weights=share[some], minlength=out.size).reshape(out.shape)
        at = _up(games.parents, at)
    return out


def _worth(scores: Floats, truth: Ints, value: str) -> Floats:
    """[B] of a coalition with summed logarithms [B, D]; for log_probability -log Z alone."""
    log_z = log_normaliser(scores)
    if value == "log_probability":
        return -log_z
    if value == "probability":
        return np.exp(scores[np.arange(len(scores)), truth] - log_z)
    log_p = scores - log_z[:, None]
    return (np.exp(log_p) * log_p).sum(1)


def log_normaliser(scores: Floats) -> Floats:
    """[B] log of the summed exponentials of scores [B, D]."""
    top = scores.max(1)
    return top + np.log(np.exp(scores - top[:, None]).sum(1))


@lru_cache(maxsize=64)
def _weights(a: int, b: int, dtype: type) -> NDArray:
    """[a + 1, 2^b] w(s) by the size of the coalition's part in the rows' half, and its part in the columns' half."""
    n = a + b
    by_size = np.array([0.0, *(1.0 / ((n - 1) * comb(n - 2, s - 1)) for s in range(1, n)), 0.0])
    return by_size[np.arange(a + 1)[:, None] + _sizes(b)].astype(dtype)


@lru_cache(maxsize=64)
def _members(k: int) -> Floats:
    """[2^k, k] whether player i is in coalition s."""
    return ((np.arange(1 << k)[:, None] >> np.arange(k)) & 1).astype(np.float64)


@lru_cache(maxsize=64)
def _sizes(k: int) -> Ints:
    """[2^k] how many players are in coalition s."""
    return _members(k).sum(1).astype(np.int64)
