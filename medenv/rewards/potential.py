"""Potential-based shaping (Ng, Harada and Russell 1999): what a state is worth, paid as a difference.

F = gamma * phi(s') - phi(s) on every turn, with phi(s) = -H(belief) in nats (`value=entropy`) or the largest probability
(`value=confidence`), and phi = 0 once the consultation has ended. Discounted over a consultation it sums to -phi(opening), whatever
was done: it leaves the optimal policy unchanged and cannot be earned. `gamma` must be the trainer's (trainers check it). A truncation
is no end: phi(s') is paid, and the trainer bootstraps there as always.

With gamma = 1 every consultation of a case gets the same sum, so it changes nothing where one number for the whole consultation is
compared within a group (outcome-level GRPO).

Does not cover: the reward that it shapes, without which it says nothing about a policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError, unknown
from medenv.rewards.base import Transition

VALUES = ("entropy", "confidence")


@dataclass(frozen=True)
class Potential:
    """Paid each turn; truth-free. Fixtures: a question without news 0 at gamma 1; the last turn -phi(s)."""

    name: ClassVar[str] = "potential"
    when: ClassVar[str] = "turn"
    needs_truth: ClassVar[bool] = False
    gamma: float = 1.0
    value: str = "entropy"

    def __post_init__(self) -> None:
        if not isinstance(self.gamma, int | float) or not 0.0 < self.gamma <= 1.0:
            raise RewardError(f"gamma of potential is {self.gamma!r}: give the trainer's discount, a number in (0, 1]")
        if self.value not in VALUES:
            raise unknown("value of potential", self.value, VALUES)

    @property
    def bounds(self) -> tuple[float, float]:
        """Entropy is at most log D, and log 1e6 holds every base."""
        return (-14.0, 14.0) if self.value == "entropy" else (-1.0, 1.0)

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        if self.value == "entropy":
            before, after = -t.entropy_before.astype(np.float64), -t.entropy_after.astype(np.float64)
        else:
            before, after = (b.max(1).astype(np.float64) for b in (t.belief_before, t.belief_after))
        return (self.gamma * np.where(t.ended, 0.0, after) - before) * t.turn
