"""Case sources: purity, tokens, splits, loaded sets, noise that belongs to the case, and a sampled case loaded again."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from conftest import strict_base, tiny_base
from ddxplus_fixture import draw_rows, write_patients

from medenv.cases.case import SPLITS, Case
from medenv.cases.loaded import LoadedCases
from medenv.cases.named import case_source
from medenv.cases.sampled import SampledCases
from medenv.cases.source import NO_OPENING
from medenv.errors import CaseError, UnknownName
from medenv.knowledge.base import Condition, Finding, KnowledgeBase
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.testing import check_cases


def sampled_as_cases(tables: Compiled, number: int, split: str = "all") -> tuple[np.ndarray, list[Case]]:
    source = SampledCases(tables, split)
    handles = source.next(np.full(number, 9, np.uint64), np.arange(number, dtype=np.uint64))
    return handles, [source.case(int(h)) for h in handles]


def test_set_of_values__unlocks_what_any_of_them_unlocks() -> None:
    spread = Finding("spread", "spread", "multi_choice", ("a", "b", "c"), background=(0.4, 0.3, 0.3))
    child = Finding("child", "child", parent="spread", activated_by=("b",), background=(0.5, 0.5))
    deeper = Finding("deeper", "deeper", parent="child", activated_by=("yes",), background=(0.5, 0.5))
    opening = Finding("opening", "opening", background=(0.0, 1.0), complaint=1.0)
    base = KnowledgeBase("nested", 0, (Condition("one", "One", {"primary": 1.0}, (1.0,)),), (opening, spread, child, deeper), ())
    answers = {"opening": ("yes",), "spread": ("a", "b"), "child": ("yes",), "deeper": ("no",)}
    kept = Case(30, "female", "primary", "one", answers, "opening")
    alone = Case(31, "female", "primary", "one", {"opening": ("yes",), "spread": ("a",)}, "opening")
    for case, noise, open_ in ((kept, 0.0, True), (alone, 0.0, False)):
        env = gym.make("MedConsult-v0", knowledge=base, cases=[case], split="all", noise=noise)
        env.reset(seed=0)
        observation = env.step(1)[0]
        assert bool(observation["action_mask"][2]) is open_
    # Misreported as active, the parent's child and grandchild are drawn: neither stays unknown.
    noisy = LoadedCases(compiled(base, 0.5), [alone], "all")
    q = np.arange(4)
    rows = noisy.rows(np.zeros(4, np.uint64), np.zeros(4, int), np.zeros(4, int), q)
    assert (rows != noisy.tables.unknown_row).all()


@pytest.mark.parametrize("base", ["synthetic:12x50", "synthetic:3x8", "builtin"])
def test_sampled__conforms(base: str) -> None:
    tables = compiled(knowledge_base(base), 0.05)
    check_cases(SampledCases(tables, "train"), [SampledCases(tables, "validation"), SampledCases(tables, "test")])
    check_cases(SampledCases(tables, "all"), number=100)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_loaded__conforms(noise: float) -> None:
    tables = compiled(tiny_base(), noise)
    cases = [dataclasses.replace(c, split="") for c in sampled_as_cases(tables, 300)[1]]
    cases += [dataclasses.replace(cases[0], values={**cases[0].values, "spots": ("face", "back")})]
    train, validation, test = (LoadedCases(tables, cases, split) for split in SPLITS)
    check_cases(train, [validation, test])
    check_cases(test, [validation])
    assert len(train) + len(validation) + len(test) == len(cases) == len(LoadedCases(tables, cases, "all"))
    assert 0.6 < len(train) / len(cases) < 0.8


def test_sampled_splits__share_no_key() -> None:
    tables = compiled(tiny_base())
    stream, episode = np.arange(4000, dtype=np.uint64), np.arange(4000, dtype=np.uint64)
    keys = [set(SampledCases(tables, split).next(stream, episode).tolist()) for split in SPLITS]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    every = SampledCases(tables, "all").next(stream, episode)
    assert set((every & np.uint64(3)).tolist()) == {0, 1, 2}, "`all` draws from all three, and nothing else"


def test_duplicates__stay_in_one_split() -> None:
    cases = [dataclasses.replace(c, split="") for c in sampled_as_cases(compiled(tiny_base()), 200)[1]]
    twins = [dataclasses.replace(c, values=dict(reversed(list(c.values.items())))) for c in cases]
    assert [c.id for c in cases] == [c.id for c in twins]
    assert [c.assigned_split for c in cases] == [c.assigned_split for c in twins]
    assert all(dataclasses.replace(c, split="test").assigned_split == "test" for c in cases), "a source's own split wins"


def test_ids__tell_content_apart() -> None:
    case = Case(30, "female", "primary", "flu", {"fever": ("yes",), "cough": ()}, "fever")
    assert case.id == dataclasses.replace(case, values={"fever": ("yes",)}).id, "unknown and missing are the same"
    assert case.id == dataclasses.replace(case, age=30.0, split="test").id
    changes = [{"age": 31.0}, {"sex": "male"}, {"truth": "cold"}, {"opening": None}, {"values": {"fever": ("no",)}}]
    assert len({dataclasses.replace(case, **c).id for c in changes} | {case.id}) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize("base", ["tiny", "synthetic:12x50"])
def test_sampled_case__materialised_and_loaded_answers_alike(base: str) -> None:
    tables = compiled(tiny_base() if base == "tiny" else knowledge_base(base))
    handles, cases = sampled_as_cases(tables, 80)
    loaded, source = LoadedCases(tables, cases, "all"), SampledCases(tables, "all")
    index = np.arange(80, dtype=np.uint64)
    before, after = source.open(handles), loaded.open(index)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(before, after, strict=True))
    asked = 0
    for i, case in enumerate(cases):
        assert case.split == SPLITS[int(handles[i]) & 3] and case.opening is not None
        for name in case.values:
            q = tables.base.finding_index[name]
            if q != before.opening[i]:
                args = int(before.truth[i]), int(before.cell[i]), q
                assert source.row(int(handles[i]), *args) == loaded.row(i, *args)
                asked += 1
        for f in tables.base.findings:
            active = f.parent is None or set(case.values.get(f.parent, ())) & set(f.activated_by)
            allowed = tables.allowed[before.cell[i], tables.base.finding_index[f.id]]
            assert (f.id in case.values) == bool(active and allowed)
    assert asked > 80 * 4


def test_noise__belongs_to_the_case() -> None:
    """The same patient misreports the same answers in any list and place; at noise 0 nothing is misreported."""
    cases = [dataclasses.replace(c, split="") for c in sampled_as_cases(compiled(tiny_base()), 200)[1]]
    quiet, noisy = compiled(tiny_base()), compiled(tiny_base(), 0.3)
    rows = _all_rows(LoadedCases(noisy, cases, "all"))
    assert (rows == _all_rows(LoadedCases(noisy, cases[::-1], "all"))[::-1]).all()
    assert (rows[7] == _all_rows(LoadedCases(noisy, cases[7:8], "all"))[0]).all()
    changed = (_values(noisy, rows) != _values(quiet, _all_rows(LoadedCases(quiet, cases, "all"))))[:, [0, 1, 3]]
    opening = LoadedCases(quiet, cases, "all").open(np.arange(200, dtype=np.uint64)).opening
    assert not changed[np.arange(200), np.minimum(opening, 2)][opening < 2].any(), "the opening statement is never misreported"
    assert 0.03 < changed.mean() < 0.2


def _all_rows(source: LoadedCases) -> np.ndarray:
    n, Q = len(source.cases), source.tables.num_questions
    i, q = np.repeat(np.arange(n, dtype=np.uint64), Q), np.tile(np.arange(Q), n)
    opened = source.open(i)
    return source.rows(i, opened.truth, opened.cell, q).reshape(n, Q)


def _values(tables: Compiled, rows: np.ndarray) -> np.ndarray:
    return tables.row_value[np.minimum(rows, tables.unknown_row)]


def test_unknown_finding__discloses_nothing() -> None:
    tables = compiled(tiny_base())
    source = LoadedCases(tables, [Case(20, "male", "primary", "flu", {"fever": ("yes",), "cough": ()})], "all")
    assert source.open(np.zeros(1, np.uint64)).opening.tolist() == [NO_OPENING]
    for name in ("cough", "smoker"):
        assert source.row(0, 0, 0, tables.base.finding_index[name]) == tables.unknown_row


BAD = {
    "no case 'test'": ([], "no case in split"),
    "unknown finding": ([Case(3, "male", "primary", "flu", {"fevr": ("yes",)})], "did you mean 'fever'"),
    "unknown value": ([Case(3, "male", "primary", "flu", {"spots": ("nose",)})], "has no value 'nose'"),
    "two values of a categorical": ([Case(3, "male", "primary", "flu", {"cough_type": ("dry", "wet")})], "has 2 values"),
    "unknown condition": ([Case(3, "male", "primary", "plague", {})], "'plague' is not a condition"),
    "unknown sex": ([Case(3, "M", "primary", "flu", {})], "unknown sex 'M'"),
    "opening denied": ([Case(3, "male", "primary", "flu", {"fever": ("no",)}, "fever")], "can't be its opening"),
    "opening of another type": ([Case(3, "male", "primary", "flu", {"spots": ("face",)}, "spots")], "can't be its opening"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_case__is_refused_in_words(what: str) -> None:
    cases, words = BAD[what]
    with pytest.raises((CaseError, UnknownName), match=words):
        LoadedCases(compiled(tiny_base()), cases, "all")


@pytest.mark.parametrize("token", ["", "zz", "0" * 15, "g" * 16, "f" * 16, "-" + "1" * 15])
def test_bad_token__is_a_case_error(token: str) -> None:
    with pytest.raises(CaseError, match="case"):
        SampledCases(compiled(tiny_base())).handle(token)
    with pytest.raises(CaseError, match="none of the 1 loaded"):
        LoadedCases(compiled(tiny_base()), [Case(3, "male", "primary", "flu")], "all").handle(token)


def test_split_names__are_checked() -> None:
    with pytest.raises(UnknownName, match="did you mean 'validation'"):
        SampledCases(compiled(tiny_base()), "validatoin")
    with pytest.raises(CaseError, match="no case in split 'test'"):
        LoadedCases(compiled(tiny_base()), [Case(3, "male", "primary", "flu", split="train")], "test")


def test_complaint__selects_of_given_cases_those_that_open_with_it() -> None:
    tables = compiled(tiny_base(), complaint="fever")
    cases = [Case(3, "male", "primary", "flu", {q: ("yes",)}, q) for q in ("fever", "cough", "fever")]
    source = LoadedCases(tables, cases, "all")
    assert source.members.tolist() == [0, 2]
    with pytest.raises(CaseError, match="none of the 1 cases in split 'all' opens with complaint 'fever'"):
        LoadedCases(tables, cases[1:2], "all")


def test_named_sources(tmp_path, ddxplus_release) -> None:  # type: ignore[no-untyped-def]
    tables = compiled(knowledge_base(f"ddxplus:{ddxplus_release}"))
    assert isinstance(case_source("sampled", tables, "train"), SampledCases)
    file = write_patients(tmp_path / "release_test_patients.csv", draw_rows(60, 3))
    source = case_source(f"ddxplus:{file}", tables, "test")
    assert len(source) == 60
    check_cases(source)
    assert case_source(source, tables, "test") is source
    with pytest.raises(CaseError, match="other tables"):
        case_source(source, compiled(tiny_base()), "test")
    with pytest.raises(UnknownName, match="case source"):
        case_source("sampeld", tables, "train")


def test_loaded_stream__is_uniform_over_its_split() -> None:
    tables = compiled(strict_base())
    cases = [Case(i, "male", "primary", "one", split="train" if i % 2 else "test") for i in range(20)]
    drawn = LoadedCases(tables, cases, "train").next(np.full(20_000, 7, np.uint64), np.arange(20_000, dtype=np.uint64))
    counts = np.bincount(drawn.astype(int), minlength=20)
    assert not counts[::2].any() and ((counts[1::2] - 2000) ** 2 / 2000).sum() < 27.9  # chi-square, 9 degrees of freedom, p = .001
