"""Contextual importance after ProMed (arXiv 2508.13514): a frozen Shapley value for each finding of a case, paid on disclosure.

The players are a reference set of the case, chosen before the first question: what the patient has, then the denials, each by the
largest |log likelihood ratio| of truth against the other conditions; at most `players`. The value of a set of answers is
log p(truth | demographics, opening, set) under the frozen base (or `value=`), a child counting only with its parent.

- `shapley` pays an answer its Shapley value phi when the patient discloses it.
- `promed_sig` pays softmax(phi / T) instead, the paper's weights with its temperature T = 2, which flattens them nearly to 1 / players.

Both are for comparison. Known hole: they ignore what is already known, so that after the belief has settled the next question of the
set is still paid. And phi is of the case, not of the consultation: it is made once for a case, when it is first needed.

Does not cover: what was disclosed apart from the reference set (paid 0), or `shapley_credit`, which divides what happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError, unknown
from medenv.knowledge.base import parents_first
from medenv.rewards.base import FLOOR, OfBase, Transition
from medenv.rewards.ledger import NONE, Ledger, no_ledger
from medenv.rewards.shapley import EXACT, VALUES, shapley_values

Compute = Callable[[NDArray], NDArray]


@dataclass(frozen=True)
class _Contextual(OfBase):
    when: ClassVar[str] = "answered"
    needs_ledger: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = True
    players: int = 12
    value: str = "log_probability"

    def __post_init__(self) -> None:
        name = getattr(self, "name", "shapley")
        if self.value not in VALUES:
            raise unknown(f"value of {name}", self.value, VALUES)
        if not isinstance(self.players, int | float) or self.players != int(self.players) or not 2 <= self.players <= EXACT:
            raise RewardError(f"players of {name} is {self.players!r}: give a whole number from 2 to {EXACT}")

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        if t.ledger is None:
            raise no_ledger(getattr(self, "name", ""))
        out, ledger = np.zeros(t.ended.size), t.ledger
        who = np.flatnonzero(t.answered)
        if not who.size:
            return out
        question = t.question[who]
        chosen = ledger.kept(("reference", self.players), who, self.reference_of(ledger))
        place = chosen == question[:, None]
        inside = place.any(1)
        who, place = who[inside], place[inside].argmax(1)
        if who.size:
            key = ("importance", self.players, self.value)
            importance = ledger.kept(key, who, self.importance_of(ledger))
            out[who] = self.paid(importance, chosen[inside] >= 0)[np.arange(who.size), place]
        return out

    def paid(self, importance: NDArray[np.float64], players: NDArray[np.bool_]) -> NDArray[np.float64]:
        """[m, P] what disclosing each player pays."""
        raise NotImplementedError

    def reference_of(self, ledger: Ledger) -> Compute:
        """`compute` for `Ledger.kept`: questions [m, P] of the reference set in rising order, NONE where the case has fewer."""

        def compute(who: NDArray) -> NDArray[np.float64]:
            rows, tables = ledger.answers(who), self.base
            ratio, present = ledger.shared("ratio", _ratios), ledger.present
            rank = ratio[rows, ledger.truth[who][:, None]] + np.where(present[rows], np.float32(1e3), np.float32(0.0))
            rank[~_open(ledger, who, rows) | (rows == tables.unknown_row)] = -1.0
            size = min(int(self.players), tables.num_questions)
            best = np.sort(np.argpartition(-rank, size - 1, axis=1)[:, :size], axis=1)
            return np.where(np.take_along_axis(rank, best, 1) >= 0.0, best, NONE).astype(np.float64)

        return compute

    def importance_of(self, ledger: Ledger) -> Compute:
        """`compute` for `Ledger.kept`: Shapley values [m, P] of the reference set."""

        def compute(who: NDArray) -> NDArray[np.float64]:
            chosen = ledger.kept(("reference", self.players), who, self.reference_of(ledger)).astype(np.int64)
            players = chosen != NONE
            rows = np.take_along_axis(ledger.answers(who), np.maximum(chosen, 0), 1)
            likelihood = np.where(players[:, :, None], ledger.likelihood[rows], np.float32(0.0))
            parents = ledger.parents(chosen)
            return shapley_values(ledger.log_prior[who], likelihood, ledger.truth[who], self.value, parents, np.float32)

        return compute


@dataclass(frozen=True)
class Shapley(_Contextual):
    """Paid on disclosure, in nats; it may be negative. Fixtures: a finding outside of the set 0, a repeat 0."""

    name: ClassVar[str] = "shapley"
    bounds: ClassVar[tuple[float, float]] = (-np.inf, np.inf)

    def paid(self, importance: NDArray[np.float64], players: NDArray[np.bool_]) -> NDArray[np.float64]:
        """phi."""
        return importance


@dataclass(frozen=True)
class ProMed(_Contextual):
    """Paid on disclosure, in [0, 1]; over a whole reference set it sums to 1. Fixtures: a finding outside of the set 0, a repeat 0."""

    name: ClassVar[str] = "promed_sig"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.temperature, int | float) or not self.temperature > 0:
            raise RewardError(f"temperature of promed_sig is {self.temperature!r}: give a number above 0")

    def paid(self, importance: NDArray[np.float64], players: NDArray[np.bool_]) -> NDArray[np.float64]:
        """softmax(phi / T) over the players."""
        top = np.where(players, importance, -np.inf).max(1, keepdims=True)
        weight = np.where(players, np.exp((importance - top) / self.temperature), 0.0)
        return np.asarray(weight / weight.sum(1, keepdims=True))


def _ratios(ledger: Ledger) -> NDArray[np.float32]:
    """[rows, D] |log P(row | d) - log P(row | another condition)|, the others by their share of the consultations."""
    share = ledger.source.tables.cell_weight.sum(0)
    p = np.exp(ledger.floored) * share
    others = (p.sum(1, keepdims=True) - p) / np.maximum(share.sum() - share, 1e-300)
    return np.abs(ledger.floored - np.log(np.maximum(others, FLOOR))).astype(np.float32)


def _open(ledger: Ledger, who: NDArray, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[m, Q] questions that can be asked of this patient sooner or later: possible for sex and age, not told, the parent active."""
    tables = ledger.source.tables
    possible = tables.allowed[ledger.cell[who]] == 1
    open_ = possible & np.array([f.parent is None for f in tables.base.findings])
    for generation in ledger.shared("generations", _generations):
        kids = ledger.children[rows[:, generation]]  # [m, parents, K]
        i, j, k = np.nonzero((kids >= 0) & open_[:, generation, None])
        open_[i, kids[i, j, k]] = possible[i, kids[i, j, k]]
    told = np.flatnonzero(ledger.opening[who] >= 0)
    open_[told, ledger.opening[who[told]]] = False
    return open_


def _generations(ledger: Ledger) -> list[NDArray[np.int64]]:
    """Questions that have children: first those without a parent, then their children, and so on."""
    base = ledger.source.tables.base
    depth: dict[str, int] = {}
    for f in parents_first(base.findings):
        depth[f.id] = 0 if f.parent is None else depth[f.parent] + 1
    parents = {f.parent for f in base.findings if f.parent is not None}
    levels = sorted({depth[p] for p in parents})
    return [np.array([base.finding_index[p] for p in sorted(parents) if depth[p] == level]) for level in levels]
