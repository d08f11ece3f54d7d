"""Was handing the patient on worth it? Chow's rule (Chow 1970, on optimum recognition error and reject tradeoff).

A referral pays threshold - max belief: what deferring is worth over the best guess, if a referral is worth `threshold` and a guess its
chance to be right. It is positive where the best guess would be right less often than `threshold`, negative where it would be right more
often, and truth-free.

Beside accuracy, give a referral the same constant: under `accuracy(referral=0.5) + w*referral(threshold=0.5)` referring pays more than the
best guess exactly where max belief < 0.5, whatever the weight w > 0. With another constant r, the line is (r + w threshold) / (1 + w).

Does not cover: how urgent the referral is (`triage`), nor whether it reached the right place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError
from medenv.rewards.base import Transition


@dataclass(frozen=True)
class Referral:
    """Paid on a referral, in [threshold - 1, threshold]. Fixtures: belief .9 sure -.4, belief .2 sure .3, no referral 0."""

    name: ClassVar[str] = "referral"
    when: ClassVar[str] = "referred"
    needs_truth: ClassVar[bool] = False
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, int | float) or not 0.0 <= self.threshold <= 1.0:
            raise RewardError(f"threshold of referral is {self.threshold!r}: give a probability in [0, 1]")

    @property
    def bounds(self) -> tuple[float, float]:
        """For a doctor that is sure, and for one that knows nothing at all."""
        return self.threshold - 1.0, float(self.threshold)

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        sure = np.minimum(t.belief_before.max(1).astype(np.float64), 1.0)
        return np.where(t.referred, self.threshold - sure, 0.0)
