"""A DDXPlus release's metadata and probabilities, as they stand in its directory.

Where the numbers come from, first match: `medenv_counts.json` (written by `save_counts`), the training file (counted), or
`conditional_tables.json`. `medenv.knowledge.ddxplus` says how they are read and makes a knowledge base of them.

Does not cover: floors, backgrounds, opening statements that were not counted.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from medenv.errors import CaseError, KnowledgeError
from medenv.knowledge.base import NO, SEXES, YES, Condition, Finding
from medenv.knowledge.ddxplus_patients import SPLIT_STEMS, Listing, closest, patients_file, read_patients, short

AGE_BANDS = (0, 1, 5, 15, 30, 45, 60, 75)  # lower edges in years, when age is counted
CONDITIONS_FILE, EVIDENCES_FILE = "release_conditions.json", "release_evidences.json"
TABLES_FILE, COUNTS_FILE = "conditional_tables.json", "medenv_counts.json"

_WORDS = {"en": {"N": "no", "Y": "yes", "NA": "none of these"}, "fr": {"N": "non", "O": "oui", "Y": "oui", "NA": "aucun"}}


@dataclass(frozen=True)
class Release:
    """The metadata: conditions by id, findings in the release's order, remarks on what was repaired."""

    conditions: dict[str, Condition]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def by_id(self) -> dict[str, Finding]:
        """Findings by id."""
        return {f.id: f for f in self.findings}


@dataclass(frozen=True)
class Tables:
    """Per condition id: `prior`; `values[c][f]` shares of a finding's values, of a child given that its parent is active;
    `active[c][f]` the share of patients whose answer f activates its children; counted only: `age`, `sex`, `openings`.
    """

    source: str
    prior: dict[str, float]
    values: dict[str, dict[str, dict[str, float]]]
    active: dict[str, dict[str, float]]
    age: dict[str, list[float]] = field(default_factory=dict)
    sex: dict[str, list[float]] = field(default_factory=dict)
    openings: dict[str, dict[str, float]] = field(default_factory=dict)


def save_counts(directory: str | Path) -> Path:
    """Count the training file and write `medenv_counts.json` beside it, which `load_knowledge` reads in its place.

    Returns the file's path. Raises `KnowledgeError` without a training file.
    """
    path = patients_file(Path(directory), "train")
    if path is None:
        raise KnowledgeError(f"{directory}: no {SPLIT_STEMS['train']}.zip or .csv to count; put the release's training file there")
    out = Path(directory) / COUNTS_FILE
    body = {"size": path.stat().st_size, **asdict(_counted(path, read_release(Path(directory))))}
    out.write_text(json.dumps(body, ensure_ascii=False, indent=1), encoding="utf-8")
    return out


def read_release(directory: Path) -> Release:
    """The release's metadata; KnowledgeError for a missing or changed file."""
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
    return Release({c.id: c for c in parsed}, findings, notes)


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
        raise KnowledgeError(f"{path}: expected a JSON object with one entry per name, got {short(body)}")
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


def read_tables(directory: Path, release: Release) -> Tables:
    """The probabilities, from the first source there is; KnowledgeError if there is none."""
    training, counts = patients_file(directory, "train"), directory / COUNTS_FILE
    if counts.is_file():
        body = _read_json(counts)
        size = body.pop("size", None)
        if training is not None and training.stat().st_size != size:
            raise KnowledgeError(
                f"{counts} was counted from a file of {size} bytes, {training} has {training.stat().st_size}: run save_counts again"
            )
        try:
            tables = Tables(**body)
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
def _counted_once(training: Path, directory: Path, size: int, changed: int) -> Tables:
    return _counted(training, read_release(directory))


def _counted(path: Path, release: Release) -> Tables:
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
    out = Tables(f"{path.name}, {rows.total()} patients", {}, {}, {})
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


def _tabled(path: Path, release: Release) -> Tables:
    """The tables from `conditional_tables.json`, whose children's defaults include the patients without the parent."""
    body, by_id = _read_json(path), release.by_id
    out = Tables(path.name, {}, {}, {})
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
