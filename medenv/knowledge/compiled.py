"""A knowledge base as arrays: the one set of tables that the generator, the belief and the engine share.

Layout. D conditions, Q findings (= questions), C = settings x age bands x 2 demographic cells, A = Q + D + 1 actions.
Each finding has outcomes, one per value, stored as *rows* of length D. Findings whose probabilities depend on the cell have
several variants; `row_of[cell, finding]` is the first row of the one that applies. Row R (the last) is "unknown": it
moves no belief. Slots are what an observation shows: one per binary finding, one per value of any other.

The opening statement is evidence. A complaint is drawn first, from c = P(complaint | condition, cell); every other finding
then has p' = (p - c)/(1 - c), so that its marginal stays p. Reporting noise: with probability e = noise * (1 - reliability)
an answer is drawn from the finding's average over all conditions instead, e m(v) + (1 - e) p'(v); it is part of the tables,
so the belief is calibrated with it.

Does not cover: data sets' patients (they are rows too, see `medenv.cases.loaded`), nor any state of a consultation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from medenv.errors import KnowledgeError, unknown
from medenv.hashing import thresholds
from medenv.knowledge.base import SEXES, KnowledgeBase
from medenv.knowledge.probabilities import cell_weights, links_by_finding, opening_probabilities, ruled_out, true_probabilities

LOG_ZERO = -1000.0  # finite stand-in for log 0: a sum below IMPOSSIBLE means "excluded by an answer"
IMPOSSIBLE = -500.0
FLOOR = 1e-6  # likelihoods that are not exactly 0 are floored here

Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Compiled:
    """The arrays. Shapes use D conditions, Q findings, R rows, S slots, C cells, M openings (the last one: none)."""

    base: KnowledgeBase
    noise: float
    difficulty: float
    setting: str | None
    complaint: str | None
    num_values: Int32  # [Q]
    row_of: Int32  # [C, Q] first row of the finding's variant in this cell
    row_finding: Int32  # [R + 1]
    row_value: Int32  # [R + 1] value index; -1 for the unknown row
    probability: Float64  # [R, D] P'(value | condition), not the opening, noise included
    log_likelihood: NDArray[np.float32]  # [R + 1, D]
    threshold: NDArray[np.uint64]  # [R, D] cumulative over the values of one variant
    slot_start: Int32  # [Q + 1]
    row_slot: Int32  # [R + 1] the slot that the row sets to 1, or -1
    allowed: NDArray[np.int8]  # [C, Q] 0 where sex or age rules the question out
    cost: NDArray[np.float32]  # [Q]
    children: Int32  # [R + 1, K] questions that the row unlocks, padded with -1
    everyone: Float64  # [D] P(condition), whatever the complaint: misreported answers are drawn from these
    cell_weight: Float64  # [C, D] joint P(cell, condition) of the patients who come
    opening_of: Int32  # [Q] index into openings, -1 if the finding can't open
    opening_finding: Int32  # [M - 1]
    opening_log: NDArray[np.float32]  # [C, M, D] log P(condition | cell, opening)
    joint_threshold: NDArray[np.uint64]  # [J] cumulative over (cell, condition, opening)
    joint_cell: Int32  # [J]
    joint_condition: Int32  # [J]
    joint_opening: Int32  # [J] finding index
    cell_group: Int32  # [C] cells with equal tables share a group: information gain is one matrix product per group
    group_cell: Int32  # [G] one cell of each group

    @property
    def name(self) -> str:
        """What these tables are: base, fingerprint, noise, difficulty, setting, complaint."""
        setting = self.setting or "all settings"
        complaint = f", complaint {self.complaint}" if self.complaint else ""
        return f"{self.base.id} {self.base.fingerprint}, noise {self.noise:g}, difficulty {self.difficulty:g}, {setting}{complaint}"

    @property
    def num_conditions(self) -> int:
        """D."""
        return len(self.base.conditions)

    @property
    def num_questions(self) -> int:
        """Q."""
        return len(self.base.findings)

    @property
    def num_slots(self) -> int:
        """S."""
        return int(self.slot_start[-1])

    @property
    def unknown_row(self) -> int:
        """R: the row of an answer that discloses nothing."""
        return int(self.row_finding.size - 1)

    def cell(self, age: float, sex: str, setting: str) -> int:
        """The demographic cell of a patient: setting-major, then age band, then sex."""
        settings = list(self.base.settings)
        if setting not in settings:
            raise unknown("setting", setting, settings)
        if sex not in SEXES:
            raise unknown("sex", sex, SEXES)
        return (settings.index(setting) * len(self.base.age_bands) + self.base.band(age)) * 2 + SEXES.index(sex)

    def slot_names(self) -> list[str]:
        """[S] `fever` for a binary finding, `cough_type=dry` for a value of any other."""
        names: list[str] = []
        for f in self.base.findings:
            names += [f.id] if f.type == "binary" else [f"{f.id}={v}" for v in f.values]
        return names


@lru_cache(maxsize=32)
def compile_base(base_key: _BaseKey, noise: float, difficulty: float, setting: str | None, complaint: str | None) -> Compiled:
    """`compiled` behind a cache (bases compare by fingerprint)."""
    return _compile(base_key.base, noise, difficulty, setting, complaint)


class _BaseKey:
    def __init__(self, base: KnowledgeBase) -> None:
        self.base = base

    def __hash__(self) -> int:
        return hash(self.base.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BaseKey) and self.base.fingerprint == other.base.fingerprint


def compiled(
    base: KnowledgeBase, noise: float = 0.0, difficulty: float = 0.0, setting: str | None = None, complaint: str | None = None
) -> Compiled:
    """Compile a base.

    noise in [0, 0.5]: probability that an answer of reliability 0 is misreported. difficulty in [0, 1]: 0 keeps each
    condition's prevalence, 1 makes all conditions equally likely within a demographic cell. setting: one of the base's,
    or None for their mixture. complaint: the finding that every patient comes with, or None for any; the patients are those
    of None who come with it.
    """
    if not isinstance(noise, Real) or not 0.0 <= noise <= 0.5:
        raise KnowledgeError(f"noise is {noise!r}: give a probability in [0, 0.5]")
    if not isinstance(difficulty, Real) or not 0.0 <= difficulty <= 1.0:
        raise KnowledgeError(f"difficulty is {difficulty!r}: give a number in [0, 1]")
    if setting is not None and setting not in base.settings:
        raise unknown("setting", setting, base.settings)
    if complaint is not None and complaint not in base.finding_index:
        raise unknown("complaint", complaint, base.finding_index)
    return compile_base(_BaseKey(base), float(noise), float(difficulty), setting, complaint)


def _compile(base: KnowledgeBase, noise: float, difficulty: float, setting: str | None, complaint: str | None) -> Compiled:
    weight = cell_weights(base, difficulty, setting)  # [C, D]
    links = links_by_finding(base)
    tables = [true_probabilities(base, f, links.get(f.id, ())) for f in base.findings]  # per finding [P, V, D], P = 2 * bands
    opening = opening_probabilities(base, tables)  # [P, Q, D]
    people = opening.shape[0]
    prior = weight.reshape(-1, people, weight.shape[1]).sum(0)  # [P, D]
    everyone = prior.sum(0)

    rows: list[Float64] = []
    row_finding: list[int] = []
    row_value: list[int] = []
    row_of = np.zeros((people, len(base.findings)), np.int32)
    allowed = np.ones((people, len(base.findings)), np.int8)
    for q, finding in enumerate(base.findings):
        table = tables[q]
        if opening[:, q].any():
            c = opening[:, q]  # [P, D]
            p = table[:, 1]
            rest = np.divide(p - c, 1.0 - c, out=np.zeros_like(p), where=c < 1.0)
            table = np.stack([1.0 - rest, rest], 1)
        flip = noise * (1.0 - finding.reliability)
        if flip:
            limited = np.array([ruled_out(base, finding, i) for i in range(people)])
            mean = (table * everyone).sum(2, keepdims=True) / everyone.sum()
            noisy = (1.0 - flip) * table + flip * mean
            table = np.where(limited[:, None, None], table, noisy)
        table = table / table.sum(1, keepdims=True)
        variants: dict[bytes, int] = {}
        for i in range(people):
            key = table[i].tobytes()
            if key not in variants:
                variants[key] = len(row_finding)
                rows.append(table[i])
                row_finding += [q] * len(finding.values)
                row_value += range(len(finding.values))
            row_of[i, q] = variants[key]
            allowed[i, q] = not ruled_out(base, finding, i)
    probability = np.concatenate(rows)  # [R, D]
    threshold = np.concatenate([thresholds(r, axis=0) for r in rows])
    num_values = np.array([len(f.values) for f in base.findings], np.int32)
    widths = [1 if f.type == "binary" else len(f.values) for f in base.findings]
    slot_start = np.concatenate([[0], np.cumsum(widths)]).astype(np.int32)
    finding_of = np.array([*row_finding, -1], np.int32)
    value_of = np.array([*row_value, -1], np.int32)
    binary = np.array([f.type == "binary" for f in base.findings])
    slot = np.where(binary[finding_of], np.where(value_of == 1, slot_start[finding_of], -1), slot_start[finding_of] + value_of)
    slot[-1] = -1

    cells = weight.shape[0]
    repeat = cells // people
    row_of, allowed = np.tile(row_of, (repeat, 1)), np.tile(allowed, (repeat, 1))
    opening_all = np.tile(opening, (repeat, 1, 1))
    can_open = np.array([f.type == "binary" and f.parent is None for f in base.findings])
    opening_finding = np.flatnonzero(can_open).astype(np.int32)
    opening_of = np.full(len(base.findings), -1, np.int32)
    opening_of[opening_finding] = np.arange(opening_finding.size)
    _, group_cell, cell_group = np.unique(row_of, axis=0, return_index=True, return_inverse=True)
    joint = (weight[:, None, :] * opening_all).transpose(0, 2, 1)  # [C, D, Q]
    if complaint is not None:
        joint[:, :, np.arange(len(base.findings)) != base.finding_index[complaint]] = 0.0
        if not joint.any():
            raise KnowledgeError(
                f"complaint {complaint!r}: nobody in {setting or 'any setting'} comes with it, choose a finding that opens consultations"
            )
        joint /= joint.sum()
    flat = np.flatnonzero(joint > 0)
    jc, jd, jq = np.unravel_index(flat, joint.shape)
    return Compiled(
        base=base,
        noise=noise,
        difficulty=difficulty,
        setting=setting,
        complaint=complaint,
        num_values=num_values,
        row_of=row_of,
        row_finding=finding_of,
        row_value=value_of,
        probability=probability,
        log_likelihood=np.concatenate([_log(probability), np.zeros((1, probability.shape[1]))]).astype(np.float32),
        threshold=threshold,
        slot_start=slot_start,
        row_slot=slot.astype(np.int32),
        allowed=allowed,
        cost=np.array([f.cost for f in base.findings], np.float32),
        children=_children(base, finding_of, value_of),
        everyone=everyone,
        cell_weight=weight if complaint is None else joint.sum(2),
        opening_of=opening_of,
        opening_finding=opening_finding,
        opening_log=_opening_log(weight, opening_all, tables, opening_finding, repeat),
        joint_threshold=thresholds(joint.ravel()[flat]),
        joint_cell=jc.astype(np.int32),
        joint_condition=jd.astype(np.int32),
        joint_opening=jq.astype(np.int32),
        cell_group=cell_group.reshape(-1).astype(np.int32),
        group_cell=group_cell.astype(np.int32),
    )


def _log(p: Float64) -> Float64:
    return np.where(p > 0, np.log(np.maximum(p, FLOOR)), LOG_ZERO)


def _opening_log(weight: Float64, opening: Float64, tables: list[Float64], finding: Int32, repeat: int) -> NDArray[np.float32]:
    """[C, M, D]: log P(d | cell) + log c, normalised over d.

    A finding that never opens counts as an ordinary yes; the last opening is none.
    """
    weight = np.where(weight.sum(1, keepdims=True) > 0, weight, 1.0)  # a cell without patients: any condition
    cell = weight.sum(1, keepdims=True)
    prior = np.where(weight > 0, np.log(np.maximum(weight / cell, 1e-300)), LOG_ZERO)
    out = np.repeat(prior[:, None], finding.size + 1, axis=1)
    for m, q in enumerate(finding):
        c = opening[:, q]
        out[:, m] += _log(c if c.any() else np.tile(tables[q][:, 1], (repeat, 1)))
    top = out.max(-1, keepdims=True)
    out -= top + np.log(np.exp(out - top).sum(-1, keepdims=True))
    return np.asarray(np.maximum(out, LOG_ZERO), np.float32)


def _children(base: KnowledgeBase, row_finding: Int32, row_value: Int32) -> Int32:
    unlocks: dict[tuple[int, int], list[int]] = {}
    for q, finding in enumerate(base.findings):
        if finding.parent is not None:
            parent = base.finding(finding.parent)
            for value in finding.activated_by:
                unlocks.setdefault((base.finding_index[parent.id], parent.values.index(value)), []).append(q)
    width = max((len(v) for v in unlocks.values()), default=1)
    out = np.full((row_finding.size, width), -1, np.int32)
    for row, pair in enumerate(zip(row_finding.tolist(), row_value.tolist(), strict=True)):
        kids = unlocks.get(pair, [])
        out[row, : len(kids)] = kids
    return out
