"""The base that comes with the package: its size, its sources, and that it can be played. Not whether its figures are right."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from importlib import resources

import numpy as np
import pytest

from medenv.knowledge.base import SEXES, YES, Condition, Finding
from medenv.knowledge.compiled import compiled
from medenv.knowledge.files import builtin, load_sources

MUST_NOT_MISS = {
    *("myocardial_infarction", "pulmonary_embolism", "aortic_dissection", "subarachnoid_haemorrhage", "meningitis", "sepsis"),
    *("ectopic_pregnancy", "testicular_torsion", "appendicitis", "stroke", "anaphylaxis", "diabetic_ketoacidosis", "cauda_equina"),
    *("acute_glaucoma", "giant_cell_arteritis", "septic_arthritis", "intussusception", "preeclampsia"),
}
BASE = builtin()
CELLS = [(sex, band) for band in range(len(BASE.age_bands)) for sex in SEXES]


def _possible(condition: Condition, sex: str, band: int) -> bool:
    return condition.age[band] * condition.sex[SEXES.index(sex)] > 0


def _background(finding: Finding, sex: str, band: int) -> float:
    """P(yes) without a cause, 0 where sex or age rule the finding out."""
    edges = [*BASE.age_bands, BASE.oldest + 1]
    if (finding.sex and finding.sex != sex) or edges[band + 1] - 1 < finding.ages[0] or edges[band] > finding.ages[1]:
        return -1.0
    return finding.background_by_cell.get((sex, band), finding.background)[1]


def _openings(condition: Condition, sex: str, band: int) -> list[float]:
    """P(yes | condition) of each finding that can open a consultation in this cell."""
    links = {link.finding: link for link in BASE.links if link.condition == condition.id}
    out = []
    for finding in BASE.findings:
        background = _background(finding, sex, band) if finding.complaint else -1.0
        if background < 0:
            continue
        link = links.get(finding.id)
        p = link.probabilities[YES] if link else 0.0
        out.append(p if link and link.fixed else 1 - (1 - p) * (1 - background))
    return out


def test_builtin__is_as_large_as_promised() -> None:
    kinds = Counter(f.kind for f in BASE.findings)
    assert BASE.id == "builtin@0"
    assert len(BASE.conditions) >= 60
    assert len(BASE.findings) >= 170
    assert kinds["ask"] >= 115
    assert kinds["examine"] >= 35
    assert kinds["order"] >= 25


def test_builtin__flags_what_must_not_be_missed() -> None:
    assert {c.id for c in BASE.conditions if c.must_not_miss} >= MUST_NOT_MISS


def test_builtin__codes_look_like_icd_10_cm() -> None:
    codes = [c.icd10 for c in BASE.conditions]
    assert all(re.fullmatch(r"[A-Z]\d[0-9A-Z](\.[0-9A-Z]{1,4})?", code) for code in codes), codes
    assert len(set(codes)) == len(codes)


def test_builtin__every_source_is_cited_and_used() -> None:
    sources = load_sources(resources.files("medenv.knowledge").joinpath("builtin"))
    used = {x for items in (BASE.conditions, BASE.findings, BASE.links) for x in (i.source for i in items)}
    assert used == set(sources)
    assert all(len(citation) > 20 for citation in sources.values())


def test_builtin__grades_are_honest_about_estimates() -> None:
    assert {link.grade for link in BASE.links} <= set("ABCD")
    assert all((link.grade in "CD") == (link.source == "estimate") for link in BASE.links)
    assert {link.source for link in BASE.links if link.grade == "A"} == {"hagan2000", "beek2004"}  # the only two read against the figures


@pytest.mark.parametrize("condition", BASE.conditions, ids=lambda c: c.id)
def test_builtin__every_condition_can_be_recognised_and_can_open(condition: Condition) -> None:
    links = [link for link in BASE.links if link.condition == condition.id]
    strong = [link for link in links if BASE.finding(link.finding).complaint and link.probabilities[YES] >= 0.05]
    assert len(links) >= 10
    assert len(strong) >= 3
    for sex, band in CELLS:
        if _possible(condition, sex, band):
            openings = _openings(condition, sex, band)
            assert sum(openings) > 1.05, (sex, band)
            assert sum(p > 0 for p in openings) >= 3


def test_builtin__costs_follow_the_kind_of_question() -> None:
    for finding in BASE.findings:
        low, high = {"ask": (1, 1), "examine": (1.5, 2), "order": (3, 8)}[finding.kind]
        assert low <= finding.cost <= high, finding.id


def test_builtin__money_delay_and_invasiveness_follow_the_kind_of_question() -> None:
    for finding in BASE.findings:
        seen = (finding.money, finding.delay, finding.invasiveness)
        if finding.kind == "order":
            assert 1 <= finding.money <= 500, finding.id
            assert 0.1 <= finding.delay <= 168, finding.id
            assert finding.invasiveness <= 0.6, finding.id
        else:
            assert seen[:2] == (0, 0), finding.id
            assert finding.invasiveness <= (0.2 if finding.kind == "examine" else 0), finding.id


@pytest.mark.parametrize(
    ("field", "rising"),
    [
        ("money", ("urine_dipstick", "tsh", "chest_xray", "ct_head", "ct_abdomen")),
        ("delay", ("glucose", "ecg", "troponin", "tsh", "pertussis_pcr", "nerve_conduction")),
        ("invasiveness", ("fever", "chest_xray", "troponin", "cervical_motion_tenderness", "joint_aspirate_pus", "lumbar_puncture")),
    ],
)
def test_builtin__a_greater_test_costs_more(field: str, rising: tuple[str, ...]) -> None:
    costs = [getattr(BASE.finding(name), field) for name in rising]
    assert all(low < high for low, high in itertools.pairwise(costs)), costs


def test_builtin__every_question_and_every_value_has_words() -> None:
    for finding in BASE.findings:
        assert finding.question, finding.id
        assert set(finding.answers) == set(finding.values), finding.id
        assert all(finding.answers.values()), finding.id


def test_builtin__every_finding_has_a_background_and_a_link() -> None:
    linked = {link.finding for link in BASE.links}
    for finding in BASE.findings:
        assert len(finding.background) == len(finding.values), finding.id
        assert finding.id in linked


@pytest.mark.parametrize(("noise", "difficulty", "setting"), [(0.0, 0.0, None), (0.05, 1.0, "primary"), (0.05, 0.0, "emergency")])
def test_builtin__compiles(noise: float, difficulty: float, setting: str | None) -> None:
    arrays = compiled(BASE, noise, difficulty, setting)
    assert np.isfinite(arrays.log_likelihood).all()
    assert arrays.cell_weight.sum() == pytest.approx(1.0)


def test_builtin__the_opening_alone_is_not_the_diagnosis() -> None:
    arrays = compiled(BASE)
    share = np.diff(arrays.joint_threshold.astype(float), prepend=0.0) / 2.0**32
    best = np.zeros((arrays.cell_weight.shape[0], arrays.num_questions))
    np.maximum.at(best, (arrays.joint_cell, arrays.joint_opening), share)
    assert 0.2 < best.sum() < 0.45
