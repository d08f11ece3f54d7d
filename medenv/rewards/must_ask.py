"""Coverage of a rubric: how much of what should be asked for this condition was asked.

The idea is MedDialogRubrics' (arXiv 2601.03023), whose must-ask lists are written by people and models. Here each condition's rubric
is derived from the base: the findings without parent, at most `size`, that tell most about "is it this condition", by the mutual
information of the two under the base's prior, over patients of every age, sex and setting, as answers to a question (an opening
statement is not one),

I(finding; 1[condition]) = sum over v, y of P(v, y) log P(v, y) / (P(v) P(y)).

Of these, the items that the patient's sex and age allow count. coverage = share of them that was disclosed, or told with the opening.

Does not cover: what the answers so far make worth asking (`information_gain`); a rubric does not know what is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError
from medenv.knowledge.compiled import Compiled
from medenv.rewards.answers import disclosed_rows
from medenv.rewards.base import OfBase, Transition
from medenv.rewards.ledger import NONE, no_ledger


@dataclass(frozen=True)
class MustAsk(OfBase):
    """Paid at the end, in [0, 1]. Fixtures: all items asked 1, none 0, half of them .5; no item for this patient: NaN, not scored."""

    name: ClassVar[str] = "must_ask"
    when: ClassVar[str] = "ended"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = True
    needs_ledger: ClassVar[bool] = True
    size: int = 6

    def __post_init__(self) -> None:
        if not isinstance(self.size, int | float) or not 1 <= self.size < math.inf or self.size != int(self.size):
            raise RewardError(f"size of must_ask is {self.size!r}: give a whole number of at least 1")

    @cached_property
    def rubric(self) -> NDArray[np.bool_]:
        """[D, Q] the items of each condition."""
        worth = np.round(tells(self.base), 9)  # equal on any machine; ties to the lowest index
        order = np.argsort(-worth, axis=1, kind="stable")[:, : int(self.size)]
        out = np.zeros(worth.shape, bool)
        np.put_along_axis(out, order, np.take_along_axis(worth, order, 1) > 0.0, 1)
        return out

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        if t.ledger is None:
            raise no_ledger(self.name)
        out, who = np.zeros(t.ended.size), np.flatnonzero(t.ended)
        if who.size:
            items = self.rubric[t.truth[who]] & (self.base.allowed[t.ledger.cell[who]] == 1)
            told = items & (disclosed_rows(t.ledger, who) != NONE)
            count = items.sum(1)
            out[who] = np.where(count > 0, told.sum(1) / np.maximum(count, 1), np.nan)
        return out


def tells(tables: Compiled) -> NDArray[np.float64]:
    """[D, Q] mutual information in nats of each finding's answer and "is it this condition"; -1 for a finding with a parent."""
    weight = tables.cell_weight  # [C, D]
    share = weight.sum(0)
    out = np.full((tables.num_conditions, tables.num_questions), -1.0)
    for q, finding in enumerate(tables.base.findings):
        if finding.parent is None:
            rows = tables.row_of[:, q, None] + np.arange(tables.num_values[q])  # [C, V]
            both = np.einsum("cvd,cd->vd", tables.probability[rows], weight)  # P(value, condition)
            value = both.sum(1, keepdims=True)
            out[:, q] = _information(both, value, share) + _information(value - both, value, 1.0 - share)
    return out


def _information(both: NDArray[np.float64], value: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """[D] sum over values of P(v, y) log P(v, y) / (P(v) P(y))."""
    both = np.maximum(both, 0.0)
    alone = value * share
    return np.asarray(np.where(both > 0, both * np.log(np.maximum(both, 1e-300) / np.maximum(alone, 1e-300)), 0.0).sum(0))
