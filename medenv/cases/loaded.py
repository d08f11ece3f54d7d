"""Patients from data: a list of cases as arrays, answering in the rows of the compiled tables.

A patient with several values of a multi-choice finding gets a row of its own whose log-likelihood is the values' mean.
Reporting noise acts as on sampled cases: with probability noise * (1 - reliability) an answer is replaced by a draw from the
finding's average, decided by the case's own hash; children of a falsely reported parent are drawn from P(child | truth).

Does not cover: reading files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medenv.cases.case import SPLITS, Case
from medenv.cases.sampled import SampledCases
from medenv.cases.source import ALL, NO_OPENING, Opened, check_split
from medenv.errors import CaseError
from medenv.hashing import draw, draw_array, thresholds
from medenv.knowledge.base import YES, parents_first
from medenv.knowledge.compiled import Compiled

if TYPE_CHECKING:
    from medenv.cases.ddxplus import Report

_FLIP, _REPLACE = 1 << 20, 1 << 21  # counters under a case's key, beyond those of sampled cases
_32 = np.uint64(32)


class LoadedCases:
    """A case source over `cases`. Handles are indices into the whole list, whatever the split. `report`: what reading them met."""

    def __init__(self, tables: Compiled, cases: Sequence[Case], split: str = "train", report: Report | None = None) -> None:
        self.tables, self.split, self.cases, self.report = tables, check_split(split), list(cases), report
        of_split = [i for i, c in enumerate(self.cases) if split in (ALL, c.assigned_split)]
        self.members = np.array([i for i in of_split if tables.complaint in (None, self.cases[i].opening)], np.uint64)
        if of_split and not self.members.size:
            raise CaseError(
                f"none of the {len(of_split)} cases in split {split!r} opens with complaint {tables.complaint!r}: choose another"
            )
        if not self.members.size:
            held = {s: sum(c.assigned_split == s for c in self.cases) for s in SPLITS}
            raise CaseError(f"no case in split {split!r} (the source has {held}): choose another split, or 'all'")
        base = tables.base
        self._cell = np.array([tables.cell(c.age, c.sex, c.setting) for c in self.cases], np.int32)
        self._truth = np.array([_truth(base.condition_index, c) for c in self.cases], np.int32)
        self._opening = np.array([_opening(tables, c) for c in self.cases], np.int32)
        self._age = np.array([c.age for c in self.cases], np.float32)
        self._by_token = {c.id: i for i, c in reversed(list(enumerate(self.cases)))}
        self._build_rows()

    def _build_rows(self) -> None:
        t, base = self.tables, self.tables.base
        sets: dict[tuple[int, tuple[int, ...]], int] = {}
        rows = np.full((len(self.cases), t.num_questions), t.unknown_row, np.int32)
        value_index = [{v: k for k, v in enumerate(f.values)} for f in base.findings]
        for i, case in enumerate(self.cases):
            first = t.row_of[self._cell[i]]
            for name, values in case.values.items():
                if not values:
                    continue
                q = base.finding_index.get(name)
                if q is None:
                    base.finding(name)  # raises, with the closest name
                    continue
                try:
                    chosen = tuple(sorted(value_index[q][v] for v in values))
                except KeyError as error:
                    held = ", ".join(base.findings[q].values)
                    raise CaseError(f"case {case.id}: {name!r} has no value {error.args[0]!r} (it has {held})") from None
                if len(chosen) == 1:
                    rows[i, q] = first[q] + chosen[0]
                elif base.findings[q].type != "multi_choice":
                    raise CaseError(f"case {case.id}: {name!r} is {base.findings[q].type} but has {len(chosen)} values: {values}")
                else:
                    rows[i, q] = sets.setdefault((int(first[q]), chosen), t.unknown_row + 1 + len(sets))
        kids = [np.unique(t.children[first_row + np.array(chosen)]) for first_row, chosen in sets]
        kids = [k[k >= 0] for k in kids]  # what any of the values unlocks
        width = max([t.children.shape[1], *(k.size for k in kids)])
        children = np.full((t.children.shape[0] + len(kids), width), -1, np.int32)
        children[: t.children.shape[0], : t.children.shape[1]] = t.children
        for row, k in enumerate(kids, t.children.shape[0]):
            children[row, : k.size] = k
        self.children = children
        likelihood, slots = [t.log_likelihood], [t.row_slot]
        self.more_slots: dict[int, NDArray[np.intp]] = {}
        for (first_row, chosen), row in sets.items():
            members = first_row + np.array(chosen)
            likelihood.append(t.log_likelihood[members].mean(0, dtype=np.float64).astype(np.float32)[None])
            slots.append(t.row_slot[members[:1]])
            self.more_slots[row] = t.row_slot[members].astype(np.intp)
        self.log_likelihood, self.row_slot = np.concatenate(likelihood), np.concatenate(slots)
        self._rows = self._misreport(rows) if t.noise else rows

    def _misreport(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Replace answers by the finding's average where the case's hash says so, and fill the children this unlocks."""
        t = self.tables
        out = rows.copy()
        key = np.array([int(c.id, 16) for c in self.cases], np.uint64)
        sampler = SampledCases(t, ALL)
        prior = thresholds(t.everyone)  # whose answer replaces one is drawn from the base: not from this list of cases
        for finding in parents_first(t.base.findings):
            q = t.base.finding_index[finding.id]
            if finding.parent is not None:
                p = t.base.finding_index[finding.parent]
                inactive = (rows[:, p] != t.unknown_row) & ~(self.children[rows[:, p]] == q).any(1)
                filled = (rows[:, p] == t.unknown_row) & (out[:, p] != t.unknown_row)  # as its own parent was inactive
                missing = np.flatnonzero((inactive | filled) & (rows[:, q] == t.unknown_row))
                question = np.full(missing.size, q)
                out[missing, q] = sampler.rows(key[missing], self._truth[missing], self._cell[missing], question)
            flip = t.noise * (1.0 - finding.reliability)
            chosen = (draw_array(key, _FLIP + q) >> _32) < np.uint64(flip * 2.0**32)
            chosen &= (rows[:, q] != t.unknown_row) & (self._opening != q) & (t.allowed[self._cell, q] == 1)
            some = np.flatnonzero(chosen)
            if some.size:
                stranger = draw_array(key[some], _REPLACE + q)
                other = np.searchsorted(prior, stranger >> _32, side="right")
                out[some, q] = sampler.rows(stranger, other, self._cell[some], np.full(some.size, q))
        return out

    def __len__(self) -> int:
        return int(self.members.size)

    def next(self, stream: NDArray[np.uint64], episode: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Handles uint64 [n], uniform over the split, with replacement."""
        u = draw_array(stream, episode) >> _32
        return self.members[(u * np.uint64(self.members.size) >> _32).astype(np.intp)]

    def open(self, handle: NDArray[np.uint64]) -> Opened:
        """Look-ups."""
        i = handle.astype(np.intp)
        return Opened(self._cell[i], self._truth[i], self._opening[i], self._age[i])

    def next_one(self, stream: int, episode: int) -> int:
        """`next` for one stream in plain integers, the same bits."""
        return int(self.members[(draw(stream, episode) >> 32) * self.members.size >> 32])

    def open_one(self, handle: int) -> tuple[int, int, int, float]:
        """`open` for one case: cell, truth, opening, age."""
        return int(self._cell[handle]), int(self._truth[handle]), int(self._opening[handle]), float(self._age[handle])

    def rows(
        self, handle: NDArray[np.uint64], truth: NDArray[np.integer], cell: NDArray[np.integer], question: NDArray[np.integer]
    ) -> NDArray[np.integer]:
        """Look-ups."""
        return self._rows[handle.astype(np.intp), question]

    def row(self, handle: int, truth: int, cell: int, question: int) -> int:
        """One look-up."""
        return int(self._rows[handle, question])

    def token(self, handle: int) -> str:
        """The case's content hash."""
        return self.cases[handle].id

    def handle(self, token: str) -> int:
        """The index of the (first) case with this id."""
        if token not in self._by_token:
            raise CaseError(f"case {token!r}: none of the {len(self.cases)} loaded cases has this id")
        return self._by_token[token]

    def case(self, handle: int) -> Case:
        """The case as loaded (without reporting noise)."""
        return self.cases[int(handle)]


def _truth(index: dict[str, int], case: Case) -> int:
    if case.truth not in index:
        raise CaseError(f"case {case.id}: its truth {case.truth!r} is not a condition of this base")
    return index[case.truth]


def _opening(tables: Compiled, case: Case) -> int:
    if case.opening is None:
        return NO_OPENING
    q = tables.base.finding_index[tables.base.finding(case.opening).id]
    if tables.opening_of[q] < 0 or case.values.get(case.opening) != (YES,):
        raise CaseError(f"case {case.id}: {case.opening!r} can't be its opening, it must be a binary finding without parent, answered yes")
    return q
