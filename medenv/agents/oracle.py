"""The ceiling: the posterior after every finding of a case has been answered.

An evaluator, not a doctor: it sees the whole case, asks nothing and has no turn budget. What it misses no doctor can know.

Does not cover: the best policy under costs and a turn budget.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medenv.belief.posterior import posterior
from medenv.cases.source import NO_OPENING, CaseSource
from medenv.knowledge.base import parents_first


def oracle_beliefs(source: CaseSource, handles: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Belief float64 [n, D] of cases [n] after all findings (a child only under an active parent)."""
    t = source.tables
    opened = source.open(handles)
    has_opening = opened.opening != NO_OPENING
    scores = t.opening_log[opened.cell, np.where(has_opening, t.opening_of[opened.opening], -1)].astype(np.float64)
    unlocked = np.tile(np.array([f.parent is None for f in t.base.findings]), (len(handles), 1))
    for q in (t.base.finding_index[f.id] for f in parents_first(t.base.findings)):
        who = np.flatnonzero(unlocked[:, q] & (t.allowed[opened.cell, q] == 1))
        question = np.full(who.size, q)
        row = np.asarray(source.rows(handles[who], opened.truth[who], opened.cell[who], question))
        is_opening = opened.opening[who] == q
        row = np.where(is_opening, t.row_of[opened.cell[who], q] + 1, row)
        scores[who] += np.where(is_opening[:, None], 0.0, source.log_likelihood[row])
        kids = source.children[row]
        for k in range(kids.shape[1]):
            some = kids[:, k] >= 0
            unlocked[who[some], kids[some, k]] = True
    return posterior(scores)[0]
