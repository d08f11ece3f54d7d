"""Compiled tables: their sums, the opening's p', noise, hard limits, cells, and the errors of bases that cannot be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import strict_base, tiny_base

from medenv.errors import KnowledgeError, MedenvError, UnknownName
from medenv.knowledge.base import Condition, Finding, KnowledgeBase, Link
from medenv.knowledge.compiled import FLOOR, LOG_ZERO, compiled
from medenv.knowledge.named import knowledge_base
from medenv.testing import check_base, check_tables


@pytest.mark.parametrize("base", ["synthetic:2x8", "synthetic:12x30", "synthetic:40x120", "builtin"])
@pytest.mark.parametrize(("noise", "difficulty"), [(0.0, 0.0), (0.1, 0.5), (0.5, 1.0)])
def test_tables__are_sound(base: str, noise: float, difficulty: float) -> None:
    check_tables(compiled(knowledge_base(base), noise, difficulty))


@pytest.mark.parametrize("setting", ["primary", "emergency"])
def test_tables__are_sound_within_a_setting(setting: str) -> None:
    tables = compiled(knowledge_base("synthetic:12x30"), setting=setting)
    check_tables(tables)
    of = np.arange(len(tables.cell_weight)) // (2 * len(tables.base.age_bands))
    assert tables.cell_weight[of != list(tables.base.settings).index(setting)].sum() == 0


def test_check_base__accepts_small_and_synthetic_bases() -> None:
    check_base(tiny_base(), consultations=5_000)
    check_base(strict_base(), noise=0.0, consultations=2_000)
    check_base("synthetic:8x20", difficulty=0.5, consultations=5_000)


def test_rows__give_the_noisy_or_and_p_prime() -> None:
    tables = compiled(tiny_base())
    cell, fever = tables.cell(30, "female", "primary"), tables.base.finding_index["fever"]
    p = 1 - (1 - 0.8) * (1 - 0.05)
    assert tables.probability[tables.row_of[cell, fever] + 1, 0] == pytest.approx((p - 0.7) / (1 - 0.7))
    spots = tables.row_of[cell, tables.base.finding_index["spots"]]
    assert tables.probability[spots : spots + 3, 2] == pytest.approx([0.2 * 0.8, 0.5 + 0.2 * 0.1, 0.3 + 0.2 * 0.1])


def test_noise__mixes_in_the_average_less_for_a_reliable_finding() -> None:
    clean, noisy = compiled(tiny_base()), compiled(tiny_base(), 0.2)
    prior = clean.cell_weight.sum(0)
    for name, flip in (("cough_type", 0.2), ("smoker", 0.1)):
        q = clean.base.finding_index[name]
        for cell in range(4):
            rows = slice(clean.row_of[cell, q], clean.row_of[cell, q] + clean.num_values[q])
            same = slice(noisy.row_of[cell, q], noisy.row_of[cell, q] + clean.num_values[q])
            p = clean.probability[rows]
            assert noisy.probability[same] == pytest.approx((1 - flip) * p + flip * (p @ prior)[:, None])


def test_hard_limit__is_no_and_masked_whatever_the_noise() -> None:
    tables = compiled(tiny_base(), 0.5)
    q = tables.base.finding_index["pregnant"]
    for cell in range(4):
        female = cell % 2 == 0
        assert tables.allowed[cell, q] == female
        if not female:
            assert tables.probability[tables.row_of[cell, q] + 1].max() == 0.0


def test_cells__hold_the_demographics() -> None:
    tables = compiled(knowledge_base("synthetic:12x30"))
    assert tables.cell(0, "female", "primary") == 0
    assert tables.cell(17.9, "male", "primary") == 1
    assert tables.cell(18, "female", "primary") == 2
    assert tables.cell(99, "male", "emergency") == 2 * 3 * 2 - 1
    with pytest.raises(UnknownName, match="did you mean 'female'"):
        tables.cell(3, "femal", "primary")
    with pytest.raises(UnknownName, match="did you mean 'emergency'"):
        tables.cell(3, "male", "emergencies")


def test_prior__within_a_setting_is_the_prevalence() -> None:
    base = knowledge_base("synthetic:12x30")
    weight = compiled(base, setting="emergency").cell_weight.sum(0)
    prior = np.array([c.prior["emergency"] for c in base.conditions])
    assert weight == pytest.approx(prior / prior.sum())


def test_complaint__is_the_patients_of_everybody_who_come_with_it() -> None:
    base = knowledge_base("synthetic:12x50")
    whole = compiled(base, 0.1)
    name = base.findings[whole.joint_opening[np.diff(whole.joint_threshold, prepend=np.uint64(0)).argmax()]].id
    part = compiled(base, 0.1, complaint=name)
    q = base.finding_index[name]
    assert set(part.joint_opening) == {q} and part.name == f"{whole.name}, complaint {name}"
    share = np.diff(whole.joint_threshold.astype(float), prepend=0.0) * (whole.joint_opening == q)
    expected = np.zeros_like(whole.cell_weight)
    np.add.at(expected, (whole.joint_cell, whole.joint_condition), share / share.sum())
    assert part.cell_weight == pytest.approx(expected, abs=1e-6) and 0 < expected.sum(0).min() < 0.5 * expected.sum(0).max()
    for table in ("probability", "opening_log", "log_likelihood"):
        assert (getattr(part, table) == getattr(whole, table)).all(), f"{table}: their answers and the belief are the same"
    check_base(base, 0.1, complaint=name, consultations=5_000)


def test_difficulty__flattens_within_a_cell_and_keeps_the_cells() -> None:
    base = knowledge_base("synthetic:12x30")
    natural, flat = compiled(base).cell_weight, compiled(base, difficulty=1.0).cell_weight
    assert flat.sum(1) == pytest.approx(natural.sum(1))
    assert flat == pytest.approx(np.tile(flat.mean(1, keepdims=True), (1, 12)))


def test_log_likelihood__is_floored_and_keeps_exact_zeros() -> None:
    tables = compiled(strict_base())
    a = tables.row_of[0, tables.base.finding_index["a"]]
    assert tables.log_likelihood[a + 1].tolist() == [0.0, LOG_ZERO]
    possible = tables.probability > 0
    assert tables.log_likelihood[:-1][possible].min() >= np.float32(np.log(FLOOR))
    assert (tables.log_likelihood[tables.unknown_row] == 0).all()


def test_same_arguments__give_the_same_object_and_other_bases_another_fingerprint() -> None:
    assert compiled(tiny_base(), 0.1) is compiled(tiny_base(), 0.1)
    other = dataclasses.replace(tiny_base(), links=tiny_base().links[:-1])
    assert other.fingerprint != tiny_base().fingerprint
    assert dataclasses.replace(tiny_base(), notes=("a remark",)).fingerprint == tiny_base().fingerprint


def _with(**changes: object) -> KnowledgeBase:
    return dataclasses.replace(tiny_base(), **changes)  # type: ignore[arg-type]


def _findings(**changes: object) -> KnowledgeBase:
    first = dataclasses.replace(tiny_base().findings[0], **changes)  # type: ignore[arg-type]
    return _with(findings=(first, *tiny_base().findings[1:]))


BROKEN = {
    "complaint above its finding": (lambda: compiled(_with(complaints={"cold": {"fever": 1.0}})), "is more than"),
    "complaint that is a child": (lambda: compiled(_with(complaints={"cold": {"cough_type": 1.0}})), "can't open"),
    "no opening at all": (lambda: compiled(_with(complaints={}, links=tiny_base().links[4:])), "raise their links"),
    "complaints that sum to 0": (lambda: compiled(_with(complaints={"cold": {"cough": 0.0}})), "sums to 0"),
    "unknown finding in a link": (lambda: _with(links=(Link("flu", "fevre", {"yes": 0.5}),)), "did you mean 'fever'"),
    "link above 1": (lambda: _with(links=(Link("flu", "spots", {"face": 0.7, "back": 0.7}),)), "sum to 1.4"),
    "link twice": (lambda: _with(links=(Link("flu", "fever", {"yes": 0.5}),) * 2), "twice"),
    "not a probability": (lambda: _with(links=(Link("flu", "fever", {"yes": float("nan")}),)), "not a probability"),
    "background that does not sum to 1": (lambda: _findings(background=(0.5, 0.6)), "sum to 1"),
    "unknown type": (lambda: _findings(type="boolean"), "unknown type"),
    "cost below 0": (lambda: _findings(cost=-1.0), "must be >= 0"),
    "age bands": (lambda: _with(age_bands=(0, 50, 40)), "must rise"),
    "condition twice": (lambda: _with(conditions=tiny_base().conditions[:1] * 2), "defined twice"),
    "condition that nobody has": (
        lambda: _with(conditions=(*tiny_base().conditions, Condition("x", "X", {"primary": 0.0}, age=(1, 1)))),
        "nobody can have it",
    ),
    "cycle of parents": (
        lambda: _with(
            findings=(
                *tiny_base().findings,
                Finding("p", "p", parent="q", activated_by=("yes",)),
                Finding("q", "q", parent="p", activated_by=("yes",)),
            )
        ),
        "cycle",
    ),
    "noise": (lambda: compiled(tiny_base(), 0.6), "noise is 0.6"),
    "difficulty": (lambda: compiled(tiny_base(), difficulty=-1), "difficulty is -1"),
    "setting": (lambda: compiled(tiny_base(), setting="primry"), "did you mean 'primary'"),
    "complaint": (lambda: compiled(knowledge_base("builtin"), complaint="chest_pian"), "did you mean 'chest_pain'"),
    "complaint of nobody": (lambda: compiled(knowledge_base("builtin"), complaint="troponin"), "'troponin': nobody in any setting comes"),
    "size": (lambda: knowledge_base("synthetic:1x3"), "at least 2 conditions"),
    "spelling of a size": (lambda: knowledge_base("synthetic:12by3"), "synthetic:CONDITIONSxFINDINGS"),
    "unknown source": (lambda: knowledge_base("builtim"), "did you mean"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_base__is_refused_in_words(what: str) -> None:
    make, words = BROKEN[what]
    with pytest.raises(MedenvError, match=words) as error:
        make()
    assert isinstance(error.value, KnowledgeError | UnknownName) and "\n" not in str(error.value) and len(str(error.value)) < 400
