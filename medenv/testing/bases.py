"""Checks of a knowledge base: sound tables, a calibrated belief, openings that tell no more than the belief takes from them.

Does not cover: whether a base is medically right (`medenv.runs.knowledge` shows it to who can say); case sources (`cases`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medenv.belief.posterior import posterior
from medenv.cases.sampled import SampledCases
from medenv.cases.source import ALL, NO_OPENING, CaseSource
from medenv.envs.engine import Engine
from medenv.hashing import seed_for
from medenv.knowledge.base import KnowledgeBase
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.rewards.mix import parse_mix
from medenv.testing.cases import check_cases
from medenv.testing.shared import handles, pick

BINS = 10  # of equal width, for the calibration error
CHUNK = 5_000  # consultations that run together in a statistical check
ROUNDING = 1e-9  # tables are float64 sums


class Calibration(NamedTuple):
    """The belief of many consultations after `turn` answers: its mean top probability, how often the top is right, the standard
    error of the mean difference, and the expected calibration error over `BINS` bins."""

    turn: int
    confidence: float
    accuracy: float
    standard_error: float
    ece: float


def check_base(
    base: str | KnowledgeBase,
    noise: float = 0.02,
    difficulty: float = 0.0,
    setting: str | None = None,
    complaint: str | None = None,
    consultations: int = 40_000,
) -> None:
    """A base compiles to sound tables, and the belief on patients sampled from it is calibrated at every turn.

    `noise`, `difficulty`, `setting`, `complaint` as the environments take them. A smaller number of `consultations` is quicker and weaker.
    """
    tables = compiled(knowledge_base(base), noise, difficulty, setting, complaint)
    check_tables(tables)
    source = SampledCases(tables, ALL)
    check_cases(SampledCases(tables, "train"), [SampledCases(tables, split) for split in ("validation", "test")])
    check_opening(source, 5 * consultations)
    check_calibration(source, consultations)


def check_tables(tables: Compiled) -> None:
    """Probabilities are in [0, 1] and sum to 1, openings too, every condition can occur, every row lies where it is looked for."""
    p = tables.probability
    if not (np.isfinite(p).all() and p.min() >= -ROUNDING and p.max() <= 1 + ROUNDING):
        raise AssertionError(
            f"expected probabilities in [0, 1], saw {p.min():.4g} to {p.max():.4g}: "
            "where below 0, an opening is commoner than its finding (c > p)"
        )
    for cell in np.unique(tables.row_of, axis=0, return_index=True)[1].tolist():
        for q, finding in enumerate(tables.base.findings):
            rows = np.arange(tables.row_of[cell, q], tables.row_of[cell, q] + tables.num_values[q])
            if not (tables.row_finding[rows] == q).all():
                raise AssertionError(f"cell {cell}, {finding.id}: expected rows of this finding, saw {tables.row_finding[rows]}")
            off = np.abs(p[rows].sum(0) - 1).max()
            if not (off < ROUNDING):
                raise AssertionError(f"cell {cell}, {finding.id}: expected probabilities that sum to 1, saw a sum off by {off:.3g}")
    reached = tables.cell_weight.sum(0)
    if tables.setting is None and tables.complaint is None:
        missing = [c.id for c, w in zip(tables.base.conditions, reached, strict=True) if w <= 0]
        if missing:
            raise AssertionError(f"expected every condition to occur, saw weight 0 for {missing}")
    total = tables.cell_weight.sum()
    if not (abs(total - 1) < ROUNDING):
        raise AssertionError(f"expected cells and conditions to sum to 1, saw {total!r}")
    mass = np.zeros_like(tables.cell_weight)
    np.add.at(mass, (tables.joint_cell, tables.joint_condition), np.diff(tables.joint_threshold.astype(np.float64), prepend=0.0) / 2.0**32)
    gap = np.abs(mass - tables.cell_weight)
    cell, d = divmod(int(gap.argmax()), gap.shape[1])
    if not (gap[cell, d] < (np.bincount(tables.joint_cell * mass.shape[1] + tables.joint_condition).max() + 1) / 2.0**32):
        raise AssertionError(
            f"condition {tables.base.conditions[d].id}, cell {cell}: expected the openings to sum to its weight "
            f"{tables.cell_weight[cell, d]:.6g}, saw {mass[cell, d]:.6g}"
        )


def calibration(source: CaseSource, consultations: int = 40_000, turns: int = 8, seed: int = 0) -> list[Calibration]:
    """The belief's calibration after 0 … `turns` random questions on cases of `source`."""
    right, top = [np.zeros(0, bool)] * (turns + 1), [np.zeros(0)] * (turns + 1)
    nothing = parse_mix("accuracy")
    for start in range(0, consultations, CHUNK):
        num = min(CHUNK, consultations - start)
        engine = Engine(source, nothing, num, turns + 2)
        engine.seed([seed_for(seed, "calibration", start + i) for i in range(num)])
        engine.begin()
        for turn in range(turns + 1):
            right[turn] = np.concatenate([right[turn], engine.belief.argmax(1) == engine.truth])
            top[turn] = np.concatenate([top[turn], engine.belief.max(1)])
            mask = engine.buffer[:, engine.mask_at : engine.mask_at + engine.Q] == 1
            engine.step(pick(mask, engine.stream, turn, nothing_open=engine.A))
    return [_calibration(turn, top[turn].astype(np.float64), right[turn]) for turn in range(turns + 1)]


def check_calibration(
    source: CaseSource, consultations: int = 40_000, turns: int = 8, ece: float = 0.01, errors: float = 4.0, seed: int = 0
) -> None:
    """At every turn the expected calibration error is below `ece`, and the mean top belief within `errors` standard errors of accuracy.

    With few consultations chance alone gives a calibration error of about 1/sqrt(consultations); it is allowed for.
    """
    allowed = max(ece, 2.0 / np.sqrt(consultations))
    for c in calibration(source, consultations, turns, seed):
        seen = f"after {c.turn} answers: mean top belief {c.confidence:.4f}, accuracy {c.accuracy:.4f}, "
        seen += f"standard error {c.standard_error:.4f}, ECE {c.ece:.4f}"
        if not (abs(c.confidence - c.accuracy) <= errors * c.standard_error + 1e-6):
            raise AssertionError(f"expected the mean top belief to equal accuracy, saw {seen}")
        if not (c.ece < allowed):
            raise AssertionError(f"expected ECE < {allowed:.4f}, saw {seen}")


def check_opening(source: CaseSource, cases: int = 200_000, errors: float = 4.0, seed: int = 0) -> None:
    """No classifier on demographics and opening alone beats the belief: an opening tells no more than the belief takes from it.

    The classifier counts conditions per (cell, opening) on `cases` cases, shrunk towards the belief; both are scored by their
    log loss on a quarter as many fresh cases.
    """
    t = source.tables
    opened = source.open(handles(source, cases + cases // 4, seed))
    opening = np.where(opened.opening == NO_OPENING, t.opening_finding.size, t.opening_of[opened.opening])
    place = opened.cell.astype(np.int64) * (t.opening_finding.size + 1) + opening
    train, test = slice(None, cases), slice(cases, None)
    places, index = np.unique(place, return_inverse=True)
    counts = np.zeros((places.size, t.num_conditions))
    np.add.at(counts, (index[train], opened.truth[train]), 1.0)
    flat = t.opening_log.reshape(-1, t.num_conditions)
    belief = posterior(flat[places].astype(np.float64))[0]
    learnt = (counts + 20.0 * belief) / (counts.sum(1, keepdims=True) + 20.0)
    loss = [-np.log(np.maximum(p[index[test], opened.truth[test]], 1e-12)) for p in (belief, learnt)]
    gained = loss[0] - loss[1]
    error = gained.std() / np.sqrt(gained.size)
    if not (gained.mean() <= errors * error + 1e-4):
        raise AssertionError(
            f"expected no classifier on the opening alone to beat the belief, saw log loss {loss[1].mean():.4f} against the belief's "
            f"{loss[0].mean():.4f} (standard error of the difference {error:.5f}): "
            "the choice of the opening gives away more than its table says"
        )


def _calibration(turn: int, top: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
    off = right - top
    bins = np.minimum((top * BINS).astype(np.int64), BINS - 1)
    ece = np.abs(np.bincount(bins, off, BINS)).sum() / top.size
    return Calibration(turn, float(top.mean()), float(right.mean()), float(off.std() / np.sqrt(top.size)), float(ece))
