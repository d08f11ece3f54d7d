"""Urgency of the consultation's end against the urgency that the truth asks for.

Levels are the base's, 1 (at once) to 5 (can wait for weeks). A diagnosis ends at its condition's level, a referral at `referral_level`, no
end at all at level 5. With distance = how many levels lie between:

reward = 1 - distance / 4 where the patient is seen too soon, 1 - under * distance / 4 where the patient would wait too long.

`under` = 2: under-triage counts double, as it harms the patient and over-triage the queue.

Does not cover: whether the diagnosis was right (`accuracy`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError
from medenv.rewards.base import OfBase, Transition

LEVELS = 5


@dataclass(frozen=True)
class Triage(OfBase):
    """Paid at the end, in [1 - under, 1]. Fixtures: the right level 1, one level too soon .75, one too late .5, 5 in place of 1 -1."""

    name: ClassVar[str] = "triage"
    when: ClassVar[str] = "ended"
    needs_truth: ClassVar[bool] = True
    under: float = 2.0
    referral_level: float = 2

    def __post_init__(self) -> None:
        if not isinstance(self.under, int | float) or not 0.0 <= self.under < math.inf:
            raise RewardError(f"under of triage is {self.under!r}: give a number of at least 0")
        if not isinstance(self.referral_level, int | float) or not 1 <= self.referral_level <= LEVELS:
            raise RewardError(f"referral_level of triage is {self.referral_level!r}: give a level from 1 (at once) to {LEVELS}")

    @property
    def bounds(self) -> tuple[float, float]:
        """All levels too late, or too soon."""
        return min(0.0, 1.0 - self.under), 1.0

    @cached_property
    def _level(self) -> NDArray[np.float64]:
        """[D + 1] of each condition, and of none."""
        return np.array([*(c.triage for c in self.base.base.conditions), LEVELS], np.float64)

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        end = np.where(t.referred, self.referral_level, self._level[t.diagnosis])  # -1, no diagnosis, is the last level
        late = end - self._level[t.truth]
        return np.where(t.ended, 1.0 - np.where(late > 0, self.under, -1.0) * late / (LEVELS - 1), 0.0)
