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
from medenv.knowledge.base import SEXES, YES, Finding, KnowledgeBase, Link

LOG_ZERO = -1000.0  # finite stand-in for log 0: a sum below IMPOSSIBLE means "excluded by an answer"
IMPOSSIBLE = -500.0
FLOOR = 1e-6  # likelihoods that are not exactly 0 are floored here (DESIGN, Rewards)

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
    weight = _cell_weights(base, difficulty, setting)  # [C, D]
    tables = [_true_probabilities(base, f) for f in base.findings]  # per finding [P, V, D], P = 2 * bands
    opening = _opening_probabilities(base, tables)  # [P, Q, D]
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
            limited = np.array([_ruled_out(base, finding, i) for i in range(people)])
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
            allowed[i, q] = not _ruled_out(base, finding, i)
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


def _cell_weights(base: KnowledgeBase, difficulty: float, setting: str | None) -> Float64:
    """[C, D] joint P(cell, condition): within a setting, P(condition) is the prior exactly; age and sex shape the cells."""
    bands, out = len(base.age_bands), []
    spans = np.diff([*base.age_bands, base.oldest + 1]).astype(float)
    for name, share in base.settings.items():
        people = base.population.get(name)
        who = np.array(people, float).T if people else np.stack([spans, spans], 1)  # [bands, 2]
        if who.shape != (bands, 2) or (who < 0).any() or not who.any():
            raise KnowledgeError(f"population of {name!r}: needs 2 rows of {bands} numbers >= 0, not all 0")
        age = np.array([c.age for c in base.conditions]).T[:, None, :]  # [bands, 1, D]
        sex = np.array([c.sex for c in base.conditions]).T[None]  # [1, 2, D]
        shape = (who[:, :, None] * age * sex).reshape(2 * bands, -1)
        prior = np.array([c.prior.get(name, 0.0) for c in base.conditions])
        total = shape.sum(0)
        for d in np.flatnonzero((total == 0) & (prior > 0)):
            raise KnowledgeError(f"condition {base.conditions[d].id!r}: nobody in {name!r} can have it (age, sex and population)")
        if not prior.any():
            raise KnowledgeError(f"setting {name!r}: no condition has a prior there")
        joint = shape / np.where(total > 0, total, 1.0) * prior / prior.sum()
        out.append(joint * (share if setting is None else float(name == setting)))
    weight = np.concatenate(out)
    weight /= weight.sum()
    if difficulty:
        cell = weight.sum(1, keepdims=True)
        flat = np.where(weight > 0, weight, 1.0) ** (1.0 - difficulty) * (weight > 0)
        weight = np.where(cell > 0, flat / np.maximum(flat.sum(1, keepdims=True), 1e-300) * cell, 0.0)
    return weight


def _ruled_out(base: KnowledgeBase, finding: Finding, person: int) -> bool:
    """Whether sex or age rule the finding out in the (band, sex) group `person`."""
    band, sex = divmod(person, 2)
    edges = [*base.age_bands, base.oldest + 1]
    out = bool(finding.sex) and finding.sex != SEXES[sex]
    return out or edges[band + 1] - 1 < finding.ages[0] or edges[band] > finding.ages[1]


def _true_probabilities(base: KnowledgeBase, finding: Finding) -> Float64:
    """[2 * bands, V, D] P(value | condition, age band, sex) before the opening is taken out and noise added."""
    bands, width = len(base.age_bands), len(finding.values)
    default = finding.background or ((1.0, 0.0) if finding.type == "binary" else (1.0 / width,) * width)
    out = np.empty((2 * bands, width, len(base.conditions)))
    for person in range(2 * bands):
        band, sex = divmod(person, 2)
        out[person] = np.array(finding.background_by_cell.get((SEXES[sex], band), default))[:, None]
    for link in _links_of(base).get(finding.id, ()):
        d = base.condition_index[link.condition]
        if finding.type == "binary":
            p = link.probabilities[YES]
            present = np.full(2 * bands, p) if link.fixed else 1.0 - (1.0 - p) * (1.0 - out[:, 1, d])
            out[:, 1, d], out[:, 0, d] = present, 1.0 - present
        else:
            given = np.array([link.probabilities.get(v, 0.0) for v in finding.values])
            out[:, :, d] = given + max(0.0, 1.0 - given.sum()) * out[:, :, d]
    for person in range(2 * bands):
        if _ruled_out(base, finding, person):
            out[person] = 0.0
            out[person, 0] = 1.0
    return out


@lru_cache(maxsize=8)
def _links_by_id(key: _BaseKey) -> dict[str, list[Link]]:
    table: dict[str, list[Link]] = {}
    for link in key.base.links:
        table.setdefault(link.finding, []).append(link)
    return table


def _links_of(base: KnowledgeBase) -> dict[str, list[Link]]:
    return _links_by_id(_BaseKey(base))


def _opening_probabilities(base: KnowledgeBase, tables: list[Float64]) -> Float64:
    """[P, Q, D] c = P(finding is the opening | condition, age band, sex): sums to 1 over findings, c <= p.

    Given tables are kept (where sex or age rule one out, the rest takes its share); else c follows
    salience * (link + 0.1 * background), poured into the room that each p leaves.
    """
    people, D, Q = tables[0].shape[0], len(base.conditions), len(base.findings)
    weight, room = np.zeros((people, Q, D)), np.zeros((people, Q, D))
    for q, finding in enumerate(base.findings):
        if finding.type == "binary" and finding.parent is None:
            room[:, q] = tables[q][:, 1]
            if finding.complaint:
                weight[:, q] = 0.1 * finding.complaint * np.minimum((finding.background or (1.0, 0.0))[1], room[:, q])
    for link in base.links:
        q, d = base.finding_index[link.finding], base.condition_index[link.condition]
        if base.findings[q].complaint:
            weight[:, q, d] += base.findings[q].complaint * link.probabilities.get(YES, 0.0) * (room[:, q, d] > 0)
    for name, table in base.complaints.items():
        d = base.condition_index[name]
        weight[:, :, d] = 0.0
        total = sum(table.values())
        for finding_id, c in table.items():
            q = base.finding_index[finding_id]
            if c / total > room[:, q, d].max() + 1e-9:
                raise KnowledgeError(
                    f"condition {name!r}: P(opening is {finding_id}) = {c / total:.4g} is more than "
                    f"P({finding_id} | {name}) = {room[:, q, d].max():.4g}: lower the first or raise the second"
                )
            weight[:, q, d] = c / total * (room[:, q, d] > 0)
    return _pour(base, weight, room)


def _pour(base: KnowledgeBase, weight: Float64, room: Float64) -> Float64:
    """min(room, level * weight) with the level that makes each (person, condition) sum to 1."""
    c = np.zeros_like(weight)
    open_ = weight > 0
    left = np.ones(weight.shape[::2])  # [P, D]
    for _ in range(weight.shape[1] + 1):
        total = np.where(open_, weight, 0.0).sum(1)
        level = np.divide(left, total, out=np.zeros_like(left), where=total > 0)
        share = np.where(open_, weight * level[:, None], 0.0)
        full = open_ & (share >= room)
        if not full.any():
            c += share
            left = np.where(total > 0, 0.0, left)
            break
        c = np.where(full, room, c)
        open_ &= ~full
        left = np.maximum(0.0, 1.0 - c.sum(1))
    possible = np.array([[condition.age[p // 2] * condition.sex[p % 2] > 0 for condition in base.conditions] for p in range(c.shape[0])])
    short = np.argwhere((left > 1e-9) & possible)
    if short.size:
        p, d = short[0]
        raise KnowledgeError(
            f"condition {base.conditions[d].id!r}: its possible opening statements reach only {1 - left[p, d]:.3g} of the "
            f"patients of age band {p // 2}, sex {SEXES[p % 2]}: raise their links or mark more findings as complaints"
        )
    return c


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
