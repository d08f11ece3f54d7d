"""What a reward is: a small pure callable from a batched transition to one number per consultation.

A reward sees a `Transition` and nothing else: never an environment, never the doctor's words. It returns float64 [N]; NaN
means "could not be scored" (never 0). A reward that is not due returns 0.

Does not cover: how rewards are weighed and reported together (`mix`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError
from medenv.knowledge.compiled import FLOOR as FLOOR
from medenv.knowledge.compiled import Compiled
from medenv.rewards.ledger import Ledger


@dataclass(slots=True)
class Transition:
    """One step of N consultations, read from the ledger. Flags are bool [N], numbers have the shapes given.

    `answered` marks an answer that the patient disclosed for the first time; `belief_*` and `entropy_*` (nats) are the
    environment's own, before and after it. `question` and `diagnosis` are -1 where there was none. `invalid` is true also where
    `malformed` or `repeated` is.
    """

    turn: NDArray[np.bool_]  # [N] took a turn: False for a consultation that is over or only begins
    question: NDArray[np.integer]  # [N]
    asked: NDArray[np.bool_]  # [N] a valid question, whether or not the patient knew
    answered: NDArray[np.bool_]  # [N]
    invalid: NDArray[np.bool_]  # [N]
    malformed: NDArray[np.bool_]  # [N] no action at all: outside the action space
    repeated: NDArray[np.bool_]  # [N] a question that was asked, or told with the opening statement, before
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
    ledger: Ledger | None = None  # where the mix needs it

    def part(self, rows: slice) -> Transition:
        """Some of its consultations."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        some: dict[str, Any] = {k: None if v is None else v.part(rows) if isinstance(v, Ledger) else v[rows] for k, v in values.items()}
        return Transition(**some)


@runtime_checkable
class Reward(Protocol):
    """The interface.

    `when` is the flag of `Transition` without which the reward is 0 for everybody (so it need not be called), `bounds` the range
    of one step, unweighted.

    A reward may also have: `bind(tables)`, which returns it ready for a compiled knowledge base (`OfBase` brings one);
    `needs_ledger = True`, to find `Transition.ledger` filled; `needs_differential = True`, if it scores what the doctor hands in;
    `gamma`, the discount that it must share with the trainer; `credits(transition)`, see `ShapleyCredit`.
    """

    name: ClassVar[str]
    when: ClassVar[str]

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value of one step."""

    @property
    def needs_truth(self) -> bool:
        """Whether the number must stay hidden until the last step."""

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]; NaN where it could not be scored."""


@dataclass(frozen=True)
class OfBase:
    """A reward that reads the knowledge base: environments bind it to their tables."""

    tables: Compiled | None = field(default=None, repr=False, compare=False, kw_only=True)

    def bind(self, tables: Compiled) -> Self:
        """The same reward for these tables."""
        return dataclasses.replace(self, tables=tables)

    @property
    def base(self) -> Compiled:
        """The tables; RewardError without any."""
        if self.tables is None:
            name = getattr(self, "name", type(self).__name__)
            raise RewardError(f"reward {name!r} needs a knowledge base: use it in an environment that has one, or bind(tables)")
        return self.tables


def of_truth(belief: NDArray, truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """[N] P(truth)."""
    return belief[np.arange(truth.size), truth].astype(np.float64)
