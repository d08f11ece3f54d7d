"""Realised information gain of one answer, given everything before it.

v(S') - v(S) with v one of: `entropy`, -H(belief | S) in nats (Lindley 1956); `log_probability`, log p(truth | S);
`probability`, p(truth | S). The belief is the knowledge base's own, frozen, so the value cannot move with the policy. All
three telescope: over a consultation the gains sum to v(end) - v(opening). With a calibrated belief the first two have the
same expectation; entropy is truth-free and has the lower variance, so it is the default.

Only an answer that the patient discloses for the first time counts, a denial as much as a confirmation.

Does not cover: dividing the sum among the answers by their merit (Shapley credit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import unknown
from medenv.rewards.base import FLOOR, Transition

VALUES = ("entropy", "log_probability", "probability")


@dataclass(frozen=True)
class InformationGain:
    """Dense, paid each step, in nats (`probability`: in [-1, 1]). Fixtures: a repeated or refused question 0."""

    name: ClassVar[str] = "information_gain"
    when: ClassVar[str] = "answered"
    bounds: ClassVar[tuple[float, float]] = (-14.0, 14.0)  # log FLOOR = -13.8
    value: str = "entropy"

    def __post_init__(self) -> None:
        if self.value not in VALUES:
            raise unknown("value of information_gain", self.value, VALUES)

    @property
    def needs_truth(self) -> bool:
        """Entropy can be shown before the end, the other two depend on the truth."""
        return self.value != "entropy"

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        if self.value == "entropy":
            return np.subtract(t.entropy_before, t.entropy_after, dtype=np.float64) * t.answered
        before, after = (_of_truth(b, t.truth) for b in (t.belief_before, t.belief_after))
        if self.value == "log_probability":
            before, after = np.log(np.maximum(before, FLOOR)), np.log(np.maximum(after, FLOOR))
        return (after - before) * t.answered


def _of_truth(belief: NDArray, truth: NDArray[np.integer]) -> NDArray[np.float64]:
    return belief[np.arange(truth.size), truth].astype(np.float64)
