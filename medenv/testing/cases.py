"""Checks of a case source: what it opens and answers, its tokens, splits that share no case.

Does not cover: whether its patients follow the base's probabilities (`bases.check_calibration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenv.cases.case import Case
from medenv.cases.source import NO_OPENING, CaseSource
from medenv.hashing import draw_array, seed_for
from medenv.knowledge.compiled import Compiled
from medenv.testing.shared import handles


def check_cases(source: CaseSource, others: Sequence[CaseSource] = (), number: int = 400, seed: int = 0) -> None:
    """Answers are a pure function of (case, finding), rows are the finding's own, tokens round-trip, splits share no case.

    `others` are the sources of the other splits.
    """
    t = source.tables
    handle = handles(source, number, seed)
    if not (handle.dtype == np.uint64 and handle.shape == (number,)):
        raise AssertionError(f"expected handles uint64 [{number}], saw {handle.dtype} {list(handle.shape)}")
    if not (handle == handles(source, number, seed)).all():
        raise AssertionError("expected the same handles for the same streams and episodes, saw others on the second call")
    singly = np.concatenate([handles(source, 1, seed, first=i) for i in range(number)])
    if not (handle == singly).all():
        raise AssertionError("expected the same handle one at a time as in a batch, saw another: `next` must not depend on the batch")
    opened = source.open(handle)
    _check_opened(t, opened)
    back = source.open(handle[::-1])
    for name, one, two in zip(opened._fields, opened, back, strict=True):
        if not (np.asarray(one) == np.asarray(two)[::-1]).all():
            raise AssertionError(f"expected `open` to be a pure function of the handle, saw another {name} in another order")
    _check_answers(source, handle, opened)
    for h in handle[:50].tolist():
        token = source.token(h)
        if not isinstance(token, str):
            raise AssertionError(f"expected a token that is a string, saw {token!r}")
        again = source.handle(token)
        if not (source.token(again) == token):
            raise AssertionError(f"expected the token {token!r} to lead back to itself, saw {source.token(again)!r}")
        case = source.case(h)
        if not (isinstance(case, Case) and case.truth == t.base.conditions[int(source.open(np.array([h], np.uint64)).truth[0])].id):
            raise AssertionError(f"expected `case` to give the patient of handle {h} with its truth, saw {case!r}")
    own = _tokens(source, number, seed)
    for other in others:
        shared = own & _tokens(other, number, seed)
        if shared:
            raise AssertionError(
                f"expected splits {source.split!r} and {other.split!r} to share no case, "
                f"saw {len(shared)} in both, such as {sorted(shared)[0]!r}"
            )


def _check_opened(t: Compiled, opened: Any) -> None:
    C, D = t.cell_weight.shape
    if not ((opened.cell >= 0).all() and (opened.cell < C).all()):
        raise AssertionError(f"expected cells in 0-{C - 1}, saw {opened.cell.min()} to {opened.cell.max()}")
    if not ((opened.truth >= 0).all() and (opened.truth < D).all()):
        raise AssertionError(f"expected conditions in 0-{D - 1}, saw {opened.truth.min()} to {opened.truth.max()}")
    told = opened.opening[opened.opening != NO_OPENING]
    wrong = told[(told < 0) | (t.opening_of[told] < 0)]
    if wrong.size:
        raise AssertionError(f"expected openings that are binary findings without parent, saw findings {np.unique(wrong).tolist()}")
    band = np.searchsorted(np.array(t.base.age_bands[1:]), opened.age, side="right")
    wrong = np.flatnonzero(band != opened.cell // 2 % len(t.base.age_bands))
    if wrong.size:
        raise AssertionError(f"expected ages inside their cell's band, saw age {opened.age[wrong[0]]} in cell {opened.cell[wrong[0]]}")


def _check_answers(source: CaseSource, handle: NDArray[np.uint64], opened: Any) -> None:
    t, Q = source.tables, source.tables.num_questions
    who, question = np.repeat(np.arange(handle.size), Q), np.tile(np.arange(Q), handle.size)

    def ask(order: NDArray[np.intp]) -> NDArray[np.integer]:
        out = np.empty(order.size, np.int64)
        i, q = who[order], question[order]
        out[order] = source.rows(handle[i], opened.truth[i], opened.cell[i], q)
        return out

    rows = ask(np.arange(who.size))
    shuffled = ask(np.argsort(draw_array(np.full(who.size, seed_for("order"), np.uint64), np.arange(who.size))))
    wrong = np.flatnonzero(rows != shuffled)
    if wrong.size:
        raise AssertionError(
            "expected an answer to be a pure function of (case, finding), "
            f"saw {wrong.size} answers change when the questions came in another order"
        )
    for k in range(min(who.size, 3 * Q)):
        i = slice(who[k], who[k] + 1)
        one = int(source.rows(handle[i], opened.truth[i], opened.cell[i], question[k : k + 1])[0])
        fast = source.row(int(handle[i][0]), int(opened.truth[i][0]), int(opened.cell[i][0]), int(question[k]))
        if not (rows[k] == one == fast):
            raise AssertionError(f"expected the same answer in a batch, alone and from `row`, saw rows {rows[k]}, {one} and {fast}")
    total = source.row_slot.size
    if not (len(source.log_likelihood) == len(source.children) == total):
        raise AssertionError("expected log_likelihood, row_slot and children of one length")
    if not ((rows >= 0).all() and (rows < total).all()):
        raise AssertionError(f"expected rows in 0-{total - 1}, saw {rows.min()} to {rows.max()}")
    own = rows < t.unknown_row
    first = t.row_of[opened.cell[who], question]
    wrong = np.flatnonzero(own & ((rows < first) | (rows >= first + t.num_values[question])))
    if wrong.size:
        raise AssertionError(f"expected rows of the finding and the cell, saw row {rows[wrong[0]]} for finding {question[wrong[0]]}")
    for k in np.flatnonzero(rows > t.unknown_row).tolist():
        slots, q = source.more_slots.get(int(rows[k]), np.zeros(0, np.intp)), int(question[k])
        if not (slots.size and (slots >= t.slot_start[q]).all() and (slots < t.slot_start[q + 1]).all()):
            raise AssertionError(
                f"expected row {rows[k]} to set slots of finding {q} ({t.slot_start[q]}-{t.slot_start[q + 1] - 1}), saw {slots.tolist()}"
            )


def _tokens(source: CaseSource, number: int, seed: int) -> set[str]:
    return {source.token(int(h)) for h in handles(source, max(number, 2 * len(source)), seed)}
