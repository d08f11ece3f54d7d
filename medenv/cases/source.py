"""Where a batch's patients come from: the interface of case sources, and how a source is named.

A source hands out *handles* (uint64). For sampled cases a handle is a key, from which everything is hashed on demand; for
loaded cases it is an index. Both answer in rows of the compiled tables, so the engine does not know the difference.

Does not cover: reading files (`medenv.cases.ddxplus`) or wording an answer (`medenv.patients`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from medenv.cases.case import SPLITS, Case
from medenv.errors import unknown
from medenv.knowledge.compiled import Compiled

ALL = "all"
NO_OPENING = -1


class Opened(NamedTuple):
    """The start of n consultations."""

    cell: NDArray[np.integer]  # [n] demographic cell
    truth: NDArray[np.integer]  # [n] condition
    opening: NDArray[np.integer]  # [n] finding of the opening statement, NO_OPENING where there is none
    age: NDArray[np.float32]  # [n] years


class CaseSource(Protocol):
    """What the engine needs. `log_likelihood`, `row_slot` and `children` extend the compiled tables by rows of its own."""

    tables: Compiled
    split: str
    log_likelihood: NDArray[np.float32]  # [rows, D]
    row_slot: NDArray[np.int32]  # [rows]
    children: NDArray[np.int32]  # [rows, K]
    more_slots: dict[int, NDArray[np.intp]]  # row -> all slots it sets, for rows that set several

    def __len__(self) -> int:
        """How many cases the split holds; 0 when there is no end of them."""

    def next(self, stream: NDArray[np.uint64], episode: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Handles [n] of consultation `episode` [n] in each `stream` [n]: a pure function of both."""

    def open(self, handle: NDArray[np.uint64]) -> Opened:
        """Demographics, truth and opening of handles [n]."""

    def rows(
        self, handle: NDArray[np.uint64], truth: NDArray[np.integer], cell: NDArray[np.integer], question: NDArray[np.integer]
    ) -> NDArray[np.integer]:
        """The row [n] that answers question [n]; the tables' `unknown_row` discloses nothing."""

    def next_one(self, stream: int, episode: int) -> int:
        """`next` for one stream in plain integers, the same bits."""

    def open_one(self, handle: int) -> tuple[int, int, int, float]:
        """`open` for one case: cell, truth, opening, age."""

    def row(self, handle: int, truth: int, cell: int, question: int) -> int:
        """`rows` for one case in plain integers."""

    def token(self, handle: int) -> str:
        """The case's id: `reset` accepts it, a reader learns nothing from it."""

    def handle(self, token: str) -> int:
        """The handle of a token; CaseError when no case of any split has it."""

    def case(self, handle: int) -> Case:
        """The whole patient, every answer included (for records, evaluators and debugging; never for a doctor)."""


def check_split(split: str) -> str:
    """`split` if it is one of train, validation, test, all; else an error that proposes the closest."""
    if split not in (*SPLITS, ALL):
        raise unknown("split", split, (*SPLITS, ALL))
    return split
