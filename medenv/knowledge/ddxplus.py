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

import ast
import csv
import difflib
import io
import json
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from medenv.errors import CaseError, KnowledgeError
from medenv.knowledge.base import NO, SEXES, YES, Condition, Finding, KnowledgeBase, Link

FLOOR = 1e-3  # least P(yes) and P(no) of a binary finding; values of others get at least FLOOR / number of values
AGE_BANDS = (0, 1, 5, 15, 30, 45, 60, 75)  # lower edges in years, when age is counted
OLDEST = 110  # the releases go up to 109
SETTING = "primary"
COLUMNS = ("AGE", "SEX", "PATHOLOGY", "EVIDENCES", "INITIAL_EVIDENCE")
CONDITIONS_FILE, EVIDENCES_FILE = "release_conditions.json", "release_evidences.json"
TABLES_FILE, COUNTS_FILE = "conditional_tables.json", "medenv_counts.json"
SPLIT_STEMS = {"train": "release_train_patients", "validation": "release_validate_patients", "test": "release_test_patients"}

_SEX_LETTERS = {"F": "female", "M": "male"}
_WORDS = {"en": {"N": "no", "Y": "yes", "NA": "none of these"}, "fr": {"N": "non", "O": "oui", "Y": "oui", "NA": "aucun"}}


def load_knowledge(directory: str | Path, floor: float = FLOOR) -> KnowledgeBase:
    """The base `ddxplus@1` of the release in `directory`.

    Condition ids are the names in the PATHOLOGY column, finding ids the evidence codes. DDXPlus's severity (1 the most severe)
    is turned into ours (5 deadly); it also stands in for the triage level, and 1 and 2 are marked as must-not-miss. `floor` in
    (0, 0.5) bounds every probability away from 0 and 1. Raises `KnowledgeError` for a missing or malformed file.

    A training file of a million patients takes about a quarter of a minute, once per process; `save_counts` makes it once for all.
    """
    if not 0.0 < floor < 0.5:
        raise KnowledgeError(f"floor is {floor!r}: give a probability above 0 and below 0.5, such as {FLOOR}")
    release = _read_release(Path(directory))
    tables = _read_tables(Path(directory), release)
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


def save_counts(directory: str | Path) -> Path:
    """Count the training file and write `medenv_counts.json` beside it, which `load_knowledge` reads in its place.

    Returns the file's path. Raises `KnowledgeError` without a training file.
    """
    path = patients_file(Path(directory), "train")
    if path is None:
        raise KnowledgeError(f"{directory}: no {SPLIT_STEMS['train']}.zip or .csv to count; put the release's training file there")
    out = Path(directory) / COUNTS_FILE
    body = {"size": path.stat().st_size, **asdict(_counted(path, _read_release(Path(directory))))}
    out.write_text(json.dumps(body, ensure_ascii=False, indent=1), encoding="utf-8")
    return out


def patients_file(directory: Path, split: str) -> Path | None:
    """The patients of `split` ("train", "validation", "test") in a release's directory, or None."""
    candidates = (directory / f"{SPLIT_STEMS[split]}{suffix}" for suffix in (".zip", ".csv", ""))
    return next((p for p in candidates if p.is_file()), None)


class Row(NamedTuple):
    """One line of a patients file: `tokens` are its evidences as written (`E_53`, `E_56_@_4`), `sex` is female or male."""

    line: int
    age: int
    sex: str
    condition: str
    tokens: list[str]
    opening: str


def read_patients(path: Path) -> Iterator[Row]:
    """Stream a patients file: a CSV or a zip with one CSV in it, UTF-8, columns found by name.

    Raises `CaseError` naming file, line and what is expected: wrong header, truncated row, age, sex or evidences that cannot be
    read, a patient without evidence.
    """
    with _open_text(path) as text:
        reader = csv.reader(text, strict=True)
        try:
            header = next(reader, [])
            missing = [c for c in COLUMNS if c not in header]
            if missing:
                raise CaseError(f"{path}, line 1: the header {_short(header)} lacks {', '.join(missing)}; expected {', '.join(COLUMNS)}")
            at = [header.index(c) for c in COLUMNS]
            for fields in filter(None, reader):
                if len(fields) != len(header):
                    raise CaseError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields where the header has {len(header)}: the row is "
                        "truncated or badly quoted; download the file again or remove the row"
                    )
                age, sex, condition, evidences, opening = (fields[i] for i in at)
                where = (path, reader.line_num)
                yield Row(reader.line_num, _age(age, where), _sex(sex, where), condition, _tokens(evidences, where), opening)
        except (csv.Error, UnicodeDecodeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CaseError(
                f"{path}, near line {reader.line_num}: not readable as CSV in UTF-8 ({error}); expected one patient per line"
            ) from error


class Listing:
    """What a list of evidence tokens says about the findings of a release."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = {f.id: f for f in findings}
        self.absent = {f.id: f.values[:1] for f in findings if f.parent is None}
        self._known: dict[str, tuple[str, tuple[str, ...]]] = {}
        for f in findings:
            for value in f.values:
                token = f.id if f.type == "binary" else f"{f.id}_@_{value}"
                self._known[token] = (f.id, (YES,) if f.type == "binary" else (value,))
        self._children = [
            (f.id, f.parent, frozenset(f.activated_by), f.values[:1]) for f in _parents_first(findings) if f.parent is not None
        ]
        self._same: dict[tuple[str, ...], tuple[str, ...]] = {}

    def read(self, tokens: Sequence[str], where: tuple[Path, int]) -> tuple[dict[str, tuple[str, ...]], list[tuple[str, str]]]:
        """The findings that are known beyond `absent`, and what had to be put right, as pairs (kind, what).

        Findings map to their values; equal tuples are one object. Kinds: see `medenv.cases.ddxplus.KINDS`. Raises `CaseError`
        for an unknown code, naming `where` (file, line) and the closest known one.
        """
        listed: dict[str, tuple[str, ...]] = {}
        events: list[tuple[str, str]] = []
        for token in tokens:
            pair = self._known.get(token)
            if pair is None:
                raise self._unknown(token, where)
            code, value = pair
            if code not in listed:
                listed[code] = value
            elif value[0] in listed[code]:
                events.append(("repeated", token))
            else:
                both = (*listed[code], *value)
                listed[code] = self._same.setdefault(both, both)
        for code, values in listed.items():
            if len(values) > 1:
                self._settle(listed, events, code, values)
        for code, parent, activating, default in self._children:
            active = not activating.isdisjoint(listed.get(parent) or self.absent.get(parent, ()))
            if code in listed:
                if not active:
                    values = listed.pop(code)
                    events.append(("orphan_default" if values == default else "orphan_value", f"{code} without {parent}"))
            elif active:
                listed[code] = default
                events.append(("default_filled", f"{code} under {parent}"))
        return listed, events

    def _settle(self, listed: dict[str, tuple[str, ...]], events: list[tuple[str, str]], code: str, values: tuple[str, ...]) -> None:
        if self.findings[code].type != "multi_choice":
            listed[code] = ()
            events.append(("two_values", f"{code} = {' and '.join(values)}"))
        elif self.findings[code].values[0] in values:
            rest = tuple(v for v in values if v != self.findings[code].values[0])
            listed[code] = self._same.setdefault(rest, rest)
            events.append(("default_with_others", f"{code} = {' and '.join(values)}"))

    def _unknown(self, token: str, where: tuple[Path, int]) -> CaseError:
        code, _, value = token.partition("_@_")
        if code not in self.findings:
            return CaseError(f"{where[0]}, line {where[1]}: unknown evidence code {code!r}{closest(code, self.findings)}")
        finding = self.findings[code]
        if finding.type == "binary":
            return CaseError(f"{where[0]}, line {where[1]}: {token!r} gives a value to the binary evidence {code}; write {code!r}")
        hint = closest(value, finding.values) or f"; known: {', '.join(finding.values[:12])}"
        return CaseError(f"{where[0]}, line {where[1]}: {token!r}: evidence {code} has no value {value!r}{hint}")


def closest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


# The release's metadata ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Release:
    conditions: dict[str, Condition]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def by_id(self) -> dict[str, Finding]:
        return {f.id: f for f in self.findings}


@dataclass(frozen=True)
class _Tables:
    """Per condition id: `prior`; `values[c][f]` shares of a finding's values, of a child given that its parent is active;
    `active[c][f]` the share of patients whose answer f activates its children; counted only: `age`, `sex`, `openings`."""

    source: str
    prior: dict[str, float]
    values: dict[str, dict[str, dict[str, float]]]
    active: dict[str, dict[str, float]]
    age: dict[str, list[float]] = field(default_factory=dict)
    sex: dict[str, list[float]] = field(default_factory=dict)
    openings: dict[str, dict[str, float]] = field(default_factory=dict)


def _read_release(directory: Path) -> _Release:
    conditions = _read_json(directory / CONDITIONS_FILE)
    evidences = _read_json(directory / EVIDENCES_FILE)
    try:
        french = sum(c["condition_name"] == c.get("cond-name-fr") for c in conditions.values())
        english = sum(c["condition_name"] == c.get("cond-name-eng") for c in conditions.values())
        language = "fr" if french > english else "en"
        findings = tuple(_finding(e, evidences, language) for e in evidences.values())
        parsed = [_condition(c) for c in conditions.values()]
        own_roots = [e["name"] for e in evidences.values() if e["code_question"] not in evidences]
    except (KeyError, TypeError, AttributeError) as error:
        raise KnowledgeError(
            f"{directory}: an entry of {CONDITIONS_FILE} or {EVIDENCES_FILE} lacks {error}; expected a DDXPlus release's files, unchanged"
        ) from error
    notes = tuple(f"{code}: its code_question is not in the release, it is asked on its own" for code in own_roots)
    return _Release({c.id: c for c in parsed}, findings, notes)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise KnowledgeError(
            f"{path} does not exist: give the directory of a DDXPlus release (English: figshare 22687585, French: figshare 20043374)"
        )
    try:
        body = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise KnowledgeError(f"{path} is not JSON in UTF-8: {error}; download it again") from error
    if not isinstance(body, dict) or not body:
        raise KnowledgeError(f"{path}: expected a JSON object with one entry per name, got {_short(body)}")
    return body


def _condition(entry: dict[str, Any]) -> Condition:
    name, severity = entry["condition_name"], entry["severity"]
    if not isinstance(severity, int) or not 1 <= severity <= 5:
        raise KnowledgeError(f"{CONDITIONS_FILE}: {name!r} has severity {severity!r}; expected a whole number from 1 to 5")
    codes = [c.upper() for c in re.split(r"[\s,;]+", entry.get("icd10-id") or "") if c]
    return Condition(
        id=name,
        name=name,
        prior={},
        age=(1.0,),
        icd10=", ".join(codes),
        severity=6 - severity,
        triage=severity,
        must_not_miss=severity <= 2,
        source="DDXPlus",
    )


def _finding(entry: dict[str, Any], evidences: dict[str, Any], language: str) -> Finding:
    code, kind = entry["name"], entry["data_type"]
    if kind not in ("B", "C", "M"):
        raise KnowledgeError(f"{EVIDENCES_FILE}: {code!r} has data_type {kind!r}; expected B, C or M")
    parent = entry["code_question"] if entry["code_question"] in evidences and entry["code_question"] != code else None
    question = entry.get(f"question_{language}") or entry.get("question_fr") or entry.get("question_en") or code
    values, scale = _values(entry), all(isinstance(v, int) for v in entry.get("possible-values", ()))
    return Finding(
        id=code,
        name=question.strip().rstrip("?:").strip(),
        type="binary" if kind == "B" else "multi_choice" if kind == "M" else "scale" if scale else "categorical",
        values=values,
        group="history" if entry["is_antecedent"] else "symptom",
        parent=parent,
        activated_by=() if parent is None else _values(evidences[parent])[1:],
        complaint=float(kind == "B" and parent is None and not entry["is_antecedent"]),
        question=question,
        answers=_answers(entry, language),
        source="DDXPlus",
    )


def _values(entry: dict[str, Any]) -> tuple[str, ...]:
    """The values' names, the default first."""
    if entry["data_type"] == "B":
        return (NO, YES)
    default = str(entry["default_value"])
    return (default, *(v for v in map(str, entry["possible-values"]) if v != default))


def _answers(entry: dict[str, Any], language: str) -> dict[str, str]:
    other = {"en": "fr", "fr": "en"}[language]
    words = {v: m.get(language) or m.get(other) or v for v, m in (entry.get("value_meaning") or {}).items()}
    return {v: _WORDS[language].get(w, w) for v, w in words.items()}


def _parents_first(findings: Sequence[Finding]) -> list[Finding]:
    out: dict[str, Finding] = {}
    left = list(findings)
    while left:
        ready = [f for f in left if f.parent is None or f.parent in out]
        if not ready:
            raise KnowledgeError(f"the parents of {', '.join(f.id for f in left)} form a cycle or do not exist: check their code_question")
        out.update({f.id: f for f in ready})
        left = [f for f in left if f.id not in out]
    return list(out.values())


# Where the numbers come from -------------------------------------------------------------------------------------------


def _read_tables(directory: Path, release: _Release) -> _Tables:
    training, counts = patients_file(directory, "train"), directory / COUNTS_FILE
    if counts.is_file():
        body = _read_json(counts)
        size = body.pop("size", None)
        if training is not None and training.stat().st_size != size:
            raise KnowledgeError(
                f"{counts} was counted from a file of {size} bytes, {training} has {training.stat().st_size}: run save_counts again"
            )
        try:
            tables = _Tables(**body)
        except TypeError as error:
            raise KnowledgeError(
                f"{counts} was not written by this version of save_counts ({error}): delete it or run save_counts again"
            ) from error
    elif training is not None:
        stat = training.stat()
        tables = _counted_once(training, directory, stat.st_size, stat.st_mtime_ns)
    elif (directory / TABLES_FILE).is_file():
        tables = _tabled(directory / TABLES_FILE, release)
    else:
        raise KnowledgeError(
            f"{directory} has no probabilities: add the release's {SPLIT_STEMS['train']}.zip (they are counted), or a {TABLES_FILE}"
        )
    for condition in release.conditions:
        if condition not in tables.prior:
            raise KnowledgeError(f"{tables.source} has no patient with {condition!r}: use the release's whole training file")
    return tables


@lru_cache(maxsize=4)
def _counted_once(training: Path, directory: Path, size: int, changed: int) -> _Tables:
    return _counted(training, _read_release(directory))


def _counted(path: Path, release: _Release) -> _Tables:
    """The tables from a patients file, in one pass."""
    listing, names = Listing(release.findings), set(release.conditions)
    rows: Counter[str] = Counter()
    counts: dict[str, Counter[tuple[str, tuple[str, ...]]]] = {c: Counter() for c in names}
    people: dict[str, Counter[tuple[int, str]]] = {c: Counter() for c in names}
    openings: dict[str, Counter[str]] = {c: Counter() for c in names}
    roots = {f.id for f in release.findings if f.type == "binary" and f.parent is None}
    for row in read_patients(path):
        if row.condition not in names:
            raise CaseError(f"{path}, line {row.line}: unknown condition {row.condition!r}{closest(row.condition, sorted(names))}")
        values, _ = listing.read(row.tokens, (path, row.line))
        rows[row.condition] += 1
        counts[row.condition].update(values.items())
        people[row.condition][row.age, row.sex] += 1
        if row.opening in roots and row.opening in values:
            openings[row.condition][row.opening] += 1
    out = _Tables(f"{path.name}, {rows.total()} patients", {}, {}, {})
    for c in release.conditions:
        if not (n := rows[c]):
            continue
        out.prior[c] = n / rows.total()
        out.values[c], out.active[c] = _shares(counts[c], n, listing.findings)
        out.age[c] = [sum(k for (age, _), k in people[c].items() if _band(age) == b) / n for b in range(len(AGE_BANDS))]
        out.sex[c] = [sum(k for (_, s), k in people[c].items() if s == sex) / n for sex in SEXES]
        out.openings[c] = {f: k / openings[c].total() for f, k in sorted(openings[c].items())}
    return out


def _band(age: int) -> int:
    return sum(age >= edge for edge in AGE_BANDS[1:])


def _shares(
    counts: Counter[tuple[str, tuple[str, ...]]], patients: int, findings: dict[str, Finding]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """`values` and `active` of one condition; a root that is not listed has its default, a child that is not listed is unknown."""
    single: dict[str, Counter[str]] = {}
    listed: Counter[str] = Counter()
    default: Counter[str] = Counter()
    for (code, values), n in counts.items():
        if not values:
            continue
        listed[code] += n
        default[code] += n * (values == findings[code].values[:1])
        for v in values:
            single.setdefault(code, Counter())[v] += n
    for code, table in single.items():
        if findings[code].parent is None:
            table[findings[code].values[0]] += patients - listed[code]
    shares = {code: {v: n / table.total() for v, n in sorted(table.items())} for code, table in sorted(single.items())}
    return shares, {code: (listed[code] - default[code]) / patients for code in sorted(single)}


def _tabled(path: Path, release: _Release) -> _Tables:
    """The tables from `conditional_tables.json`, whose children's defaults include the patients without the parent."""
    body, by_id = _read_json(path), release.by_id
    out = _Tables(path.name, {}, {}, {})
    for c, entry in body.items():
        if c not in release.conditions:
            raise KnowledgeError(f"{path}: condition {c!r} is not in {CONDITIONS_FILE}{closest(c, release.conditions)}")
        try:
            prior, raw = float(entry["prior"]), entry["findings"]
            full = {code: _full(by_id, code, t, f"{path}: {c}") for code, t in raw.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, KnowledgeError):
                raise
            raise KnowledgeError(f"{path}: {c!r} is not of the form prior and findings ({error})") from error
        out.prior[c] = prior
        out.active[c] = {code: 1.0 - t.get(by_id[code].values[0], 0.0) for code, t in full.items()}
        out.values[c] = {}
        for code, table in full.items():
            parent = by_id[code].parent
            if parent is None:
                out.values[c][code] = table
            elif active := out.active[c].get(parent, 0.0):
                kept = {**table, by_id[code].values[0]: max(0.0, table.get(by_id[code].values[0], 0.0) - (1.0 - active))}
                if total := math.fsum(kept.values()):
                    out.values[c][code] = {v: p / total for v, p in kept.items()}
    return out


def _full(by_id: dict[str, Finding], code: str, table: float | dict[str, float], where: str) -> dict[str, float]:
    """One entry of the tables file as shares over all of the finding's values."""
    if code not in by_id:
        raise KnowledgeError(f"{where}: unknown evidence code {code!r}{closest(code, by_id)}")
    values = by_id[code].values
    if by_id[code].type == "binary":
        table = {YES: float(table), NO: 1.0 - float(table)}  # type: ignore[arg-type]
    for v, p in table.items():  # type: ignore[union-attr]
        if v not in values:
            raise KnowledgeError(f"{where}: evidence {code} has no value {v!r}{closest(v, values)}")
        if not (isinstance(p, int | float) and 0.0 <= p <= 1.0):
            raise KnowledgeError(f"{where}: {code} = {v} has {p!r}; expected a probability in [0, 1]")
    total = math.fsum(table.values())  # type: ignore[union-attr]
    if abs(total - 1.0) > 1e-3:
        raise KnowledgeError(f"{where}: the values of {code} sum to {total:.4g}; expected 1")
    return {v: p / total for v, p in table.items()}  # type: ignore[union-attr]


# From tables to the base -----------------------------------------------------------------------------------------------


def _given(finding: Finding, tables: _Tables, condition: str, by_id: dict[str, Finding]) -> tuple[float, ...] | None:
    """P(values | condition, parent active), before the floor. What a condition never shows has the default; None: the parent
    is never active, so nothing is known."""
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


def _with_background(finding: Finding, given: dict[str, dict[str, Any]], tables: _Tables, floor: float) -> Finding:
    """Binary root: the floor. A child: its average over the patients whose parent is active, so that it moves no belief
    in a condition of which nothing is known."""
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


def _with_tables(condition: Condition, tables: _Tables, floor: float) -> Condition:
    condition = replace(condition, prior={SETTING: tables.prior[condition.id]})
    if not tables.age:
        return condition
    age = tuple((1.0 - floor) * p + floor / len(AGE_BANDS) for p in tables.age[condition.id])
    female, male = ((1.0 - floor) * p + floor / 2 for p in tables.sex[condition.id])
    return replace(condition, age=age, sex=(female, male))


def _can_open(finding: Finding) -> bool:
    return finding.type == "binary" and finding.parent is None


def _complaints(
    release: _Release, findings: Sequence[Finding], present: NDArray[np.float64], tables: _Tables, floor: float
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


# One patients file -----------------------------------------------------------------------------------------------------


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    if not path.is_file():
        raise CaseError(f"{path} does not exist: give a DDXPlus patients file, a CSV or a zip with one CSV in it")
    if not zipfile.is_zipfile(path):
        if path.suffix == ".zip":
            raise CaseError(f"{path} is not a complete zip file: download it again")
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield text
        return
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
        if len(names) != 1:
            raise CaseError(f"{path} holds {len(names)} files ({_short(names)}); expected one CSV")
        with archive.open(names[0]) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            yield text


def _age(text: str, where: tuple[Path, int]) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > OLDEST:
        raise CaseError(f"{where[0]}, line {where[1]}: AGE is {text!r}; expected whole years from 0 to {OLDEST}")
    return int(text)


def _sex(text: str, where: tuple[Path, int]) -> str:
    if text not in _SEX_LETTERS:
        raise CaseError(f"{where[0]}, line {where[1]}: SEX is {text!r}; expected F or M")
    return _SEX_LETTERS[text]


def _tokens(text: str, where: tuple[Path, int]) -> list[str]:
    """The list in the EVIDENCES column, a Python literal; split directly where no quoting can mislead."""
    if text[:2] == "['" and text[-2:] == "']" and '"' not in text and "\\" not in text:
        return text[2:-2].split("', '")
    try:
        tokens = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise CaseError(
            f"{where[0]}, line {where[1]}: EVIDENCES is {_short(text)}; expected a list such as ['E_53', 'E_56_@_4']"
        ) from error
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise CaseError(f"{where[0]}, line {where[1]}: EVIDENCES is {_short(text)}; expected a list of strings")
    if not tokens:
        raise CaseError(
            f"{where[0]}, line {where[1]}: the patient has no evidence; every DDXPlus patient lists at least one: remove the row"
        )
    return tokens


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")
