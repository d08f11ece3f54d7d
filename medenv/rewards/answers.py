"""Counts of answers, whatever they tell: what several published environments pay for a question.

- `new_answer`: 1 for an answer that the patient discloses for the first time, a denial as much as a confirmation.
- `no_answer`: 1 for a valid question to which the patient had no answer.
- `positive_answer`: 1 for a first answer that says that something is there: yes, or of a finding with other values one that is not its
  commonest (over the base's patients).

They are truth-free, and easy to earn: asking anything new pays `new_answer`, so a doctor under it fills the turn budget. They are here to
be compared with (presets `doctoragent`, `aarlc`).

Does not cover: how much an answer tells (`information_gain`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.rewards.base import Transition
from medenv.rewards.ledger import NONE, Ledger, no_ledger


@dataclass(frozen=True)
class NewAnswer:
    """1 for a first answer. Fixtures: answered 1, unknown to the patient 0, repeated 0."""

    name: ClassVar[str] = "new_answer"
    when: ClassVar[str] = "answered"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = False

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        return t.answered.astype(np.float64)


@dataclass(frozen=True)
class NoAnswer:
    """1 for a valid question that disclosed nothing. Fixtures: unknown to the patient 1, answered 0, repeated 0."""

    name: ClassVar[str] = "no_answer"
    when: ClassVar[str] = "asked"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = False

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        return (t.asked & ~t.answered).astype(np.float64)


@dataclass(frozen=True)
class PositiveAnswer:
    """1 for a first answer that says that something is there. Fixtures: yes 1, no 0, an uncommon value 1, the commonest value 0."""

    name: ClassVar[str] = "positive_answer"
    when: ClassVar[str] = "answered"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = False
    needs_ledger: ClassVar[bool] = True

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        if t.ledger is None:
            raise no_ledger(self.name)
        out, who = np.zeros(t.answered.size), np.flatnonzero(t.answered)
        turn = (t.ledger.question[who] == t.question[who, None]).argmax(1)
        out[who] = t.ledger.present[t.ledger.row[who, turn]]
        return out


def disclosed_rows(ledger: Ledger, who: NDArray[np.integer]) -> NDArray[np.int64]:
    """[m, Q] the row of each answer that was disclosed, the opening statement's among them; NONE for the others."""
    out = np.full((len(who), ledger.source.tables.num_questions), NONE, np.int64)
    place, turn = np.nonzero(ledger.row[who] != NONE)
    out[place, ledger.question[who[place], turn]] = ledger.row[who[place], turn]
    told = np.flatnonzero(ledger.opening[who] != NONE)
    opening = ledger.opening[who[told]]
    out[told, opening] = ledger.source.tables.row_of[ledger.cell[who[told]], opening] + 1
    return out
