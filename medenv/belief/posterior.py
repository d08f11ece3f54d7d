"""The belief: the posterior over conditions given demographics, the opening statement and the answers.

Scores are unnormalised log-posteriors, summed answer by answer (findings are independent given condition, cell and
opening; a child given its parent's report). The row-wise reductions here give the same bits for any batch size.

Does not cover: choosing questions (`gain`) or keeping scores up to date during a consultation (`medenv.envs.engine`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medenv.knowledge.compiled import IMPOSSIBLE, Compiled

TINY = 1e-30


def posterior(
    scores: NDArray, shift: NDArray | None = None, out: NDArray | None = None, work: NDArray | None = None
) -> tuple[NDArray, NDArray, NDArray]:
    """Belief [N, D] (rows sum to 1), entropy [N] (nats) and log-normaliser [N] of scores [N, D], float32 or float64.

    `shift` [N] is a guess of the log-normaliser, such as that of the turn before: it saves looking for the maximum. `out` and
    `work` [N, D] are buffers to use: the belief is written into `out`.
    When no condition fits (see `no_condition_fits`) the conditions with the fewest contradictions share the belief; it
    is never NaN.
    """
    if shift is None:
        shift = scores.max(axis=1)
    shifted = np.subtract(scores, shift[:, None], out=work)
    belief = np.exp(shifted, out=out)
    total = np.einsum("nd->n", belief)
    lost = total < TINY
    if lost.any():
        shift = np.where(lost, scores.max(axis=1), shift)
        shifted[lost] = scores[lost] - shift[lost, None]
        belief[lost] = np.exp(shifted[lost])
        total[lost] = np.einsum("nd->n", belief[lost])
    np.divide(belief, total[:, None], out=belief)
    log_total = np.log(total)
    entropy = log_total - np.einsum("nd,nd->n", belief, shifted)
    return belief, np.maximum(entropy, 0.0, out=entropy), shift + log_total


def posterior_one(scores: NDArray, shift: np.floating) -> tuple[NDArray, np.floating, np.floating]:
    """`posterior` for one row [D] and its shift, the same bits."""
    shifted = scores - shift
    belief = np.exp(shifted)
    total = np.einsum("d->", belief)
    if total < TINY:
        shift = scores.max()
        shifted = scores - shift
        belief = np.exp(shifted)
        total = np.einsum("d->", belief)
    np.divide(belief, total, out=belief)
    log_total = np.log(total)
    entropy = log_total - np.einsum("d,d->", belief, shifted)
    return belief, max(entropy, scores.dtype.type(0.0)), shift + log_total


def no_condition_fits(scores: NDArray) -> NDArray[np.bool_]:
    """[N] whether every condition has met an answer of probability 0: a defined state, not an error."""
    return scores.max(axis=-1) < IMPOSSIBLE


def observed_scores(tables: Compiled, observation: Mapping[str, NDArray]) -> NDArray[np.float64]:
    """Scores [N, D] from batched observations alone (`evidence`, `complaint`, `demographics`): a doctor's own belief.

    Equal to the environment's up to rounding. A set of several values of one finding counts with its mean
    log-likelihood.
    """
    evidence = np.asarray(observation["evidence"])
    complaint = np.asarray(observation["complaint"]).reshape(-1)
    cell = observed_cell(tables, observation["demographics"])
    opening = np.where(complaint < tables.num_questions, tables.opening_of[np.minimum(complaint, tables.num_questions - 1)], -1)
    scores = tables.opening_log[cell, opening].astype(np.float64)
    known = evidence >= 0
    opened = np.flatnonzero(complaint < tables.num_questions)
    known[opened, tables.slot_start[complaint[opened]]] = False
    for group in np.unique(tables.cell_group[cell]):
        members = np.flatnonzero(tables.cell_group[cell] == group)
        yes, no = _slot_tables(tables, int(tables.group_cell[group]))
        seen, present = known[members], evidence[members] == 1
        weight = (seen & present).astype(np.float64)
        for start, stop in _wide_slots(tables):
            weight[:, start:stop] /= np.maximum(weight[:, start:stop].sum(1, keepdims=True), 1.0)
        scores[members] += weight @ yes + (seen & ~present).astype(np.float64) @ no
    return scores


def observed_cell(tables: Compiled, demographics: NDArray) -> NDArray[np.int64]:
    """[N] demographic cells from observed (age in years, sex 0 or 1, setting index)."""
    who = np.atleast_2d(np.asarray(demographics))
    band = np.searchsorted(np.array(tables.base.age_bands[1:]), who[:, 0], side="right")
    return (who[:, 2].astype(np.int64) * len(tables.base.age_bands) + band) * 2 + who[:, 1].astype(np.int64)


def _wide_slots(tables: Compiled) -> list[tuple[int, int]]:
    starts = tables.slot_start
    return [(int(starts[q]), int(starts[q + 1])) for q in range(tables.num_questions) if tables.base.findings[q].type != "binary"]


@lru_cache(maxsize=64)
def _slot_tables(tables: Compiled, cell: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[S, D] log-likelihood of a slot that is present, and of a binary slot that is absent (else 0)."""
    yes = np.zeros((tables.num_slots, tables.num_conditions))
    no = np.zeros_like(yes)
    for q, finding in enumerate(tables.base.findings):
        row, slot, width = int(tables.row_of[cell, q]), int(tables.slot_start[q]), int(tables.num_values[q])
        if finding.type == "binary":
            no[slot], yes[slot] = tables.log_likelihood[row], tables.log_likelihood[row + 1]
        else:
            yes[slot : slot + width] = tables.log_likelihood[row : row + width]
    return yes, no
