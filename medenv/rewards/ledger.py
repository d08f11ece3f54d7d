"""The ledger of N consultations: what each patient disclosed, turn by turn, and what the patient could still disclose.

Rewards that look at more than one turn read it (`Transition.ledger`); the engine keeps it only for a mix that needs it. It is part of
what is hidden: `truth` and `answers` must not reach an observation.

Does not cover: the doctor's words (they never count), nor how an answer is worded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenv.cases.source import CaseSource
from medenv.errors import RewardError
from medenv.knowledge.compiled import FLOOR

NONE = -1


class Ledger:
    """Arrays of N consultations with up to T turns and D conditions. Rewards read it and change nothing.

    `question` and `row` int32 [N, T]: the question asked in a turn and the row of its answer, NONE where nothing was disclosed
    (repeats, refusals and the opening statement are no disclosures). `log_prior` float32 [N, D]: log P(condition | demographics,
    opening). `cell`, `truth` [N]; `handle` uint64 [N].
    """

    def __init__(self, source: CaseSource, num: int, turns: int) -> None:
        self.source = source
        self.likelihood, self.children = source.log_likelihood, source.children  # [rows, D]; [rows, K] questions that a row unlocks
        self.question, self.row = np.full((num, turns), NONE, np.int32), np.full((num, turns), NONE, np.int32)
        self.log_prior = np.zeros((num, source.tables.num_conditions), np.float32)
        self.cell, self.truth = np.zeros(num, np.int32), np.zeros(num, np.int32)
        self.opening = np.full(num, NONE, np.int32)
        self.handle = np.zeros(num, np.uint64)
        self._opened = np.zeros(num, np.int64)  # how many consultations a place has seen
        self._shared: dict[Any, Any] = {}
        self._kept: dict[Any, tuple[NDArray[np.float64], NDArray[np.int64]]] = {}

    # Kept by the engine

    def begin(self, who: NDArray, handle: Any, truth: Any, cell: Any, opening: Any, log_prior: NDArray) -> None:
        """Consultations `who` begin."""
        self.question[who], self.row[who] = NONE, NONE
        self.handle[who], self.truth[who], self.cell[who], self.log_prior[who] = handle, truth, cell, log_prior
        self.opening[who] = opening
        self._opened[who] += 1

    def write(self, who: NDArray, turn: NDArray, question: Any, row: NDArray) -> None:
        """Answers of `who` [m] in turn `turn` [m]; a row that discloses nothing is left out."""
        told = np.flatnonzero(row != self.source.tables.unknown_row)
        self.question[who[told], turn[told]] = question[told]
        self.row[who[told], turn[told]] = row[told]

    # Read by rewards

    def scores(self, who: NDArray) -> NDArray[np.float64]:
        """Float64 [m, D]: log_prior plus the floored log-likelihoods of all answers, added turn by turn."""
        out, row = self.log_prior[who].astype(np.float64), self.row[who]
        for turn in np.flatnonzero((row != NONE).any(0)):
            told = np.flatnonzero(row[:, turn] != NONE)
            out[told] += self.floored[row[told, turn]]
        return out

    @property
    def floored(self) -> NDArray[np.float64]:
        """[rows, D] log-likelihoods, at least log FLOOR: what values of coalitions are made of."""
        table: NDArray[np.float64] = self.shared("floored", lambda ledger: np.maximum(ledger.likelihood, np.log(FLOOR), dtype=np.float64))
        return table

    def answers(self, who: NDArray) -> NDArray[np.int64]:
        """Int64 [m, Q]: the row with which each patient would answer each question; what was disclosed is as it was disclosed."""
        Q = self.source.tables.num_questions
        each = np.repeat(who, Q)
        rows = self.source.rows(self.handle[each], self.truth[each], self.cell[each], np.tile(np.arange(Q), len(who)))
        out = np.asarray(rows, np.int64).reshape(len(who), Q)
        place, turn = np.nonzero(self.row[who] != NONE)
        out[place, self.question[who[place], turn]] = self.row[who[place], turn]
        told = np.flatnonzero(self.opening[who] >= 0)
        opening = self.opening[who[told]]
        out[told, opening] = self.source.tables.row_of[self.cell[who[told]], opening] + 1  # what a patient opens with is there
        return out

    @property
    def present(self) -> NDArray[np.bool_]:
        """[rows] whether an answer says that something is there: yes, or of any other finding a value that is not its commonest."""
        found: NDArray[np.bool_] = self.shared("present", _present)
        return found

    def shared(self, key: Any, make: Callable[[Ledger], Any]) -> Any:
        """`make(self)`, made once: a function of the source alone."""
        if key not in self._shared:
            self._shared[key] = make(self)
        return self._shared[key]

    def kept(self, key: Any, who: NDArray, compute: Callable[[NDArray], NDArray]) -> NDArray[np.float64]:
        """`compute(who)` [m, K], made once for each consultation: a pure function of its case, so that it need not be made again."""
        if not who.size:
            return np.zeros((0, 1))
        if key not in self._kept:
            made = compute(who)
            self._kept[key] = np.zeros((len(self._opened), made.shape[1])), np.zeros(len(self._opened), np.int64)
            self._kept[key][0][who], self._kept[key][1][who] = made, self._opened[who]
        values, of = self._kept[key]
        stale = who[of[who] != self._opened[who]]
        if stale.size:
            values[stale], of[stale] = compute(stale), self._opened[stale]
        return values[who]

    def parents(self, question: NDArray[np.integer]) -> NDArray[np.int64]:
        """[m, n] for each question [m, n] (NONE: nobody) the place of its parent in the same row, NONE where it is not there."""
        parent = np.where(question >= 0, self.shared("parents", _parents)[question], NONE)
        match = (parent[:, :, None] == question[:, None, :]) & (parent >= 0)[:, :, None]
        return np.where(match.any(2), match.argmax(2), NONE)

    # Copies

    def part(self, rows: NDArray | slice) -> Ledger:
        """A copy of some consultations."""
        index = np.arange(len(self.handle))[rows]
        out = Ledger(self.source, len(index), self.question.shape[1])
        out.likelihood, out.children, out._shared = self.likelihood, self.children, self._shared
        for name in ARRAYS:
            getattr(out, name)[...] = getattr(self, name)[index]
        out._opened += 1
        return out

    def imagined(self, index: int, source: CaseSource, handle: NDArray[np.uint64], truth: NDArray[np.integer]) -> Ledger:
        """Consultation `index` once for each of other hidden cases; what was disclosed stays as it is."""
        out = self.part(np.full(len(handle), index))
        out.source, out.handle, out.truth = source, handle.copy(), truth.astype(np.int32)
        return out

    def state(self) -> dict[str, NDArray[Any]]:
        """Its arrays, copied."""
        return {name: getattr(self, name).copy() for name in ARRAYS}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Go back to a `state()`."""
        for name in ARRAYS:
            getattr(self, name)[...] = state[name]
        self._opened += 1  # nothing that was kept holds any longer

    def __deepcopy__(self, memo: Any) -> Ledger:
        return self.part(slice(None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and all(np.array_equal(getattr(self, n), getattr(other, n)) for n in ARRAYS)

    __hash__ = None  # type: ignore[assignment]


def no_ledger(reward: str) -> RewardError:
    """What a reward raises that finds no ledger in its transition."""
    return RewardError(f"{reward} needs the ledger of the consultation: score it in an environment whose mix names it")


def _parents(ledger: Ledger) -> NDArray[np.int64]:
    """[Q] question index of each finding's parent, NONE for none."""
    base = ledger.source.tables.base
    return np.array([NONE if f.parent is None else base.finding_index[f.parent] for f in base.findings])


def _present(ledger: Ledger) -> NDArray[np.bool_]:
    t = ledger.source.tables
    out = np.ones(len(ledger.likelihood), bool)  # a loaded patient's set of values is there
    share = (t.probability * t.cell_weight.sum(0)).sum(1)
    first = np.flatnonzero(t.row_value[:-1] == 0)
    for start, stop in zip(first, [*first[1:], len(share)], strict=True):
        binary = t.base.findings[t.row_finding[start]].type == "binary"
        out[start if binary else start + int(np.argmax(share[start:stop]))] = False
    out[t.unknown_row] = False
    return out


ARRAYS = ("question", "row", "log_prior", "cell", "truth", "opening", "handle")
