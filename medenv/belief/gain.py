"""Exact expected information gain of every question, as matrix products.

The mutual information of answer and condition, H(answer) - sum_d p(d) h(answer | d) (Lindley 1956), in nats. A multi-choice
finding counts as the one draw that it is. Reporting noise is in the tables, so it is in the gain.

Does not cover: questions that pay only through a later one (look-ahead), nor costs (a doctor divides by them).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medenv.knowledge.compiled import Compiled

TINY = 1e-30


class _Group(NamedTuple):
    product: NDArray  # [D, B + V + Q]: P(yes) of binary findings, P(value) of the others, h(answer | d) of both in that order
    rows: list[NDArray]  # per question, its rows in this cell


class InformationGain:
    """`gain(belief, cell)` for one compiled base. Tables are built once for each group of cells, when first met."""

    def __init__(self, tables: Compiled) -> None:
        self.tables = tables
        binary = np.array([f.type == "binary" for f in tables.base.findings])
        self._binary, self._other = np.flatnonzero(binary), np.flatnonzero(~binary)
        self._column = np.argsort(np.concatenate([self._binary, self._other]))
        values = np.repeat(np.arange(self._other.size), tables.num_values[self._other])
        self._segment = (values[:, None] == np.arange(self._other.size)).astype(np.float32)  # [V, others] sums over each one's values
        self._groups: dict[int, _Group] = {}

    def __call__(self, belief: NDArray, cell: NDArray[np.integer]) -> NDArray[np.float32]:
        """Expected gain [N, Q] (float32, nats, >= 0) of belief [N, D] for patients in demographic cells [N]."""
        belief = np.asarray(belief, np.float32)
        if self.tables.group_cell.size == 1:
            return self._gain(belief, 0)
        out = np.empty((belief.shape[0], self.tables.num_questions), np.float32)
        group = self.tables.cell_group[cell]
        order = np.argsort(group, kind="stable")
        cuts = np.flatnonzero(np.diff(group[order])) + 1
        for members in np.split(order, cuts):
            if members.size:
                out[members] = self._gain(belief[members], int(group[members[0]]))
        return out

    def exact(self, belief: NDArray[np.float64], cell: int, questions: NDArray[np.integer]) -> NDArray[np.float64]:
        """The gain of a few questions [K] for one belief [D], in float64 and a fixed order of operations."""
        rows = self._group(int(self.tables.cell_group[cell])).rows
        out = np.empty(len(questions))
        for k, q in enumerate(questions):
            table = self.tables.probability[rows[q]]  # [V, D]
            answer = (table * belief).sum(axis=1)
            given = -(table * np.log(np.maximum(table, TINY))).sum(axis=0)
            out[k] = -(answer * np.log(np.maximum(answer, TINY))).sum() - (given * belief).sum()
        return np.maximum(out, 0.0)

    def _group(self, group: int) -> _Group:
        if group not in self._groups:
            t = self.tables
            first = t.row_of[t.group_cell[group]]
            rows = [np.arange(first[q], first[q] + t.num_values[q]) for q in range(t.num_questions)]
            value = t.probability[np.concatenate([rows[q] for q in self._other])] if self._other.size else np.zeros((0, t.num_conditions))
            plogp = -t.probability * np.log(np.maximum(t.probability, TINY))
            given = np.stack([plogp[rows[q]].sum(0) for q in (*self._binary, *self._other)])
            product = np.concatenate([t.probability[first[self._binary] + 1], value, given]).T
            self._groups[group] = _Group(np.ascontiguousarray(product, dtype=np.float32), rows)
        return self._groups[group]

    def _gain(self, belief: NDArray[np.float32], group: int) -> NDArray[np.float32]:
        """[n, Q] for beliefs of one group of cells; columns are in the order binary, others until the last line."""
        b, width = self._binary.size, self._binary.size + self._segment.shape[0]
        product = belief @ self._group(group).product
        answer, gain = product[:, :width], product[:, width:]
        no = np.abs(np.subtract(np.float32(1.0), answer[:, :b]))
        for p in (answer, no):
            p += TINY  # log 0 is not met; larger numbers stay as they are
            p *= np.log(p)
        no += answer[:, :b]
        gain[:, :b] += no
        gain[:, b:] += answer[:, b:] @ self._segment
        out = np.take(gain, self._column, axis=1, mode="clip")
        return np.abs(out, out=out)  # minus the gain, up to rounding
