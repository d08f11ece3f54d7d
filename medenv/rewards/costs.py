"""What asking costs: the price of a question, whether or not the patient knew, and a penalty for an action that cannot be carried out.

Both return what is to be subtracted, as a positive number: write them with a negative weight, `- 0.01*question_cost`.

Does not cover: money, delay and invasiveness of tests apart from each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.rewards.base import Transition


@dataclass(frozen=True)
class QuestionCost:
    """The question's cost in the base's units (an ordinary question 1), >= 0. Fixtures: no question 0, one question 1."""

    name: ClassVar[str] = "question_cost"
    when: ClassVar[str] = "asked"
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    needs_truth: ClassVar[bool] = False

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        return t.cost.astype(np.float64)


@dataclass(frozen=True)
class InvalidAction:
    """1 for an action that was masked or out of range, else 0. It takes a turn besides. Fixtures: masked 1, valid 0."""

    name: ClassVar[str] = "invalid_action"
    when: ClassVar[str] = "invalid"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = False

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        return t.invalid.astype(np.float64)
