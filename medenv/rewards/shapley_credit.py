"""Shapley credit: what a finished consultation gained, divided among the answers disclosed in it.

A player is one answer. v(S) is the value of the belief given demographics, opening and the answers in S, in which a child's answer
counts only together with its parent's: `entropy`, -H(belief | S); `log_probability`, log p(truth | S); `probability`, p(truth | S);
likelihoods floored at 1e-6, the base frozen. Each answer's credit is its Shapley value (Shapley 1953); crediting facts so is ProMed's idea
(arXiv 2508.13514), which this corrects: only what a patient disclosed is a player, denials count, and the base does not move with
the policy. Credits sum to v(all) - v(opening).

The reward is that sum, paid at the end; `credits` hands out the parts, for trainers that pay each turn. The sum is what information
gain pays in steps: the two differ in who gets it. An answer that repeats what another one says halves the other's credit and is credited
though it gained nothing, so this is a way of dividing to be tested beside realised gain, not a truth about questions.

Up to `exact` answers the credits are exact, beyond they are an unbiased estimate from `pairs` antithetic pairs of orders, drawn by the
hash of the case; they sum to the gain either way.

Does not cover: which division trains best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError, unknown
from medenv.hashing import draw_array
from medenv.rewards.base import FLOOR, OfBase, Transition
from medenv.rewards.ledger import NONE, Ledger, no_ledger
from medenv.rewards.shapley import EXACT, VALUES, shapley_values

_SHORT = 6  # answers; consultations with as many at most are computed apart from the longer ones
_ORDERS = 7  # counter under a case's key
_LEAST = float(np.log(FLOOR))


@dataclass(frozen=True)
class ShapleyCredit(OfBase):
    """Paid at the end, in nats (`probability`: in [-1, 1]). Fixtures: nothing disclosed 0; else v(all) - v(opening)."""

    name: ClassVar[str] = "shapley_credit"
    when: ClassVar[str] = "ended"
    needs_ledger: ClassVar[bool] = True
    value: str = "entropy"
    exact: int = 12
    pairs: int = 8

    def __post_init__(self) -> None:
        if self.value not in VALUES:
            raise unknown("value of shapley_credit", self.value, VALUES)
        for name, most in (("exact", EXACT), ("pairs", 10_000)):
            number = getattr(self, name)
            if not isinstance(number, int | float) or number != int(number) or not 1 <= number <= most:
                raise RewardError(f"{name} of shapley_credit is {number!r}: give a whole number from 1 to {most}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Floored answers can move log p(truth) by the log of any number of floors: no bound but for probability."""
        return {"probability": (-1.0, 1.0), "entropy": (-14.0, 14.0)}.get(self.value, (-np.inf, np.inf))

    @property
    def needs_truth(self) -> bool:
        """Entropy can be shown before the end, the other two depend on the truth."""
        return self.value != "entropy"

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]: v(all) - v(opening) where the consultation ended."""
        out, who = np.zeros(t.ended.size), np.flatnonzero(t.ended)
        if who.size:
            out[who] = self._gain(_ledger(t), who)
        return out

    def _gain(self, ledger: Ledger, who: NDArray[np.integer]) -> NDArray[np.float64]:
        """[m] v(all) - v(opening)."""
        truth, opening = ledger.truth[who], ledger.log_prior[who].astype(np.float64)
        return np.asarray(value_of(ledger.scores(who), truth, self.value) - value_of(opening, truth, self.value), np.float64)

    def credits(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N, T]: the credit of the answer of each turn, 0 where there was none; rows that did not end are 0."""
        ledger = _ledger(t)
        out = np.zeros(ledger.row.shape)
        ended = np.flatnonzero(t.ended)
        told = ledger.row[ended] != NONE
        count, turns = told.sum(1), np.argsort(~told, axis=1, kind="stable")
        alone = np.flatnonzero(count == 1)
        if alone.size:
            out[ended[alone], turns[alone, 0]] = self._gain(ledger, ended[alone])
        beyond = np.unique(count[count > self.exact]).tolist()
        least = 1
        for size in (min(_SHORT, int(self.exact)), int(self.exact), *beyond):
            some = (count > least) & (count <= size)
            least = size
            if some.any():
                who, at = ended[some], turns[some, :size]
                question, row = (np.take_along_axis(x[who], at, 1) for x in (ledger.question, ledger.row))
                players = row != NONE
                likelihood = np.where(players[:, :, None], ledger.likelihood[row], np.float32(0.0))
                game = ledger.log_prior[who], likelihood, ledger.truth[who], self.value, ledger.parents(question)
                made = shapley_values(*game, np.float32) if size <= self.exact else _estimated(*game, ledger.handle[who], int(self.pairs))
                out[who[:, None], at] = np.where(players, made, 0.0)
        return out


def value_of(scores: NDArray[np.floating], truth: NDArray[np.integer], value: str) -> NDArray[np.floating]:
    """[..., D] -> [...] the value of beliefs given by their scores."""
    shifted = scores - scores.max(-1, keepdims=True)
    p = np.exp(shifted)
    total = np.einsum("...d->...", p)
    if value == "entropy":
        return np.asarray(np.einsum("...d,...d->...", p, shifted) / total - np.log(total))
    chosen = np.take_along_axis(shifted, np.broadcast_to(np.asarray(truth)[..., None], (*scores.shape[:-1], 1)), -1)[..., 0]
    return np.asarray(chosen - np.log(total) if value == "log_probability" else np.exp(chosen) / total)


def _ledger(t: Transition) -> Ledger:
    if t.ledger is None:
        raise no_ledger("shapley_credit")
    return t.ledger


def _estimated(
    prior: NDArray, likelihood: NDArray, truth: NDArray, value: str, parents: NDArray, key: NDArray[np.uint64], pairs: int
) -> NDArray[np.float64]:
    """[m, n] what each player adds, on average over pairs of an order and its reverse; an orphan adds when its parent comes.

    Float32: about 1e-5 nats. Orders are drawn by hash of `key` [m]. What rounding leaves of the whole gain is spread evenly.
    """
    m, n, _ = likelihood.shape
    draws = draw_array(np.repeat(key, pairs * n), np.tile(np.arange(pairs * n, dtype=np.uint64), m) + np.uint64(_ORDERS << 32))
    forward = np.argsort(draws.reshape(m, pairs, n), axis=2, kind="stable")
    orders = np.concatenate([forward, forward[:, :, ::-1]], 1)  # [m, K, n]
    comes = np.argsort(orders, axis=2)  # the place of each player
    above = np.broadcast_to(np.maximum(parents, 0)[:, None], comes.shape)
    while True:  # a child counts from the place at which its whole line is there
        later = np.where((parents >= 0)[:, None], np.maximum(comes, np.take_along_axis(comes, above, 2)), comes)
        if (later == comes).all():
            break
        comes = later
    inside = (comes[:, :, None, :] <= np.arange(n)[:, None]).astype(np.float32).reshape(m, -1, n)  # [m, K * place, player]
    floored, start = np.maximum(likelihood, np.float32(_LEAST)), prior.astype(np.float32)
    out = np.empty((m, n))
    for i in range(m):
        scores = inside[i] @ floored[i]
        scores += start[i]
        worth = value_of(scores, np.full(len(scores), truth[i]), value).reshape(-1, n)
        first = value_of(start[i], truth[i], value)
        added = np.diff(worth, axis=1, prepend=first)
        each = np.empty_like(added)
        np.put_along_axis(each, orders[i], added, 1)
        out[i] = each.mean(0, dtype=np.float64)
        out[i] += (worth[0, -1] - first - out[i].sum()) / n
    return out
