"""What one step of the engine hands over: to a batch, and to a single consultation.

Does not cover: how a step is made (`engine`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medenv.rewards.base import Transition

NONE = -1


class Step(NamedTuple):
    """What a step did, before any autoreset. All [N]. The transition's beliefs are views that hold until the next step."""

    transition: Transition
    reward: NDArray[np.float64]
    components: dict[str, NDArray[np.float64]]
    scored: NDArray[np.bool_]
    row: NDArray[np.integer]  # the answer's row, NONE where nothing was asked


class StepOne(NamedTuple):
    """`Step` for a batch of one."""

    transition: Transition
    row: int
    reward: float
    components: dict[str, float]  # NaN: not scored
    invalid: bool
    ended: bool
