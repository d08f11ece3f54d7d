"""Diagnostic accuracy: was the diagnosis right?

accuracy = 1[diagnosis = truth] - wrong * 1[another diagnosis]; a referral pays the constant `referral`; a consultation that ends
undiagnosed pays 0. The constant lies below what an honest doctor earns, so that referring everybody is never worth it.

Does not cover: ranked differentials and probability scores (`differential`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError
from medenv.rewards.base import Transition


@dataclass(frozen=True)
class Accuracy:
    """Paid at the end, in [-wrong, 1]. `referral` in [0, 1): what handing the patient on pays. `wrong` >= 0: what a wrong diagnosis costs.

    Fixtures: right diagnosis 1, wrong 0 (-1 with wrong=1), undiagnosed 0, referral 0.1.
    """

    name: ClassVar[str] = "accuracy"
    when: ClassVar[str] = "ended"
    needs_truth: ClassVar[bool] = True
    referral: float = 0.1
    wrong: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.referral, int | float) or not 0.0 <= self.referral < 1.0:
            raise RewardError(f"referral of accuracy is {self.referral!r}: give a number in [0, 1)")
        if not isinstance(self.wrong, int | float) or not 0.0 <= self.wrong < math.inf:
            raise RewardError(f"wrong of accuracy is {self.wrong!r}: give a number of at least 0, it is subtracted")

    @property
    def bounds(self) -> tuple[float, float]:
        """A wrong diagnosis, a right one."""
        return 0.0 - self.wrong, 1.0

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        paid = np.where(t.referred, self.referral, (t.diagnosis == t.truth).astype(np.float64))
        return paid - self.wrong * ((t.diagnosis >= 0) & (t.diagnosis != t.truth)) if self.wrong else paid
