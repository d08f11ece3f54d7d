"""Realised information gain of one answer, given everything before it.

v(S') - v(S) with v one of: `entropy`, -H(belief | S) in nats (Lindley 1956); `relative_entropy`, the same divided by H at the opening
(Yuan and Yu 2021, arXiv 2112.00733), at least 0.1 nats; `log_probability`, log p(truth | S); `probability`, p(truth | S). The belief is
the knowledge base's own, frozen, so the value cannot move with the policy. All telescope: over a consultation the gains sum to
v(end) - v(opening). With a calibrated belief `entropy` and `log_probability` have the same expectation; entropy is truth-free and has
the lower variance, so it is the default.

Only an answer that the patient discloses for the first time counts, a denial as much as a confirmation.

Does not cover: dividing the sum among the answers by their merit (Shapley credit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import unknown
from medenv.rewards.base import FLOOR, Transition, of_truth
from medenv.rewards.ledger import Ledger, no_ledger

VALUES = ("entropy", "relative_entropy", "log_probability", "probability")
LEAST = 0.1  # nats that `relative_entropy` divides by at least: an opening that says it all leaves nothing to share out


@dataclass(frozen=True)
class InformationGain:
    """Dense, paid each step, in nats (`probability`, `relative_entropy`: shares). Fixtures: a repeated or refused question 0."""

    name: ClassVar[str] = "information_gain"
    when: ClassVar[str] = "answered"
    value: str = "entropy"

    def __post_init__(self) -> None:
        if self.value not in VALUES:
            raise unknown("value of information_gain", self.value, VALUES)

    @property
    def bounds(self) -> tuple[float, float]:
        """log FLOOR is -13.8, and log 1e6 holds the entropy of every base."""
        most = {"probability": 1.0, "relative_entropy": 14.0 / LEAST}.get(self.value, 14.0)
        return -most, most

    @property
    def needs_truth(self) -> bool:
        """Entropies can be shown before the end, the other two depend on the truth."""
        return self.value in ("log_probability", "probability")

    @property
    def needs_ledger(self) -> bool:
        """For the entropy at the opening."""
        return self.value == "relative_entropy"

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        if self.value == "entropy":
            return np.subtract(t.entropy_before, t.entropy_after, dtype=np.float64) * t.answered
        if self.value == "relative_entropy":
            return np.subtract(t.entropy_before, t.entropy_after, dtype=np.float64) * t.answered / self._at_opening(t)
        before, after = (of_truth(b, t.truth) for b in (t.belief_before, t.belief_after))
        if self.value == "log_probability":
            before, after = np.log(np.maximum(before, FLOOR)), np.log(np.maximum(after, FLOOR))
        return (after - before) * t.answered

    def _at_opening(self, t: Transition) -> NDArray[np.float64]:
        """[N] entropy of the opening belief in nats, at least LEAST; 1 where nothing was answered."""
        if t.ledger is None:
            raise no_ledger(f"{self.name}(value={self.value})")
        ledger, out, who = t.ledger, np.ones(t.answered.size), np.flatnonzero(t.answered)
        if who.size:
            out[who] = np.maximum(ledger.kept("opening entropy", who, lambda some: _entropy(ledger, some))[:, 0], LEAST)
        return out


def _entropy(ledger: Ledger, who: NDArray[np.integer]) -> NDArray[np.float64]:
    """[m, 1]"""
    log_p = ledger.log_prior[who].astype(np.float64)
    p = np.exp(log_p)
    return -(p * log_p).sum(1, keepdims=True) / p.sum(1, keepdims=True)
