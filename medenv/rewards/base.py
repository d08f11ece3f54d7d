"""What a reward is: a small pure callable from a batched transition to one number per consultation.

A reward sees a `Transition` and nothing else: never an environment, never the doctor's words. It returns float64 [N]; NaN
means "could not be scored" (never 0). A reward that is not due returns 0.

Does not cover: how rewards are weighed and reported together (`mix`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-6  # probabilities inside a logarithm are floored here


@dataclass(slots=True)
class Transition:
    """One step of N consultations, read from the ledger. Flags are bool [N], numbers have the shapes given.

    `answered` marks an answer that the patient disclosed for the first time; `belief_*` and `entropy_*` (nats) are the
    environment's own, before and after it. `question` and `diagnosis` are -1 where there was none.
    """

    question: NDArray[np.integer]  # [N]
    asked: NDArray[np.bool_]  # [N] a valid question, whether or not the patient knew
    answered: NDArray[np.bool_]  # [N]
    invalid: NDArray[np.bool_]  # [N]
    diagnosis: NDArray[np.integer]  # [N]
    referred: NDArray[np.bool_]  # [N]
    ended: NDArray[np.bool_]  # [N]
    truth: NDArray[np.integer]  # [N]
    cost: NDArray[np.floating]  # [N] of the question that was asked, else 0
    entropy_before: NDArray[np.floating]  # [N]
    entropy_after: NDArray[np.floating]  # [N]
    belief_before: NDArray[np.floating]  # [N, D]
    belief_after: NDArray[np.floating]  # [N, D]
    differential: NDArray[np.floating] | None = None  # [N, D], NaN rows where none was submitted


@runtime_checkable
class Reward(Protocol):
    """The interface.

    `when` is the flag of `Transition` without which the reward is 0 for everybody (so it need not be called), `bounds` the range
    of one step, unweighted.
    """

    name: ClassVar[str]
    when: ClassVar[str]
    bounds: ClassVar[tuple[float, float]]

    @property
    def needs_truth(self) -> bool:
        """Whether the number must stay hidden until the last step."""

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]; NaN where it could not be scored."""
