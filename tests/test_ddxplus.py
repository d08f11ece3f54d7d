"""The DDXPlus loaders, on an invented release; with MEDENV_DATA set to a directory that holds `ddxplus_en`, on the real one."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from ddxplus_fixture import HEADER, draw_rows, row, write_patients, write_release

from medenv.cases.case import Case
from medenv.cases.ddxplus import KINDS, load_cases
from medenv.errors import CaseError, KnowledgeError, UnknownName
from medenv.knowledge.base import KnowledgeBase
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.ddxplus import FLOOR, load_knowledge
from medenv.knowledge.ddxplus_release import AGE_BANDS, COUNTS_FILE, save_counts

REAL = Path(os.environ.get("MEDENV_DATA", "")) / "ddxplus_en"
real = pytest.mark.skipif(
    "MEDENV_DATA" not in os.environ or not REAL.is_dir(), reason="MEDENV_DATA does not name a directory with ddxplus_en"
)


def links(base: KnowledgeBase, condition: str) -> dict[str, dict[str, float]]:
    return {k.finding: dict(k.probabilities) for k in base.links if k.condition == condition}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release")


@pytest.fixture
def base(release: Path) -> KnowledgeBase:
    return load_knowledge(release)


def test_metadata(base: KnowledgeBase) -> None:
    assert base.id == "ddxplus@1" and base.oldest >= 109 and base.age_bands == (0,)
    red = base.condition("Red fever")
    assert (red.severity, red.triage, red.must_not_miss, red.icd10) == (5, 1, True, "A01, B02")
    assert {f.id: f.type for f in base.findings if f.type != "binary"} == {
        "E_4": "categorical",
        "E_5": "multi_choice",
        "E_6": "scale",
        "E_9": "categorical",
    }
    assert base.finding("E_6").parent == "E_3" and base.finding("E_6").activated_by == ("yes",)
    assert base.finding("E_6").values == ("0", "1", "2", "3")
    assert base.finding("E_11").parent is None and any("E_11" in n for n in base.notes)
    assert base.finding("E_9").parent is None and base.finding("E_9").values[0] == "V_9N"
    assert base.finding("E_9").answers == {"V_9N": "no", "V_9NOR": "North", "V_9SUD": "South"}
    assert base.finding("E_1").question == "Do you have E_1?"


def test_children_hold_given_their_parent(base: KnowledgeBase) -> None:
    """The default's share that is due to absent parents is taken out of the tables."""
    given = links(base, "Red fever")
    assert given["E_6"] == pytest.approx({"0": 0.25, "1": 0.5, "2": 0.25, "3": 0.0}, abs=FLOOR)
    assert given["E_4"]["V_4NA"] == pytest.approx(FLOOR / 3)
    assert sum(given["E_5"].values()) == pytest.approx(1.0)
    assert links(base, "Green spin")["E_6"]["0"] == pytest.approx(1.0, abs=FLOOR)  # never listed under its parent: the default
    assert "E_6" not in links(base, "Blue cough")  # the parent is never active: nothing is known, the average stands in
    assert base.finding("E_6").background[2] > base.finding("E_6").background[0]


@pytest.mark.parametrize("floor", [1e-4, 1e-3, 1e-2])
def test_floor_bounds_both_sides(release: Path, floor: float) -> None:
    p = compiled(base := load_knowledge(release, floor))
    present = {k.finding: k.probabilities["yes"] for k in base.links if k.condition == "Blue cough" and set(k.probabilities) == {"yes"}}
    assert present["E_2"] == 1.0 - floor and base.finding("E_7").background == (1.0 - floor, floor)
    assert all(v >= floor / 4 - 1e-15 for k in base.links for v in k.probabilities.values())
    assert np.isfinite(p.log_likelihood).all()
    assert base.fingerprint == load_knowledge(release, floor).fingerprint


@pytest.mark.parametrize("floor", [0.0, 0.5, -1.0, math.nan])
def test_bad_floor(release: Path, floor: float) -> None:
    with pytest.raises(KnowledgeError, match="floor"):
        load_knowledge(release, floor)


def test_simulated_openings(base: KnowledgeBase) -> None:
    """Exact against a simulation, at most P(present), and the base compiles."""
    table, given = base.complaints["Red fever"], links(base, "Red fever")
    assert sum(table.values()) == pytest.approx(1.0, abs=1e-7)
    assert set(table) == {"E_1", "E_2", "E_3", "E_7", "E_8"}  # symptoms only
    present = {f: given.get(f, {"yes": FLOOR})["yes"] for f in table}
    assert all(c <= present[f] for f, c in table.items())
    rng, drawn = random.Random(1), dict.fromkeys(table, 0)
    for _ in range(40_000):
        if here := [f for f, p in present.items() if rng.random() < p]:
            drawn[rng.choice(here)] += 1
    total = sum(drawn.values())
    assert {f: n / total for f, n in drawn.items()} == pytest.approx(table, abs=0.012)


def test_openings_stay_below_presence(tmp_path: Path) -> None:
    """A condition with a single symptom: its opening can't exceed P(present), the rest goes where room is left."""
    directory = write_release(tmp_path)
    tables = json.loads((directory / "conditional_tables.json").read_text())
    tables["Blue cough"]["findings"] = {"E_2": 0.98, "E_10": 0.5}
    (directory / "conditional_tables.json").write_text(json.dumps(tables))
    base = load_knowledge(directory)
    assert base.complaints["Blue cough"]["E_2"] <= 0.98
    compiled(base)


@pytest.mark.parametrize("suffix", [".zip", ".csv", "bare"])
def test_counts_agree_with_tables(tmp_path: Path, suffix: str, base: KnowledgeBase) -> None:
    counted = load_knowledge(write_release(tmp_path / "counted", tables=False, training=suffix, rows=4000))
    assert counted.age_bands == AGE_BANDS
    compiled(counted)
    for condition in base.conditions:
        assert counted.condition(condition.id).prior["primary"] == pytest.approx(condition.prior["primary"], abs=0.06)
        exact, seen = links(base, condition.id), links(counted, condition.id)
        assert set(seen) == set(exact)
        for finding, table in exact.items():
            assert seen[finding] == pytest.approx(table, abs=0.12), (condition.id, finding)
        assert counted.complaints[condition.id] == pytest.approx(base.complaints[condition.id], abs=0.08)
    spin = counted.condition("Green spin")
    assert spin.sex[1] == pytest.approx(FLOOR / 2) and spin.age[0] == pytest.approx(FLOOR / 8)


def test_saved_counts_are_the_same_base(tmp_path: Path) -> None:
    directory = write_release(tmp_path, training=".csv")
    first = load_knowledge(directory)
    assert save_counts(directory).name == COUNTS_FILE
    assert load_knowledge(directory).fingerprint == first.fingerprint
    (directory / "release_train_patients.csv").unlink()
    assert load_knowledge(directory).fingerprint == first.fingerprint
    write_patients(directory / "release_train_patients.csv", draw_rows(10, 1))
    with pytest.raises(KnowledgeError, match="run save_counts again"):
        load_knowledge(directory)


def test_french_release(tmp_path: Path, base: KnowledgeBase) -> None:
    directory = write_release(tmp_path / "fr", french=True, training=".zip")
    french = load_knowledge(directory)
    assert [c.id for c in french.conditions] == ["Fièvre rouge", "Toux bleue", "Douleur grise", "Vertige vert"]
    assert french.finding("douleurxx_intens").parent == "douleurxx"
    assert french.finding("trav1").question == "Avez-vous trav1?" and french.finding("trav1").answers["N"] == "non"
    cases, report = load_cases(directory / "release_train_patients.zip", french)
    assert report.split == "train" and len(cases) == 1200
    assert any(c.values.get("douleurxx_endroit") == ("l'aine",) for c in cases)  # quoted otherwise in the CSV
    # The same tables under other names: the same numbers.
    tabled = load_knowledge(write_release(tmp_path / "tabled", french=True))
    assert np.array_equal(compiled(tabled).probability, compiled(base).probability)


def test_no_probabilities_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match=r"release_train_patients.zip"):
        load_knowledge(write_release(tmp_path, tables=False))
    with pytest.raises(KnowledgeError, match=r"release_conditions.json does not exist"):
        load_knowledge(tmp_path / "nowhere")
    with pytest.raises(KnowledgeError, match="to count"):
        save_counts(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("Red fever", "findings", "E_77"), 0.5, "unknown evidence code 'E_77'; did you mean 'E_7'"),
        (("Red fever", "findings", "E_1"), 1.5, r"1\.5"),
        (("Red fever", "findings", "E_9"), {"V_9N": 0.5}, "sum to 0.5"),
        (("Red fever", "findings", "E_9"), {"V_9X": 1.0}, "no value 'V_9X'"),
        (("Red fiver",), {"prior": 0.1, "findings": {}}, "did you mean 'Red fever'"),
        (("Red fever",), {"findings": {}}, "prior"),
    ],
)
def test_bad_tables(release: Path, path: tuple[str, ...], value: object, message: str) -> None:
    file = release / "conditional_tables.json"
    tables = json.loads(file.read_text())
    node = tables
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    file.write_text(json.dumps(tables))
    with pytest.raises(KnowledgeError, match=message):
        load_knowledge(release)


def test_condition_without_patients(tmp_path: Path) -> None:
    directory = write_release(tmp_path, tables=False)
    write_patients(directory / "release_train_patients.csv", [r for r in draw_rows(200, 0) if r[3] != "Grey ache"])
    with pytest.raises(KnowledgeError, match="no patient with 'Grey ache'"):
        load_knowledge(directory)


def test_case_values(tmp_path: Path, base: KnowledgeBase) -> None:
    path = write_patients(
        tmp_path / "release_test_patients.csv",
        [
            row(["E_1", "E_3", "E_4_@_V_4VIV", "E_5_@_V_5FRO", "E_5_@_V_5BAS", "E_6_@_0", "E_9_@_V_9N"], age=109, sex="M"),
            row(["E_1"]),
        ],
    )
    (first, second), report = load_cases(path, base)
    assert (first.age, first.sex, first.truth, first.opening, first.split) == (109.0, "male", "Red fever", "E_1", "test")
    assert first.values["E_5"] == ("V_5FRO", "V_5BAS") and first.values["E_6"] == ("0",)
    assert first.values["E_2"] == ("no",) and first.values["E_9"] == ("V_9N",)
    assert set(second.values) == {f.id for f in base.findings if f.parent is None}  # no child: the parent is absent
    assert second.values["E_9"] == ("V_9N",)  # a root that is not listed has its default
    assert report.counts == {} and report.cases == 2 and len(report.lines()) == 1


def test_values_are_a_mapping(tmp_path: Path, base: KnowledgeBase) -> None:
    path = write_patients(tmp_path / "x.csv", [row(["E_1", "E_3", "E_4_@_V_4VIV"])])
    (case,), report = load_cases(path, base)
    plain = dict(case.values)
    assert case.values == plain and len(case.values) == len(plain) == 11 and "E_99" not in case.values
    assert pickle.loads(pickle.dumps(case)) == case and case.id == pickle.loads(pickle.dumps(case)).id
    assert case.split == "" and case.assigned_split in ("train", "validation", "test") and "by content" in report.lines()[0]


@pytest.mark.parametrize(
    ("tokens", "opening", "kind", "finding", "values"),
    [
        (["E_1", "E_6_@_0"], "E_1", "orphan_default", "E_6", None),
        (["E_1", "E_6_@_3"], "E_1", "orphan_value", "E_6", None),
        (["E_1", "E_3", "E_4_@_V_4VIV", "E_5_@_V_5FRO"], "E_1", "default_filled", "E_6", ("0",)),
        (["E_1", "E_3", "E_5_@_V_5NUL", "E_5_@_V_5FRO"], "E_1", "default_with_others", "E_5", ("V_5FRO",)),
        (["E_1", "E_9_@_V_9N", "E_9_@_V_9NOR"], "E_1", "two_values", "E_9", ()),
        (["E_1", "E_1"], "E_1", "repeated", "E_1", ("yes",)),
        (["E_1"], "E_2", "opening_not_listed", "E_2", ("no",)),
        (["E_1", "E_9_@_V_9NOR"], "E_9_@_V_9NOR", "opening_cannot_open", "E_9", ("V_9NOR",)),
    ],
)
def test_what_is_put_right_is_reported(
    tmp_path: Path, base: KnowledgeBase, tokens: list[str], opening: str, kind: str, finding: str, values: tuple[str, ...] | None
) -> None:
    (case,), report = load_cases(write_patients(tmp_path / "x.csv", [row(tokens, opening)]), base)
    assert report.counts[kind] == 1 and kind in KINDS and report.examples[kind][0].startswith("line 2: ")
    assert case.values.get(finding) == values
    assert case.opening == (None if kind.startswith("opening") else "E_1")
    assert any(KINDS[kind] in line for line in report.lines())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(["E_1", "E_111"]), "line 3: unknown evidence code 'E_111'; did you mean 'E_11'"),
        (row(["E_1", "E_9_@_V_9M"]), "line 3: .*E_9 has no value 'V_9M'; did you mean 'V_9N'"),
        (row(["E_1_@_1"]), "binary evidence E_1"),
        (row(["E_1"], opening="E_1x"), "line 3: unknown evidence code 'E_1x'"),
        (row(["E_1"], condition="Red fevre"), "line 3: unknown condition 'Red fevre'; did you mean 'Red fever'"),
        (row([]), "line 3: the patient has no evidence"),
        (row(["E_1"], age=111), "line 3: AGE is '111'"),
        (row(["E_1"], age="4O"), "line 3: AGE is '4O'"),
        (row(["E_1"], sex="X"), "line 3: SEX is 'X'"),
        (row(["E_1"])[:-1], "line 3: 5 fields where the header has 6"),
        ([40, "[]", "F", "Red fever", "['E_1", "E_1"], "line 3: EVIDENCES is"),
    ],
)
def test_bad_rows(tmp_path: Path, base: KnowledgeBase, bad: list[object], message: str) -> None:
    path = write_patients(tmp_path / "x.csv", [row(["E_1"]), bad])
    with pytest.raises(CaseError, match=message) as caught:
        load_cases(path, base)
    assert "x.csv" in str(caught.value)


def test_bad_files(tmp_path: Path, base: KnowledgeBase) -> None:
    with pytest.raises(CaseError, match="does not exist"):
        load_cases(tmp_path / "none.csv", base)
    with pytest.raises(CaseError, match=r"line 1: the header .* lacks INITIAL_EVIDENCE"):
        load_cases(write_patients(tmp_path / "x.csv", [row(["E_1"])[:-1]], HEADER[:-1]), base)
    with pytest.raises(CaseError, match="no patient"):
        load_cases(write_patients(tmp_path / "x.csv", []), base)
    whole = write_patients(tmp_path / "x.csv", draw_rows(5, 0)).read_bytes()
    cut = tmp_path / "cut.csv"
    cut.write_bytes(whole[: whole.rindex(b'"') - 3])  # within a quoted field
    with pytest.raises(CaseError, match="not readable as CSV"):
        load_cases(cut, base)
    packed = write_patients(tmp_path / "release_test_patients.zip", draw_rows(5, 0)).read_bytes()
    broken = tmp_path / "broken.zip"
    broken.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CaseError, match="not a complete zip"):
        load_cases(broken, base)


def test_splits(tmp_path: Path, base: KnowledgeBase) -> None:
    for name, split in (("release_train_patients.zip", "train"), ("release_validate_patients.csv", "validation"), ("my_test.csv", "test")):
        cases, report = load_cases(write_patients(tmp_path / name, draw_rows(3, 0)), base)
        assert report.split == split and {c.split for c in cases} == {split}
    assert load_cases(tmp_path / "my_test.csv", base, split="train")[1].split == "train"
    assert load_cases(tmp_path, base, split="validation")[1].path.endswith("release_validate_patients.csv")
    with pytest.raises(CaseError, match="which split"):
        load_cases(tmp_path, base)
    with pytest.raises(CaseError, match="no patients file for the split 'test'"):
        load_cases(tmp_path, base, split="test")
    with pytest.raises(UnknownName, match="validation"):
        load_cases(tmp_path, base, split="validate")


@real
def test_real_release() -> None:
    base = load_knowledge(REAL)
    assert len(base.conditions) == 49 and len(base.findings) == 223
    assert sum("code_question" in n for n in base.notes) == 5
    tables = compiled(base)
    assert np.isfinite(tables.log_likelihood).all()
    cases, report = load_cases(next(REAL.glob("release_test_patients*")), base)
    assert len(cases) == report.cases >= 1001 and all(c.split == "test" and c.opening for c in cases)
    assert set(report.counts) <= {"orphan_default", "default_filled"}
    assert np.mean([_posterior_top(base, tables, c) == c.truth for c in cases[:300]]) > 0.98


def _posterior_top(base: KnowledgeBase, tables: Compiled, case: Case) -> str:
    """The likeliest condition after every finding of the case: a plausibility check of tables and loader together."""
    assert case.opening is not None
    cell = tables.cell(case.age, case.sex, case.setting)
    total = tables.opening_log[cell, tables.opening_of[base.finding_index[case.opening]]].astype(float)
    for finding, values in case.values.items():
        if finding != case.opening:
            q = base.finding_index[finding]
            rows = [tables.row_of[cell, q] + base.findings[q].values.index(v) for v in values]
            total = total + tables.log_likelihood[rows].mean(0)
    return base.conditions[int(total.argmax())].id
