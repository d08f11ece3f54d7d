"""Patients drawn from a knowledge base, without end: the generator whose belief is calibrated.

A case is a 64-bit key. Cell, condition and opening are one draw from their joint distribution; each answer is one hash of
(key, finding) against integer thresholds, made when it is asked: it depends on nothing else. The two lowest bits
of a key are its split, so train, validation and test never share a case.

Does not cover: patients that come from data (`loaded`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medenv.cases.case import SPLITS, Case
from medenv.cases.source import ALL, Opened, check_split
from medenv.errors import CaseError
from medenv.hashing import draw, draw_array
from medenv.knowledge.base import SEXES, parents_first
from medenv.knowledge.compiled import Compiled

_OPENING, _AGE, _FINDINGS = 0, 1, 2  # counters under a key
_32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


class SampledCases:
    """A case source without end. `split` is train, validation, test, or all."""

    def __init__(self, tables: Compiled, split: str = "train") -> None:
        self.tables = tables
        self.split = check_split(split)
        self.log_likelihood, self.row_slot, self.children = tables.log_likelihood, tables.row_slot, tables.children
        self.more_slots: dict[int, NDArray[np.intp]] = {}
        # u < t for the first t is t - 1 >= u: 32 bits are enough, and half the memory to search
        self._joint = (np.maximum(tables.joint_threshold, np.uint64(1)) - np.uint64(1)).astype(np.uint32)
        self._flat_threshold = tables.threshold.ravel()
        self._steps = [1 << b for b in range(int(np.ceil(np.log2(tables.num_values.max()))))][::-1]
        edges = np.array([*tables.base.age_bands, tables.base.oldest + 1])
        band = np.arange(tables.cell_weight.shape[0]) // 2 % len(tables.base.age_bands)
        self._youngest, self._years = edges[band].astype(np.float32), np.diff(edges)[band].astype(np.uint64)

    def __len__(self) -> int:
        return 0

    def next(self, stream: NDArray[np.uint64], episode: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Keys uint64 [n]."""
        key = draw_array(stream, episode)
        if self.split == ALL:
            return key - (key & np.uint64(3)) // np.uint64(3)
        return (key & ~np.uint64(3)) | np.uint64(SPLITS.index(self.split))

    def open(self, handle: NDArray[np.uint64]) -> Opened:
        """One binary search in the joint distribution for each case."""
        t = self.tables
        joint = np.searchsorted(self._joint, (draw_array(handle, _OPENING) >> _32).astype(np.uint32))
        cell = t.joint_cell[joint]
        years = ((draw_array(handle, _AGE) >> _32) * self._years[cell]) >> _32
        return Opened(cell, t.joint_condition[joint], t.joint_opening[joint], self._youngest[cell] + years.astype(np.float32))

    def next_one(self, stream: int, episode: int) -> int:
        """`next` for one stream in plain integers, the same bits."""
        key = draw(stream, episode)
        return key - (key & 3) // 3 if self.split == ALL else (key & ~3) | SPLITS.index(self.split)

    def open_one(self, handle: int) -> tuple[int, int, int, float]:
        """`open` for one case in plain numbers, the same bits: cell, truth, opening, age."""
        t = self.tables
        joint = int(self._joint.searchsorted(np.uint32(draw(handle, _OPENING) >> 32)))
        cell = int(t.joint_cell[joint])
        years = ((draw(handle, _AGE) >> 32) * int(self._years[cell])) >> 32
        return cell, int(t.joint_condition[joint]), int(t.joint_opening[joint]), float(self._youngest[cell]) + years

    def rows(
        self, handle: NDArray[np.uint64], truth: NDArray[np.integer], cell: NDArray[np.integer], question: NDArray[np.integer]
    ) -> NDArray[np.integer]:
        """The variant's first row plus the value drawn, by a branchless binary search over its thresholds."""
        t = self.tables
        u = draw_array(handle, question.astype(np.uint64) + np.uint64(_FINDINGS)) >> _32
        first = t.row_of[cell, question]
        D = t.num_conditions
        at = first * D + truth
        if len(self._steps) == 1:
            return first + (u >= self._flat_threshold[at])
        width = t.num_values[question]
        value = np.where(width == 2, u >= self._flat_threshold[at], 0).astype(np.int64)
        wide = np.flatnonzero(width > 2)
        if wide.size:
            u, at, width = u[wide], at[wide], width[wide]
            found = np.zeros(wide.size, np.int64)
            for step in self._steps:
                candidate = found + step
                inside = candidate < width
                candidate *= inside
                passed = u >= self._flat_threshold[at + np.maximum(candidate - 1, 0) * D]
                found += step * (passed & inside)
            value[wide] = found
        return first + value

    def row(self, handle: int, truth: int, cell: int, question: int) -> int:
        """`rows` for one case in plain integers: the scalar environment's fast path, the same bits."""
        t = self.tables
        u = draw(handle, question + _FINDINGS) >> 32
        first = int(t.row_of[cell, question])
        value, last = 0, int(t.num_values[question]) - 1
        while value < last and u >= int(t.threshold[first + value, truth]):
            value += 1
        return first + value

    def token(self, handle: int) -> str:
        """Sixteen hexadecimal digits."""
        return f"{handle:016x}"

    def handle(self, token: str) -> int:
        """The key behind a token."""
        try:
            key = int(token, 16)
        except ValueError:
            key = -1
        if len(token) != 16 or key < 0 or key & 3 == 3:
            raise CaseError(f"case {token!r}: a sampled case's id is 16 hexadecimal digits, as info['case_id'] gives it")
        return key

    def case(self, handle: int) -> Case:
        """Every finding that this patient could be asked; children of inactive parents are left out."""
        t, base = self.tables, self.tables.base
        opened = self.open(np.array([handle], np.uint64))
        cell, truth, opening = int(opened.cell[0]), int(opened.truth[0]), int(opened.opening[0])
        values: dict[str, tuple[str, ...]] = {}
        for finding in parents_first(base.findings):
            q = base.finding_index[finding.id]
            if finding.parent is not None and not set(values.get(finding.parent, ())) & set(finding.activated_by):
                continue
            if t.allowed[cell, q]:
                value = 1 if q == opening else int(t.row_value[self.row(handle, truth, cell, q)])
                values[finding.id] = (finding.values[value],)
        setting, sex = list(base.settings)[cell // (2 * len(base.age_bands))], SEXES[cell % 2]
        split = SPLITS[handle & 3]
        return Case(float(opened.age[0]), sex, setting, base.conditions[truth].id, values, base.findings[opening].id, split)
