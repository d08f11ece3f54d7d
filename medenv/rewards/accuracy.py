"""Diagnostic accuracy: was the diagnosis right?

accuracy = 1[diagnosis = truth]; a referral pays the constant `referral`; a consultation that ends undiagnosed pays 0.
The constant lies below what an honest doctor earns, so that referring everybody is never worth it.

Does not cover: ranked differentials and probability scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError
from medenv.rewards.base import Transition


@dataclass(frozen=True)
class Accuracy:
    """Paid at the end, in [0, 1]. `referral` in [0, 1): what handing the patient on pays.

    Fixtures: right diagnosis 1, wrong 0, undiagnosed 0, referral 0.1.
    """

    name: ClassVar[str] = "accuracy"
    when: ClassVar[str] = "ended"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = True
    referral: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.referral, int | float) or not 0.0 <= self.referral < 1.0:
            raise RewardError(f"referral of accuracy is {self.referral!r}: give a number in [0, 1)")

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        return np.where(t.referred, self.referral, (t.diagnosis == t.truth).astype(np.float64))
