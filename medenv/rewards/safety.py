"""Red flags and conditions that must not be missed.

reward = asked * share + acted * 1[alarm and acted upon] - missed * 1[must not be missed and not acted upon], where

- share: of the red flags that bear on the truth, those that were settled: disclosed, told with the opening, or ruled out with their
  parent. A red flag bears on a condition that is linked to it with a probability of .2 or more; only those that the patient's sex and age
  allow count, and with none of them the share is 0.
- alarm: the truth must not be missed, or the patient disclosed a red flag that is there (yes, or a value that is not the commonest).
- acted upon: the consultation ended with a referral, or with a diagnosis at least as urgent as the truth.

So a consultation without an alarm and without red flags that bear on it gets 0, and a doctor that sends home what must not wait loses 1.

Does not cover: harm by tests (`test_cost`), nor how much too late (`triage`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError
from medenv.rewards.answers import disclosed_rows
from medenv.rewards.base import OfBase, Transition
from medenv.rewards.ledger import NONE, no_ledger

BEARS = 0.2  # least probability of a link that makes a red flag one of its condition's


@dataclass(frozen=True)
class Safety(OfBase):
    """Paid at the end, in [-missed, asked + acted]. Fixtures: all red flags asked and referred .5, sent home unasked -1, no danger 0."""

    name: ClassVar[str] = "safety"
    when: ClassVar[str] = "ended"
    needs_truth: ClassVar[bool] = True
    needs_ledger: ClassVar[bool] = True
    asked: float = 0.25
    acted: float = 0.25
    missed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("asked", "acted", "missed"):
            if not isinstance(getattr(self, name), int | float) or not 0.0 <= getattr(self, name) <= 1.0:
                raise RewardError(f"{name} of safety is {getattr(self, name)!r}: give a weight in [0, 1]")

    @property
    def bounds(self) -> tuple[float, float]:
        """Missed without a question, or all done."""
        return -float(self.missed), float(self.asked + self.acted)

    @cached_property
    def _dangerous(self) -> NDArray[np.bool_]:
        """[D] must not be missed."""
        return np.array([c.must_not_miss for c in self.base.base.conditions])

    @cached_property
    def _level(self) -> NDArray[np.int64]:
        """[D] triage levels."""
        return np.array([c.triage for c in self.base.base.conditions])

    @cached_property
    def _flag(self) -> NDArray[np.bool_]:
        """[Q] red flags."""
        return np.array([f.red_flag for f in self.base.base.findings])

    @cached_property
    def _bears(self) -> NDArray[np.bool_]:
        """[D, Q] red flags that bear on a condition."""
        base = self.base.base
        out = np.zeros((len(base.conditions), len(base.findings)), bool)
        for link in base.links:
            out[base.condition_index[link.condition], base.finding_index[link.finding]] = sum(link.probabilities.values()) >= BEARS
        return out & self._flag

    @cached_property
    def _gates(self) -> list[tuple[int, int, NDArray[np.bool_]]]:
        """(red flag, a finding above it, [R + 1] its answers that rule the red flag out); the last row, unknown, rules out nothing."""
        t, out = self.base, []
        for q in np.flatnonzero(self._flag):
            child = t.base.findings[q]
            while child.parent is not None:
                above = t.base.finding_index[child.parent]
                opens = (t.children == t.base.finding_index[child.id]).any(1)
                out.append((int(q), above, (t.row_finding == above) & ~opens))
                child = t.base.findings[above]
        return out

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        if t.ledger is None:
            raise no_ledger(self.name)
        out, who = np.zeros(t.ended.size), np.flatnonzero(t.ended)
        if not who.size:
            return out
        truth, diagnosis, last = t.truth[who], t.diagnosis[who], self.base.unknown_row
        rows = disclosed_rows(t.ledger, who)
        known = rows != NONE
        alarm = self._dangerous[truth] | (known & t.ledger.present[rows] & self._flag).any(1)
        for flag, above, closing in self._gates:
            known[:, flag] |= closing[np.minimum(rows[:, above], last)]
        bears = self._bears[truth] & (self.base.allowed[t.ledger.cell[who]] == 1)
        share = (bears & known).sum(1) / np.maximum(bears.sum(1), 1)
        acted = t.referred[who] | ((diagnosis >= 0) & (self._level[diagnosis] <= self._level[truth]))
        missed = self._dangerous[truth] & ~acted
        out[who] = self.asked * share + self.acted * (alarm & acted) - self.missed * missed
        return out
