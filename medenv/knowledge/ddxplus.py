"""DDXPlus as a knowledge base: a release's own directory in, a `KnowledgeBase` out.

DDXPlus (Fansi Tchango et al. 2022, arXiv 2205.09148; CC BY 4.0; English figshare 22687585, French figshare 20043374) holds
invented patients of 49 conditions with 223 evidences. A directory has `release_conditions.json`, `release_evidences.json` and
patients in `release_{train,validate,test}_patients` (`.zip`, `.csv` or no suffix). Names and codes are read, never known
beforehand, so the English and the French release both load. Where the numbers come from, first match:

1. `medenv_counts.json`, written by `save_counts` from the training file, so that it is counted once.
2. The training file: priors, values, age, sex and opening statements are counted.
3. `conditional_tables.json`: `{condition: {"prior": p, "findings": {code: P(yes) or {value: p}}}}`, nothing on age or sex.

How an evidence is read, in tables and in patients alike. `values[0]` is the default: what an evidence has that a patient does
not list. A default is an ordinary answer (no travel, no radiation, intensity 0), but a child is only known while its parent is
active: what is listed under an absent parent is dropped, what is not listed under an active one has the default. A
multi-choice evidence counts as one draw, P(value | condition) being the value's share of what is listed.

Does not cover: the release's differential diagnoses (a rule-based system's, not needed), nor making cases (`medenv.cases.ddxplus`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenv.errors import KnowledgeError
from medenv.knowledge.base import YES, Condition, Finding, KnowledgeBase, Link
from medenv.knowledge.ddxplus_patients import OLDEST
from medenv.knowledge.ddxplus_release import AGE_BANDS, Release, Tables, read_release, read_tables

FLOOR = 1e-3  # least P(yes) and P(no) of a binary finding; values of others get at least FLOOR / number of values
SETTING = "primary"


def load_knowledge(directory: str | Path, floor: float = FLOOR) -> KnowledgeBase:
    """The base `ddxplus@1` of the release in `directory`.

    Condition ids are the names in the PATHOLOGY column, finding ids the evidence codes. DDXPlus's severity (1 the most severe)
    is turned into ours (5 deadly); it also stands in for the triage level, and 1 and 2 are marked as must-not-miss. `floor` in
    (0, 0.5) bounds every probability away from 0 and 1. Raises `KnowledgeError` for a missing or malformed file.

    A training file of a million patients takes about a quarter of a minute, once per process; `save_counts` makes it once for all.
    """
    if not 0.0 < floor < 0.5:
        raise KnowledgeError(f"floor is {floor!r}: give a probability above 0 and below 0.5, such as {FLOOR}")
    release = read_release(Path(directory))
    tables = read_tables(Path(directory), release)
    given = {c: {f.id: _given(f, tables, c, release.by_id) for f in release.findings} for c in release.conditions}
    findings = tuple(_with_background(f, given, tables, floor) for f in release.findings)
    links = []
    for condition in release.conditions:
        for finding in findings:
            shares = given[condition][finding.id]
            if shares is not None and not (_can_open(finding) and shares[1] <= floor):  # then the background says the same
                links.append(_link(condition, finding, shares, floor))
    present = np.array([[(given[c][f.id] or (1.0, 0.0))[1] for f in findings if _can_open(f)] for c in release.conditions])
    return KnowledgeBase(
        name="ddxplus",
        version=1,
        conditions=tuple(_with_tables(c, tables, floor) for c in release.conditions.values()),
        findings=findings,
        links=tuple(links),
        age_bands=AGE_BANDS if tables.age else (0,),
        oldest=OLDEST,
        settings={SETTING: 1.0},
        population={SETTING: ((1.0,) * len(AGE_BANDS),) * 2} if tables.age else {},
        complaints=_complaints(release, findings, np.clip(present, floor, 1.0 - floor), tables, floor),
        notes=(*release.notes, f"probabilities from {tables.source}; floor {floor:g}"),
    )


def _given(finding: Finding, tables: Tables, condition: str, by_id: dict[str, Finding]) -> tuple[float, ...] | None:
    """P(values | condition, parent active), before the floor. What a condition never shows has the default; None: the parent
    is never active, so nothing is known.
    """
    table = tables.values[condition].get(finding.id)
    if table is not None:
        return tuple(table.get(v, 0.0) for v in finding.values)
    if finding.parent is not None and not tables.active[condition].get(finding.parent, 0.0):
        return None
    return (1.0, *(0.0 for _ in finding.values[1:]))


def _floored(finding: Finding, shares: Sequence[float], floor: float) -> tuple[float, ...]:
    """Binary: clipped to [floor, 1 - floor]. Others: mixed with floor parts of the uniform distribution."""
    if finding.type == "binary":
        yes = min(max(shares[1], floor), 1.0 - floor)
        return (1.0 - yes, yes)
    return tuple((1.0 - floor) * p + floor / len(shares) for p in shares)


def _with_background(finding: Finding, given: dict[str, dict[str, Any]], tables: Tables, floor: float) -> Finding:
    """Binary root: the floor. A child: its average over the patients whose parent is active, so that it moves no belief
    in a condition of which nothing is known.
    """
    if finding.parent is None:
        return replace(finding, background=(1.0 - floor, floor)) if finding.type == "binary" else finding
    total = [0.0] * len(finding.values)
    for c, prior in tables.prior.items():
        if (shares := given[c][finding.id]) is not None:
            weight = prior * tables.active[c].get(finding.parent, 0.0)
            total = [t + weight * p for t, p in zip(total, shares, strict=True)]
    mass = math.fsum(total)
    mean = [t / mass for t in total] if mass else [1.0 / len(total)] * len(total)
    return replace(finding, background=_floored(finding, mean, floor))


def _link(condition: str, finding: Finding, shares: Sequence[float], floor: float) -> Link:
    p = _floored(finding, shares, floor)
    if finding.type == "binary":
        return Link(condition, finding.id, {YES: p[1]}, fixed=True, source="DDXPlus")
    return Link(condition, finding.id, dict(zip(finding.values, p, strict=True)), source="DDXPlus")


def _with_tables(condition: Condition, tables: Tables, floor: float) -> Condition:
    condition = replace(condition, prior={SETTING: tables.prior[condition.id]})
    if not tables.age:
        return condition
    age = tuple((1.0 - floor) * p + floor / len(AGE_BANDS) for p in tables.age[condition.id])
    female, male = ((1.0 - floor) * p + floor / 2 for p in tables.sex[condition.id])
    return replace(condition, age=age, sex=(female, male))


def _can_open(finding: Finding) -> bool:
    return finding.type == "binary" and finding.parent is None


def _complaints(
    release: Release, findings: Sequence[Finding], present: NDArray[np.float64], tables: Tables, floor: float
) -> dict[str, dict[str, float]]:
    """P(opening | condition): counted where there are counts, mixed with `floor` parts of the simulated, else simulated.

    `present` [D, roots] holds the floored P(yes). DDXPlus opens with one of the present binary evidences at random; the released
    patients open with symptoms, so history comes in only where it was counted or where symptoms alone cannot make up 1.
    """
    roots = [f for f in findings if _can_open(f)]
    symptom = np.array([f.complaint > 0 for f in roots])
    counted = np.array([[tables.openings.get(c, {}).get(f.id, 0.0) for f in roots] for c in release.conditions])
    pool = np.broadcast_to(symptom | counted.any(0), present.shape)
    pool = pool | ((present * pool).sum(1, keepdims=True) < 1.05)
    simulated = _uniform_opening(np.where(pool, present, 0.0))
    shares = np.where(counted.any(1, keepdims=True), (1.0 - floor) * counted + floor * simulated, simulated)
    shares = _capped(shares, np.where(pool, present, 0.0) * (1.0 - 1e-6))
    # Rounded, because the last bits of the quadrature differ between machines and the fingerprint must not.
    return {
        c: {f.id: round(float(p), 9) for f, p in zip(roots, row, strict=True) if p > 0}
        for c, row in zip(release.conditions, shares, strict=True)
    }


def _uniform_opening(present: NDArray[np.float64]) -> NDArray[np.float64]:
    """[D, F] P(f is drawn uniformly from the present ones | at least one is), for independent findings.

    E[1 / (1 + others)] is the integral over t in [0, 1] of prod(1 - p + p t) over the others, a polynomial of degree F - 1,
    for which Gauss-Legendre with F / 2 nodes is exact.
    """
    nodes, weights = np.polynomial.legendre.leggauss(max(1, (present.shape[1] + 1) // 2))
    t = (nodes + 1.0) / 2.0
    factor = 1.0 - present[:, :, None] * (1.0 - t)  # [D, F, nodes], > 0
    c = present * (factor.prod(1, keepdims=True) / factor * (weights / 2.0)).sum(2)
    return np.asarray(c / c.sum(1, keepdims=True))


def _capped(shares: NDArray[np.float64], room: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shares with c <= room, the surplus spread over the rest in proportion, then over what room is left."""
    out = np.minimum(shares, room)
    for _ in range(shares.shape[1]):
        short = 1.0 - out.sum(1, keepdims=True)
        open_ = np.where(out < room, shares, 0.0)
        if (short <= 1e-12).all() or not open_.any():
            break
        out = np.minimum(room, out + short * open_ / np.maximum(open_.sum(1, keepdims=True), 1e-300))
    left = room - out
    return np.asarray(out + np.maximum(0.0, 1.0 - out.sum(1, keepdims=True)) * left / np.maximum(left.sum(1, keepdims=True), 1e-300))
