"""What is charged: questions and tests, and what a doctor should not do.

All return what is to be subtracted, as a positive number: write them with a negative weight, `- 0.01*question_cost`.

- `question_cost`: the whole price of the question in the base's units, whether or not the patient knew.
- `test_cost`: the same question's money, delay and invasiveness apart: money * US$ + delay * hours + invasiveness * units. The default
  weights put one unit at 1000 US$, at 100 hours and at ten times the invasiveness of surgery; they are a choice, not a finding.
- `invalid_action`, and of these the two worst apart: `repetition` (it was asked or told before) and `format` (no action at all).
- `time_out`: the turns ran out before a diagnosis or a referral.

Does not cover: what a late or a wrong diagnosis does to the patient (`triage`, `safety`).
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
class CostOfTest(OfBase):
    """`test_cost`, >= 0, with weights of 1 US$, 1 hour and invasiveness 1.

    Fixtures: a plain question 0, a test of 50 US$, 2 hours and invasiveness .1 .08.
    """

    name: ClassVar[str] = "test_cost"
    when: ClassVar[str] = "asked"
    needs_truth: ClassVar[bool] = False
    money: float = 0.001
    delay: float = 0.01
    invasiveness: float = 0.1

    def __post_init__(self) -> None:
        for name in ("money", "delay", "invasiveness"):
            if not isinstance(getattr(self, name), int | float) or not 0.0 <= getattr(self, name) < math.inf:
                raise RewardError(f"{name} of test_cost is {getattr(self, name)!r}: give a weight of at least 0")

    @property
    def bounds(self) -> tuple[float, float]:
        """The most is that of the dearest question, known once the base is."""
        return 0.0, math.inf if self.tables is None else float(self._price.max())

    @cached_property
    def _price(self) -> NDArray[np.float64]:
        """[Q]"""
        each = [self.money * f.money + self.delay * f.delay + self.invasiveness * f.invasiveness for f in self.base.base.findings]
        return np.array(each)

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        return np.where(t.asked, self._price[t.question], 0.0)


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


@dataclass(frozen=True)
class Repetition:
    """1 for a question that was asked, or told with the opening statement, before. Fixtures: asked again 1, another invalid action 0."""

    name: ClassVar[str] = "repetition"
    when: ClassVar[str] = "repeated"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = False

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        return t.repeated.astype(np.float64)


@dataclass(frozen=True)
class Format:
    """1 for what is no action at all (a batch takes it as an invalid one). Fixtures: outside the action space 1, masked 0."""

    name: ClassVar[str] = "format"
    when: ClassVar[str] = "malformed"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = False

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        return t.malformed.astype(np.float64)


@dataclass(frozen=True)
class TimeOut:
    """1 where the turns ran out before a diagnosis or a referral. Fixtures: undiagnosed 1, referred 0, diagnosed 0."""

    name: ClassVar[str] = "time_out"
    when: ClassVar[str] = "ended"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = False

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]."""
        return (t.ended & (t.diagnosis < 0) & ~t.referred).astype(np.float64)
