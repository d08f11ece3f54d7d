"""The plain-text format: what is saved loads again, and each error names the file, the line and the value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medenv.errors import KnowledgeError, MedenvError
from medenv.knowledge.base import Condition, Finding, KnowledgeBase, Link
from medenv.knowledge.files import builtin, load_base, load_sources
from medenv.knowledge.files_write import save_base
from medenv.knowledge.named import knowledge_base

FILES = {
    "base.toml": """name = "small"
version = 3
age_bands = [0, 15, 60]
oldest = 90
notes = ["Invented."]

[settings]
clinic = 0.75
ward = 0.25

[population]
clinic = [[1, 2.5, 3], [1, 2, 3]]
""",
    "conditions.csv": """id,name,icd10,prior_clinic,prior_ward,age_0-14,age_15-59,age_60-90,female,male,severity,triage,must_not_miss,source
damp,Damp lung,J99.1,3,,1,1,2,1,1,3,3,,guide
spots,"Spots, red",L99,1,2.5,2,1,0,1,0.5,1,5,yes,
""",
    "findings.csv": """id,name,type,values,kind,group,parent,activated_by,axis,background,complaint,\
red_flag,cost,reliability,sex,ages,question,yes,no,answers,source
cough,Cough,binary,,ask,,,,,0.1,1,,,,,,Do you cough?,I cough.,I don't.,,guide
cough_kind,Kind of cough,categorical,dry;wet,ask,,cough,yes,character,0.6;0.4,,,,,,,What kind?,,,dry=It is dry.;wet=It is wet.,
rash,Rash,binary,,examine,sign,,,,0.05,1,yes,1.5,0.6,female,10-60,,,,,
film,Film,categorical,clear;shadow;fluid,order,test,,,,0.9;0.06;0.04,,,5,0.9,,,,,,,
""",
    "links.csv": """condition,finding,value,probability,fixed,grade,source
damp,cough,yes,0.9,,A,guide
damp,cough_kind,wet,0.7,,C,
damp,film,shadow,0.5,,B,guide
damp,film,fluid,0.3,,B,guide
spots,rash,yes,0.95,yes,C,
spots,cough,yes,0.2,,C,
""",
    "backgrounds.csv": "finding,sex,ages,background\nrash,female,15-90,0.08\nfilm,,60-90,0.5;0.25;0.25\n",
    "complaints.csv": "condition,finding,probability\nspots,rash,0.8\nspots,cough,0.2\n",
    "sources.csv": 'id,citation\nguide,"An invented guide, 2nd ed."\n',
}

# file, text in it, replacement, line of the error, the value that the message shows
BROKEN = [
    ("base.toml", "version = 3", "version = three", 2, "Invalid value"),
    ("base.toml", "version = 3", 'version = "3"', 2, "'3'"),
    ("base.toml", 'name = "small"\n', "", 1, "'name'"),
    ("base.toml", "oldest = 90", "eldest = 90", 4, "eldest"),
    ("base.toml", "[0, 15, 60]", "[0, 60, 15]", 3, "[0, 60, 15]"),
    ("base.toml", "ward = 0.25", 'ward = "often"', 9, "often"),
    ("base.toml", "clinic = [[1, 2.5, 3], ", "clinic = [[1, 2.5], ", 12, "[1, 2.5]"),
    ("base.toml", "clinic = [[", "clnic = [[", 12, "clnic"),
    ("conditions.csv", ",prior_ward", ",prior_wards", 1, "prior_ward"),
    ("conditions.csv", ",severity,", ",seferity,", 1, "'severity'"),
    ("conditions.csv", "damp,Damp lung,J99.1,3,", "damp,Damp lung,J99.1,many,", 2, "'many'"),
    ("conditions.csv", "damp,Damp lung,J99.1,3,", "damp,Damp lung,J99.1,-3,", 2, "-3"),
    ("conditions.csv", "damp,Damp lung,J99.1,3,", "damp,Damp lung,J99.1,,", 2, "damp"),
    ("conditions.csv", ",1,1,3,3,,guide", ",1,1,7,3,,guide", 2, "7"),
    ("conditions.csv", ",1,1,3,3,,guide", ",1,1,2.5,3,,guide", 2, "'2.5'"),
    ("conditions.csv", ",1,5,yes,", ",1,5,perhaps,", 3, "'perhaps'"),
    ("conditions.csv", '"Spots, red"', "Spots, red", 3, "spots,Spots, red"),
    ("conditions.csv", "3,3,,guide", "3,3,,gude", 2, "did you mean 'guide'"),
    ("conditions.csv", "spots,", "damp,", 3, "'damp'"),
    ("findings.csv", "cough_kind,Kind", "cough,Kind", 3, "'cough'"),
    ("findings.csv", "binary,,ask", "bynary,,ask", 2, "'bynary'"),
    ("findings.csv", "binary,,examine", "binary,,look", 4, "'look'"),
    ("findings.csv", ",,,0.1,1,", ",,,1.1,1,", 2, "'1.1'"),
    ("findings.csv", "0.6;0.4", "0.6;0.5", 3, "'0.6;0.5'"),
    ("findings.csv", "0.9;0.06;0.04", "0.9;0.1", 5, "'0.9;0.1'"),
    ("findings.csv", "ask,,cough,yes", "ask,,coug,yes", 3, "did you mean 'cough'"),
    ("findings.csv", "ask,,cough,yes", "ask,,cough,maybe", 3, "'maybe'"),
    ("findings.csv", "ask,,cough,yes", "ask,,cough_kind,dry", 3, "cough_kind -> cough_kind"),
    ("findings.csv", "female,10-60", "female,60-10", 4, "'60-10'"),
    ("findings.csv", "female,10-60", "femal,10-60", 4, "'femal'"),
    ("findings.csv", "dry=It", "try=It", 3, "'try'"),
    ("findings.csv", "test,,,,0.9", "test,,,,,", 5, "22 cells"),
    ("findings.csv", "5,0.9,", "5,1.9,", 5, "1.9"),
    ("links.csv", "damp,cough,yes,0.9", "damp,coughs,yes,0.9", 2, "did you mean 'cough'"),
    ("links.csv", "damp,cough,yes,0.9", "dampf,cough,yes,0.9", 2, "did you mean 'damp'"),
    ("links.csv", "damp,cough,yes,0.9", "damp,cough,ye,0.9", 2, "did you mean 'yes'"),
    ("links.csv", "damp,cough,yes,0.9", "damp,cough,no,0.9", 2, "no"),
    ("links.csv", "damp,cough,yes,0.9", "damp,cough,yes,nine", 2, "'nine'"),
    ("links.csv", "damp,cough,yes,0.9", "damp,cough,yes,nan", 2, "'nan'"),
    ("links.csv", "damp,cough,yes,0.9", "damp,cough,yes,9", 2, "'9'"),
    ("links.csv", "damp,cough,yes,0.9", "damp,cough,yes,", 2, "blank"),
    ("links.csv", "0.9,,A,guide", "0.9,,A,guides", 2, "did you mean 'guide'"),
    ("links.csv", "0.3,,B,guide", "0.3,,C,guide", 5, "'C'"),
    ("links.csv", "film,fluid,0.3", "film,shadow,0.3", 5, "damp -> film = shadow"),
    ("links.csv", "film,fluid,0.3", "film,fluid,0.8", 4, "1.3"),
    ("links.csv", "value,probability", "value,chance", 1, "probability"),
    ("backgrounds.csv", "rash,female", "rush,female", 2, "did you mean 'rash'"),
    ("backgrounds.csv", "15-90", "20-90", 2, "'20-90'"),
    ("backgrounds.csv", "film,,60-90,0.5", "film,,60-90,0.6", 3, "'0.6;0.25;0.25'"),
    ("backgrounds.csv", "rash,female", "rash,woman", 2, "'woman'"),
    ("backgrounds.csv", "film,,60-90,0.5;0.25;0.25", "rash,,60-90,0.5", 3, "rash, female, 60-90"),
    ("complaints.csv", "spots,cough", "spots,cough_kind", 3, "cough_kind"),
    ("complaints.csv", "spots,cough", "spots,rash", 3, "rash"),
    ("complaints.csv", "0.2", "-0.2", 3, "'-0.2'"),
    ("complaints.csv", "spots,rash,0.8\nspots,cough,0.2", "spots,rash,0\nspots,cough,0", 2, "sums to 0"),
    ("sources.csv", "guide,", ",", 2, "blank"),
    ("sources.csv", '2nd ed."', "2nd ed.", 2, "not CSV"),
]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_load_base__reads_every_column(small: Path) -> None:
    base = load_base(small)
    assert (base.id, base.age_bands, base.oldest, base.notes) == ("small@3", (0, 15, 60), 90, ("Invented.",))
    assert base.population == {"clinic": ((1, 2.5, 3), (1, 2, 3))}
    assert base.condition("damp").prior == {"clinic": 3}
    assert base.condition("spots").must_not_miss
    assert base.finding("cough").answers == {"yes": "I cough.", "no": "I don't."}
    assert base.finding("cough").background == (0.9, 0.1)
    assert base.finding("cough_kind").answers == {"dry": "It is dry.", "wet": "It is wet."}
    assert base.finding("rash").ages == (10, 60)
    assert base.finding("rash").background_by_cell == {("female", 1): (0.92, 0.08), ("female", 2): (0.92, 0.08)}
    assert set(base.finding("film").background_by_cell) == {("female", 2), ("male", 2)}
    assert [(link.finding, link.fixed, len(link.probabilities)) for link in base.links] == [
        ("cough", False, 1),
        ("cough_kind", False, 1),
        ("film", False, 2),
        ("rash", True, 1),
        ("cough", False, 1),
    ]
    assert base.complaints == {"spots": {"rash": 0.8, "cough": 0.2}}
    assert load_sources(small) == {"guide": "An invented guide, 2nd ed."}


@pytest.mark.parametrize(("name", "text", "new", "line", "value"), BROKEN, ids=[f"{b[0]}:{b[3]}:{b[4]}" for b in BROKEN])
def test_load_base__an_error_names_file_line_and_value(small: Path, name: str, text: str, new: str, line: int, value: str) -> None:
    assert text in FILES[name]
    (small / name).write_text(FILES[name].replace(text, new, 1), encoding="utf-8")
    with pytest.raises(KnowledgeError) as caught:
        load_base(small)
    message = str(caught.value)
    assert message.startswith(f"{small / name}:{line}: "), message
    assert value in message
    assert " - " in message


def _priced(folder: Path, money: str = "33", delay: str = "1.5", invasiveness: str = "0.05") -> Path:
    """The findings of `FILES` with the three columns of a test's costs, blank but for the film (line 5)."""
    head, *lines = FILES["findings.csv"].splitlines()
    extra = ["money,delay,invasiveness", ",,", ",,", ",,", f"{money},{delay},{invasiveness}"]
    text = "".join(f"{line},{cells}\n" for line, cells in zip([head, *lines], extra, strict=True))
    (folder / "findings.csv").write_text(text, encoding="utf-8")
    return folder


def test_test_costs__are_read_and_written_back(small: Path, tmp_path: Path) -> None:
    base = load_base(_priced(small))
    assert [(f.money, f.delay, f.invasiveness) for f in base.findings] == [(0, 0, 0)] * 3 + [(33, 1.5, 0.05)]
    save_base(base, tmp_path / "copy")
    again = load_base(tmp_path / "copy")
    assert again == base
    assert again.fingerprint == base.fingerprint


def test_test_costs__that_are_0_throughout_have_no_column(small: Path, tmp_path: Path) -> None:
    for delay, written in (("0", {"money", "invasiveness"}), ("2", {"money", "delay", "invasiveness"})):
        save_base(load_base(_priced(small, delay=delay)), tmp_path / "copy")
        header = (tmp_path / "copy" / "findings.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
        assert written == {"money", "delay", "invasiveness"} & set(header)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"money": "-3"}, "money -3 must be >= 0"),
        ({"money": "$3"}, r"money is not a number \('\$3'\) - write a number"),
        ({"delay": "-0.5"}, r"delay -0\.5 must be >= 0"),
        ({"delay": "inf"}, r"delay is not a number \('inf'\) - write a number"),
        ({"invasiveness": "1.1"}, r"invasiveness 1\.1 must be from 0 \(none\) to 1"),
        ({"invasiveness": "-0.1"}, r"invasiveness -0\.1 must be from 0 \(none\) to 1"),
    ],
)
def test_test_costs__an_error_names_file_line_and_value(small: Path, change: dict[str, str], seen: str) -> None:
    with pytest.raises(KnowledgeError, match=rf"findings\.csv:5: .*{seen}"):
        load_base(_priced(small, **change))


@pytest.mark.parametrize("change", [{"money": float("nan")}, {"delay": float("inf")}, {"invasiveness": float("nan")}])
def test_test_costs__that_are_no_numbers_are_refused(small: Path, change: dict[str, float]) -> None:
    base = load_base(small)
    with pytest.raises(KnowledgeError, match=rf"finding 'cough': {next(iter(change))} (nan|inf) must be"):
        _with(**change)(base)


def test_fingerprint__is_that_of_earlier_versions_without_test_costs(small: Path) -> None:
    base = load_base(small)
    assert base.fingerprint == "d2899904c030"
    assert knowledge_base("synthetic:12x30").fingerprint == "afe57f484311"
    assert _with(money=0, delay=0.0)(base).fingerprint == "d2899904c030"


def test_fingerprint__tells_test_costs_apart(small: Path) -> None:
    base = load_base(small)
    changed = [_with(**change)(base) for change in ({"money": 1.0}, {"money": 0.5}, {"delay": 1.0}, {"invasiveness": 1.0})]
    assert len({b.fingerprint for b in [base, *changed]}) == 5


@pytest.mark.parametrize("name", ["base.toml", "conditions.csv", "findings.csv", "links.csv"])
def test_load_base__a_missing_or_empty_file_is_named(small: Path, name: str) -> None:
    (small / name).write_text("")
    with pytest.raises(KnowledgeError, match=f"{name}:1: "):
        load_base(small)
    (small / name).unlink()
    with pytest.raises(KnowledgeError, match=f"{name}:1: no such file"):
        load_base(small)


def test_load_base__other_encodings_are_refused_with_the_line(small: Path) -> None:
    (small / "sources.csv").write_bytes("id,citation\nguide,Caf\u00e9\n".encode("latin-1"))
    with pytest.raises(KnowledgeError, match=r"sources\.csv:2: not UTF-8 \(0xe9\)"):
        load_base(small)


def test_load_base__takes_a_spreadsheets_byte_order_mark_and_line_ends(small: Path) -> None:
    before = load_base(small).fingerprint
    for name in ("conditions.csv", "findings.csv", "links.csv"):
        (small / name).write_bytes(FILES[name].replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_base(small).fingerprint == before


@pytest.mark.parametrize("name", ["backgrounds.csv", "complaints.csv"])
def test_load_base__optional_files_may_be_absent(small: Path, name: str) -> None:
    (small / name).unlink()
    assert load_base(small).id == "small@3"


def test_save_base__loads_again_with_the_same_fingerprint(small: Path, tmp_path: Path) -> None:
    base = load_base(small)
    save_base(base, tmp_path / "copy", load_sources(small))
    again = load_base(str(tmp_path / "copy"))
    assert again == base
    assert again.fingerprint == base.fingerprint
    assert load_sources(tmp_path / "copy") == load_sources(small)


def test_save_base__keeps_the_built_in_base(tmp_path: Path) -> None:
    save_base(builtin(), tmp_path)
    assert load_base(tmp_path) == builtin()
    assert load_base(tmp_path).fingerprint == builtin().fingerprint


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00;="), max_size=8)
P = st.floats(0, 1)


@given(name=TEXT, p=P, q=P, numbers=st.tuples(P, st.integers(0, 9)))
def test_save_base__keeps_any_text_and_number(
    tmp_path_factory: pytest.TempPathFactory, name: str, p: float, q: float, numbers: tuple
) -> None:
    folder = tmp_path_factory.mktemp("base")
    base = KnowledgeBase(
        name="any",
        version=1,
        conditions=(Condition("c", name, {"primary": 1 + p}, (1 + numbers[0],), source="s"),),
        findings=(
            Finding("f", name, background=(1 - p, p), complaint=numbers[1], question=name, answers={"yes": "a" + name}),
            Finding("g", name, "scale", ("low", "high"), background=(q, 1 - q), answers={"low": name}, parent="f", activated_by=("yes",)),
        ),
        links=(Link("c", "f", {"yes": np.float64(q)}), Link("c", "g", {"low": p})),
        notes=(name,),
    )
    save_base(base, folder)
    again = load_base(folder)
    assert again.fingerprint == base.fingerprint
    assert again.notes == base.notes


@pytest.mark.parametrize(
    ("complaints", "seen"),
    [
        ({"spots": {}}, r"complaints of 'spots': the table \{\} sums to 0"),
        ({"spots": {"rash": 0.0}}, r"complaints of 'spots': .* sums to 0"),
        ({"spot": {"rash": 1.0}}, "unknown condition with complaints 'spot'; did you mean 'spots'"),
        ({"spots": {"rush": 1.0}}, "unknown finding in the complaints of 'spots' 'rush'; did you mean 'rash'"),
        ({"spots": {"rash": 1.5}}, "complaint spots -> rash: 1.5 is not a probability"),
        ({"spots": {"rash": float("nan")}}, "complaint spots -> rash: nan is not a probability"),
        ({"spots": {"film": 1.0}}, "complaint spots -> film: it can't open"),
        ({"spots": {"cough_kind": 1.0}}, "complaint spots -> cough_kind: it can't open"),
    ],
)
def test_knowledge_base__refuses_complaints_that_cannot_open(small: Path, complaints: dict[str, dict[str, float]], seen: str) -> None:
    base = load_base(small)
    with pytest.raises(MedenvError, match=seen):
        replace(base, complaints=complaints)


def _with(**change: object) -> Callable[[KnowledgeBase], KnowledgeBase]:
    return lambda base: replace(base, findings=(replace(base.findings[0], **change), *base.findings[1:]))


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (_with(answers={"maybe": "Hm."}), "maybe"),
        (_with(type="categorical", values=("yes", "a;b"), background=(), background_by_cell={}, complaint=0.0), "a;b"),
        (lambda base: replace(base, links=(*base.links, Link("spots", "film", {}))), "spots -> film"),
        (
            lambda base: replace(base, conditions=(replace(base.conditions[0], prior={"clinic": 1, "home": 1}), *base.conditions[1:])),
            "home",
        ),
    ],
)
def test_save_base__refuses_what_the_format_cannot_hold(
    small: Path, tmp_path: Path, change: Callable[[KnowledgeBase], KnowledgeBase], seen: str
) -> None:
    base = replace(load_base(small), complaints={})
    links = tuple(link for link in base.links if link.finding != "cough")
    with pytest.raises(KnowledgeError, match=seen):
        save_base(change(replace(base, links=links)), tmp_path / "copy")
