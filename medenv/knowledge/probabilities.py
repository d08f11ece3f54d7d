"""What a base says, as probabilities: who comes, with which condition, with which opening, and what they would answer.

"Person" is an (age band, sex) pair, 2 * band + sex: P of them. `compiled` lays these out as the tables that everybody shares.

Does not cover: misreported answers, what the opening takes from the other answers (`compiled`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medenv.errors import KnowledgeError
from medenv.knowledge.base import SEXES, YES, Finding, KnowledgeBase, Link

Float64 = NDArray[np.float64]


def cell_weights(base: KnowledgeBase, difficulty: float, setting: str | None) -> Float64:
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


def ruled_out(base: KnowledgeBase, finding: Finding, person: int) -> bool:
    """Whether sex or age rule the finding out in the (band, sex) group `person`."""
    band, sex = divmod(person, 2)
    edges = [*base.age_bands, base.oldest + 1]
    out = bool(finding.sex) and finding.sex != SEXES[sex]
    return out or edges[band + 1] - 1 < finding.ages[0] or edges[band] > finding.ages[1]


def links_by_finding(base: KnowledgeBase) -> dict[str, list[Link]]:
    """The base's links, by the finding's id."""
    table: dict[str, list[Link]] = {}
    for link in base.links:
        table.setdefault(link.finding, []).append(link)
    return table


def true_probabilities(base: KnowledgeBase, finding: Finding, links: Sequence[Link]) -> Float64:
    """[2 * bands, V, D] P(value | condition, age band, sex) before the opening is taken out and noise added. `links`: the finding's."""
    bands, width = len(base.age_bands), len(finding.values)
    default = finding.background or ((1.0, 0.0) if finding.type == "binary" else (1.0 / width,) * width)
    out = np.empty((2 * bands, width, len(base.conditions)))
    for person in range(2 * bands):
        band, sex = divmod(person, 2)
        out[person] = np.array(finding.background_by_cell.get((SEXES[sex], band), default))[:, None]
    for link in links:
        d = base.condition_index[link.condition]
        if finding.type == "binary":
            p = link.probabilities[YES]
            present = np.full(2 * bands, p) if link.fixed else 1.0 - (1.0 - p) * (1.0 - out[:, 1, d])
            out[:, 1, d], out[:, 0, d] = present, 1.0 - present
        else:
            given = np.array([link.probabilities.get(v, 0.0) for v in finding.values])
            out[:, :, d] = given + max(0.0, 1.0 - given.sum()) * out[:, :, d]
    for person in range(2 * bands):
        if ruled_out(base, finding, person):
            out[person] = 0.0
            out[person, 0] = 1.0
    return out


def opening_probabilities(base: KnowledgeBase, tables: list[Float64]) -> Float64:
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
