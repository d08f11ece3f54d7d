"""Knowledge bases as plain text: a directory of CSV files and one TOML file that a clinician can read and diff.

    base.toml        name, version, age_bands, oldest, notes, [settings] with shares, [population] with [female row, male row]
    conditions.csv   id, name, icd10, prior_<setting> ..., age_<first>-<last> ..., female, male, severity, triage, must_not_miss, source
    findings.csv     id, name, type, values (a;b;c, blank if binary), kind, group, parent, activated_by (a;b), axis, background
                     (P(yes) if binary, else one number per value), complaint, red_flag, cost, reliability, sex, ages (10-55),
                     question, yes, no, answers (value=text;value=text, where the type is not binary), source
    links.csv        condition, finding, value, probability, fixed, grade, source: one line per value
    backgrounds.csv  finding, sex, ages, background: where a demographic cell differs; blank = every sex or age          (optional)
    complaints.csv   condition, finding, probability: P(it opens the consultation | condition)                          (optional)
    sources.csv      id, citation: what the `source` columns refer to                                                   (optional)

Flags are `yes` or blank; a blank cell means the default of `medenv.knowledge.base`. Every error names the file and the line.

Does not cover: other formats (`ddxplus`), nor compiling: whether each condition has enough openings is found by `compiled`.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from medenv.errors import KnowledgeError, UnknownName
from medenv.knowledge.base import FINDING_TYPES, NO, SEXES, YES, Condition, Finding, KnowledgeBase, Link

BASE, CONDITIONS, FINDINGS, LINKS = "base.toml", "conditions.csv", "findings.csv", "links.csv"
BACKGROUNDS, COMPLAINTS, SOURCES = "backgrounds.csv", "complaints.csv", "sources.csv"

_CONDITION_NEEDS = ("id", "name")
_CONDITION_TAIL = ("female", "male", "severity", "triage", "must_not_miss", "source")
_FINDING = (
    *("id", "name", "type", "values", "kind", "group", "parent", "activated_by", "axis", "background", "complaint", "red_flag"),
    *("cost", "reliability", "sex", "ages", "question", "yes", "no", "answers", "source"),
)
_FINDING_NEEDS = ("id", "name", "type", "values", "kind", "background")
_LINK = ("condition", "finding", "value", "probability", "fixed", "grade", "source")
_LINK_NEEDS = _LINK[:4]
_BACKGROUND = ("finding", "sex", "ages", "background")
_COMPLAINT = ("condition", "finding", "probability")
_SOURCE = ("id", "citation")
_ANYONE = (0, 200)

Number = int | float
T = TypeVar("T")


class Directory(Protocol):
    """What `load_base` needs of a folder: a `Path`, or a package resource."""

    def joinpath(self, name: str, /) -> Any: ...


def load_base(directory: str | Path | Directory) -> KnowledgeBase:
    """The knowledge base in `directory`; `source` fields hold ids of sources.csv.

    Raises KnowledgeError, `file:line: what (value) - what to do`, at the first thing that is wrong.
    """
    folder: Directory = Path(directory) if isinstance(directory, str) else directory
    head = _Head(folder)
    sources = {**load_sources(folder), "": ""}
    conditions, where = _read_conditions(folder, head, sources)
    findings, found = _read_findings(folder, head, sources)
    links, linked = _read_links(folder, conditions, findings, sources)
    complaints = _read_complaints(folder, conditions, findings)
    where |= found | linked
    try:
        return KnowledgeBase(
            name=head.name,
            version=head.version,
            conditions=tuple(conditions.values()),
            findings=tuple(findings.values()),
            links=tuple(links),
            age_bands=head.age_bands,
            oldest=head.oldest,
            settings=head.settings,
            population=head.population,
            complaints=complaints,
            notes=head.notes,
        )
    except (KnowledgeError, UnknownName) as error:
        raise _located(str(error), where, head.path) from error


def load_sources(directory: str | Path | Directory) -> dict[str, str]:
    """Citations by source id, from sources.csv; empty where there is no such file."""
    folder: Directory = Path(directory) if isinstance(directory, str) else directory
    out: dict[str, str] = {}
    for row in _table(folder, SOURCES, _SOURCE, _SOURCE, optional=True):
        row.fresh("id", out)
        out[row["id"]] = row["citation"]
    return out


def save_base(base: KnowledgeBase, directory: str | Path, sources: Mapping[str, str] | None = None) -> None:
    """Write `base` so that `load_base` gives an equal fingerprint. Creates the directory and overwrites the files of the format.

    `sources` maps source ids to citations; a source without one gets its id. Raises KnowledgeError where a text holds a
    character that separates entries.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    labels = _labels(base.age_bands, base.oldest)
    settings = list(dict.fromkeys([*base.settings, *(s for c in base.conditions for s in c.prior)]))
    cited = dict.fromkeys([x.source for x in (*base.conditions, *base.findings, *base.links) if x.source])
    _write(folder / BASE, _toml(base))
    columns = ["id", "name", "icd10", *[f"prior_{s}" for s in settings], *[f"age_{a}" for a in labels], *_CONDITION_TAIL]
    _write_table(folder / CONDITIONS, columns, (_condition_row(c, settings) for c in base.conditions))
    _write_table(folder / FINDINGS, _FINDING, map(_finding_row, base.findings))
    _write_table(folder / LINKS, _LINK, (row for link in base.links for row in _link_rows(link)))
    cells = ([f.id, sex, labels[band], _background_text(f, p)] for f in base.findings for (sex, band), p in f.background_by_cell.items())
    _write_table(folder / BACKGROUNDS, _BACKGROUND, cells)
    opening = ([c, f, _text(p)] for c, table in base.complaints.items() for f, p in table.items())
    _write_table(folder / COMPLAINTS, _COMPLAINT, opening)
    _write_table(folder / SOURCES, _SOURCE, ([s, (sources or {}).get(s, s)] for s in cited))


@cache
def builtin() -> KnowledgeBase:
    """The base that comes with the package, `builtin@0`: about a hundred conditions of primary and emergency care."""
    return load_base(cast(Directory, resources.files("medenv.knowledge").joinpath("builtin")))


@dataclass(frozen=True)
class _Row:
    """One line of a table: cells by column, and where it stands."""

    path: str
    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    def fail(self, what: str, value: object, todo: str) -> KnowledgeError:
        return KnowledgeError(f"{self.path}:{self.line}: {what} ({value}) - {todo}")

    def number(self, column: str, default: Number) -> Number:
        return self.as_number(column, self[column], default)

    def as_number(self, column: str, text: str, default: Number) -> Number:
        if text == "":
            return default
        value = _number(text)
        if value is None:
            raise self.fail(f"{column} is not a number", repr(text), "write a number such as 0.25")
        return value

    def probability(self, column: str, text: str) -> Number:
        value = self.as_number(column, text, -1)
        if not 0 <= value <= 1:
            raise self.fail(f"{column} is not a probability", repr(text), "write a number from 0 to 1")
        return value

    def whole(self, column: str, default: int) -> int:
        value = self.number(column, default)
        if not isinstance(value, int):
            raise self.fail(f"{column} is not a whole number", repr(self[column]), "write one without a decimal point")
        return value

    def flag(self, column: str) -> bool:
        if self[column] not in ("", NO, YES):
            raise self.fail(f"{column} is neither yes nor blank", repr(self[column]), "write yes, or leave the cell blank")
        return self[column] == YES

    def known(self, column: str, kind: str, names: Mapping[str, T], home: str) -> T:
        name = self[column]
        if name not in names:
            close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
            raise self.fail(f"unknown {kind}", repr(name), f"did you mean {close[0]!r}?" if close and close[0] else f"add it to {home}")
        return names[name]

    def fresh(self, column: str, seen: Mapping[str, object]) -> None:
        if not self[column]:
            raise self.fail(f"{column} is blank", repr(""), "give it an id")
        if self[column] in seen:
            raise self.fail(f"{column} is given twice", repr(self[column]), "delete one of the lines or change the id")


class _Head:
    """base.toml, checked."""

    def __init__(self, folder: Directory) -> None:
        self.path, text = _read(folder, BASE)
        self._lines = text.splitlines()
        try:
            self._data: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"line (\d+)", str(error))
            raise KnowledgeError(f"{self.path}:{line[1] if line else len(self._lines)}: not TOML ({error}) - correct the syntax") from None
        for key in self._data:
            if key not in ("name", "version", "age_bands", "oldest", "notes", "settings", "population"):
                raise self._fail(key, "unknown key", key, "delete it or correct its name")
        self.name = self._get("name", str, "a text in quotes")
        self.version = self._get("version", _is_whole, "a whole number")
        self.oldest: int = self._get("oldest", _is_whole, "a whole number of years", 100)
        self.age_bands: tuple[int, ...] = tuple(self._get("age_bands", _list_of(_is_whole), "a list of whole years, first 0", [0]))
        if list(self.age_bands) != sorted(set(self.age_bands)) or self.age_bands[0] != 0 or self.age_bands[-1] > self.oldest:
            raise self._fail(
                "age_bands", "age bands do not rise from 0", list(self.age_bands), f"list rising years from 0 to at most {self.oldest}"
            )
        self.notes: tuple[str, ...] = tuple(self._get("notes", _list_of(lambda v: isinstance(v, str)), "a list of texts", []))
        self.settings: dict[str, Number] = self._get("settings", dict, "a table of shares", {"primary": 1.0})
        for name, share in self.settings.items():
            if not _is_number(share) or share < 0:
                raise self._fail(name, f"share of {name!r} is not a number >= 0", share, "write a number such as 0.6", "settings")
        if not any(self.settings.values()):
            raise self._fail("settings", "no setting has a share", self.settings, "give one a share above 0")
        self.population = {k: self._people(k, v) for k, v in self._get("population", dict, "a table", {}).items()}

    def _people(self, name: str, rows: object) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
        if name not in self.settings:
            raise self._fail(name, "population of an unknown setting", name, f"use one of {', '.join(self.settings)}", "population")
        width = len(self.age_bands)
        good = _list_of(_list_of(lambda v: _is_number(v) and v >= 0))(rows) and [len(r) for r in cast(Any, rows)] == [width, width]
        if not good or not any(map(any, cast(Any, rows))):
            todo = f"give [female, male] rows of {width} numbers, not all 0"
            raise self._fail(name, "population is not 2 rows of numbers >= 0", rows, todo, "population")
        female, male = cast(Any, rows)
        return tuple(female), tuple(male)

    def _get(self, key: str, check: type | Callable[[Any], bool], needs: str, default: Any = None) -> Any:
        if key not in self._data:
            if default is None:
                raise KnowledgeError(f"{self.path}:1: {key} is missing ({key!r}) - add it: {needs}")
            return default
        value = self._data[key]
        if not (isinstance(value, check) if isinstance(check, type) else check(value)):
            raise self._fail(key, f"{key} is of the wrong kind", repr(value), f"write {needs}")
        return value

    def _fail(self, key: str, what: str, value: object, todo: str, section: str = "") -> KnowledgeError:
        """tomllib keeps no line numbers, so the key's line is looked up in the text."""
        starts = re.compile(rf"""\s*\[?["']?{re.escape(key)}["']?\s*[=\]]""")
        begin = next((i for i, line in enumerate(self._lines) if line.strip().startswith(f"[{section}]")), 0) if section else 0
        line = next((i for i, text in enumerate(self._lines[begin:], begin + 1) if starts.match(text)), 1)
        return KnowledgeError(f"{self.path}:{line}: {what} ({value}) - {todo}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _read(folder: Directory, name: str) -> tuple[str, str]:
    file = folder.joinpath(name)
    if not file.is_file():
        raise KnowledgeError(
            f"{file}:1: no such file ({name}) - a knowledge base is a directory with {BASE}, {CONDITIONS}, {FINDINGS} and {LINKS}"
        )
    try:
        return str(file), file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise KnowledgeError(f"{file}:{line}: not UTF-8 ({error.object[error.start]:#x}) - save the file as UTF-8") from None


def _table(folder: Directory, name: str, columns: Sequence[str], needs: Iterable[str], optional: bool = False) -> list[_Row]:
    if optional and not folder.joinpath(name).is_file():
        return []
    path, text = _read(folder, name)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[_Row] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cells):
                continue
            if not header:
                header = _header(path, reader.line_num, cells, columns, needs)
                continue
            if len(cells) != len(header):
                what = f"{len(cells)} cells for {len(header)} columns"
                raise KnowledgeError(
                    f"{path}:{reader.line_num}: {what} ({','.join(cells[:3])}...) - look for a missing comma or an unquoted one"
                )
            rows.append(_Row(path, reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise KnowledgeError(f"{path}:{reader.line_num}: not CSV ({error}) - look for an open quotation mark") from None
    if not header:
        raise KnowledgeError(f"{path}:1: no header (empty file) - the first line names the columns: {', '.join(columns)}")
    return rows


def _header(path: str, line: int, cells: list[str], columns: Sequence[str], needs: Iterable[str]) -> list[str]:
    for column in needs:
        if column not in cells:
            raise KnowledgeError(f"{path}:{line}: column is missing ({column}) - add it to the header and to every line")
    for column in cells:
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
            raise KnowledgeError(f"{path}:{line}: unknown column ({column!r}) - {f'did you mean {close[0]!r}?' if close else 'delete it'}")
        if cells.count(column) > 1:
            raise KnowledgeError(f"{path}:{line}: column is given twice ({column!r}) - delete one of them")
    return cells


def _number(text: str) -> Number | None:
    """An int stays an int, so that what was saved loads with an equal fingerprint."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else None
    return None


def _labels(bands: Sequence[int], oldest: int) -> list[str]:
    """`0-0`, `1-4`, ...: the years of each age band."""
    return [f"{low}-{high}" for low, high in zip(bands, [*[b - 1 for b in bands[1:]], oldest], strict=True)]


def _read_conditions(folder: Directory, head: _Head, sources: Mapping[str, str]) -> tuple[dict[str, Condition], dict[str, _Row]]:
    ages = [f"age_{label}" for label in _labels(head.age_bands, head.oldest)]
    priors = [f"prior_{s}" for s in head.settings]
    out: dict[str, Condition] = {}
    where: dict[str, _Row] = {}
    for row in _table(
        folder, CONDITIONS, (*_CONDITION_NEEDS, "icd10", *_CONDITION_TAIL, *priors, *ages), (*_CONDITION_NEEDS, *priors, *ages)
    ):
        row.fresh("id", out)
        row.known("source", "source", sources, SOURCES)
        for column in (*priors, *ages, "female", "male"):
            if row.number(column, 0) < 0:
                raise row.fail(f"{column} is negative", row[column], "write a number >= 0")
        out[row["id"]] = Condition(
            id=row["id"],
            name=row["name"],
            prior={s: row.number(p, 0) for s, p in zip(head.settings, priors, strict=True) if row[p]},
            age=tuple(row.number(a, 1.0) for a in ages),
            sex=(row.number("female", 1.0), row.number("male", 1.0)),
            icd10=row["icd10"],
            severity=row.whole("severity", 2),
            triage=row.whole("triage", 4),
            must_not_miss=row.flag("must_not_miss"),
            source=row["source"],
        )
        where[f"condition {row['id']!r}"] = row
    return out, where


def _read_findings(folder: Directory, head: _Head, sources: Mapping[str, str]) -> tuple[dict[str, Finding], dict[str, _Row]]:
    rows: dict[str, _Row] = {}
    for row in _table(folder, FINDINGS, _FINDING, _FINDING_NEEDS):
        row.fresh("id", rows)
        if row["type"] not in FINDING_TYPES:
            raise row.fail("unknown type", repr(row["type"]), f"use one of {', '.join(FINDING_TYPES)}")
        rows[row["id"]] = row
    cells = _read_backgrounds(folder, head, rows)
    out: dict[str, Finding] = {}
    where: dict[str, _Row] = {}
    for row in rows.values():
        row.known("source", "source", sources, SOURCES)
        if row["parent"]:
            row.known("parent", "finding", rows, FINDINGS)
        values = _values(row)
        out[row["id"]] = Finding(
            id=row["id"],
            name=row["name"],
            type=row["type"],
            values=values,
            kind=row["kind"],
            group=row["group"] or "symptom",
            background=_background(row, row["type"], values),
            background_by_cell=cells.get(row["id"], {}),
            parent=row["parent"] or None,
            activated_by=_split(row["activated_by"]),
            axis=row["axis"],
            complaint=row.number("complaint", 0.0),
            red_flag=row.flag("red_flag"),
            cost=row.number("cost", 1.0),
            reliability=row.number("reliability", 0.0),
            sex=row["sex"],
            ages=_ages(row) or _ANYONE,
            question=row["question"],
            answers=_answers(row, values),
            source=row["source"],
        )
        where[f"finding {row['id']!r}"] = row
        where[f"parents form a cycle: {row['id']} ->"] = row
    return out, where


def _values(row: _Row) -> tuple[str, ...]:
    return _split(row["values"]) or ((NO, YES) if row["type"] == "binary" else ())


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(";")) if text else ()


def _ages(row: _Row) -> tuple[int, int] | None:
    if not row["ages"]:
        return None
    match = re.fullmatch(r"(\d+)-(\d+)", row["ages"])
    if not match or int(match[1]) > int(match[2]):
        raise row.fail("ages is not a range of years", repr(row["ages"]), "write the first and the last year, such as 10-55")
    return int(match[1]), int(match[2])


def _background(row: _Row, kind: str, values: tuple[str, ...]) -> tuple[float, ...]:
    """Blank: none. One number for a binary finding is P(yes)."""
    parts = [row.probability("background", text) for text in _split(row["background"])]
    if kind == "binary" and len(parts) == 1:
        return 1 - parts[0], parts[0]
    if parts and (len(parts) != len(values) or abs(sum(parts) - 1) > 1e-6):
        todo = (
            "write one number, P(yes)"
            if kind == "binary"
            else f"write {len(values)} numbers that sum to 1, one for each of {';'.join(values)}"
        )
        raise row.fail(f"background has {len(parts)} numbers that sum to {sum(parts):.6g}", repr(row["background"]), todo)
    return tuple(parts)


def _answers(row: _Row, values: tuple[str, ...]) -> dict[str, str]:
    out = {v: row[v] for v in (NO, YES) if row[v]}
    for part in _split(row["answers"]):
        value, equals, text = part.partition("=")
        if not equals:
            raise row.fail("an answer has no value", repr(part), "write value=text;value=text")
        out[value] = text
    for value in out:
        if value not in values:
            raise row.fail("an answer is for an unknown value", repr(value), f"use one of {', '.join(values)}")
    return out


def _read_backgrounds(folder: Directory, head: _Head, findings: Mapping[str, _Row]) -> dict[str, dict[tuple[str, int], tuple[float, ...]]]:
    edges = list(zip(head.age_bands, [*[b - 1 for b in head.age_bands[1:]], head.oldest], strict=True))
    out: dict[str, dict[tuple[str, int], tuple[float, ...]]] = {}
    for row in _table(folder, BACKGROUNDS, _BACKGROUND, _BACKGROUND, optional=True):
        finding = row.known("finding", "finding", findings, FINDINGS)
        low, high = _ages(row) or (0, head.oldest)
        if low not in [a for a, _ in edges] or high not in [b for _, b in edges]:
            raise row.fail(
                "ages cuts an age band", repr(row["ages"]), f"use whole bands: {', '.join(_labels(head.age_bands, head.oldest))}"
            )
        if row["sex"] not in ("", *SEXES):
            raise row.fail("unknown sex", repr(row["sex"]), "write female, male, or leave it blank for both")
        background = _background(row, finding["type"], _values(finding))
        for sex in [row["sex"]] if row["sex"] else SEXES:
            for band, (first, last) in enumerate(edges):
                if low <= first and last <= high:
                    table = out.setdefault(row["finding"], {})
                    if (sex, band) in table:
                        label = f"{row['finding']}, {sex}, {first}-{last}"
                        raise row.fail("this background is given twice", label, "let each sex and age stand in one line only")
                    table[sex, band] = background
    return out


def _read_links(
    folder: Directory, conditions: Mapping[str, Condition], findings: Mapping[str, Finding], sources: Mapping[str, str]
) -> tuple[list[Link], dict[str, _Row]]:
    first: dict[tuple[str, str], _Row] = {}
    tables: dict[tuple[str, str], dict[str, float]] = {}
    for row in _table(folder, LINKS, _LINK, _LINK_NEEDS):
        row.known("condition", "condition", conditions, CONDITIONS)
        finding = row.known("finding", "finding", findings, FINDINGS)
        row.known("source", "source", sources, SOURCES)
        row.known("value", f"value of {row['finding']}", dict.fromkeys(finding.values), FINDINGS)
        key = (row["condition"], row["finding"])
        head = first.setdefault(key, row)
        for column in ("fixed", "grade", "source"):
            if row[column] != head[column]:
                raise row.fail(f"{column} differs from line {head.line}, the same link", repr(row[column]), f"write {head[column]!r}")
        table = tables.setdefault(key, {})
        if row["value"] in table:
            raise row.fail("this value of the link is given twice", f"{' -> '.join(key)} = {row['value']}", "delete one of the lines")
        if not row["probability"]:
            raise row.fail("probability is blank", repr(""), "write a number from 0 to 1")
        table[row["value"]] = row.probability("probability", row["probability"])
    links = [
        Link(row["condition"], row["finding"], tables[key], fixed=row.flag("fixed"), grade=row["grade"], source=row["source"])
        for key, row in first.items()
    ]
    return links, {f"link {c} -> {f}": row for (c, f), row in first.items()}


def _read_complaints(
    folder: Directory, conditions: Mapping[str, Condition], findings: Mapping[str, Finding]
) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for row in _table(folder, COMPLAINTS, _COMPLAINT, _COMPLAINT, optional=True):
        row.known("condition", "condition", conditions, CONDITIONS)
        finding = row.known("finding", "finding", findings, FINDINGS)
        if finding.type != "binary" or finding.parent:
            raise row.fail("this finding cannot open a consultation", finding.id, "use a binary finding without a parent")
        table = out.setdefault(row["condition"], {})
        if row["finding"] in table:
            raise row.fail("this complaint is given twice", row["finding"], "delete one of the lines")
        table[row["finding"]] = row.probability("probability", row["probability"])
    return out


def _located(message: str, where: Mapping[str, _Row], path: str) -> KnowledgeError:
    """A rule that `KnowledgeBase` found broken, with the file and line of the entry that its message names."""
    named = sorted((message.find(key), -len(key), key) for key in where if key in message)
    if not named:
        return KnowledgeError(f"{path}:1: {message} - correct the files beside it")
    row = where[named[0][2]]
    return KnowledgeError(f"{row.path}:{row.line}: {message} - correct this line")


def _toml(base: KnowledgeBase) -> str:
    lines = [f"name = {_quoted(base.name)}", f"version = {base.version}", f"age_bands = {list(base.age_bands)}", f"oldest = {base.oldest}"]
    lines += ["notes = [", *[f"    {_quoted(note)}," for note in base.notes], "]", "", "[settings]"]
    lines += [f"{_key(name)} = {_text(share)}" for name, share in base.settings.items()]
    if base.population:
        lines += ["", "[population] # female by age band, then male"]
    for name, rows in base.population.items():
        lines.append(f"{_key(name)} = [{', '.join('[' + ', '.join(map(_text, row)) + ']' for row in rows)}]")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _text(number: float) -> str:
    """The shortest text that reads back as the same number; numpy's numbers too."""
    return json.dumps(number)


def _condition_row(c: Condition, settings: Sequence[str]) -> list[str]:
    priors = [_text(c.prior[s]) if s in c.prior else "" for s in settings]
    tail = [*map(_text, c.sex), str(c.severity), str(c.triage), _flag(c.must_not_miss), c.source]
    return [c.id, c.name, c.icd10, *priors, *map(_text, c.age), *tail]


def _flag(value: bool) -> str:
    return YES if value else ""


def _finding_row(f: Finding) -> list[str]:
    binary = f.type == "binary"
    for value in f.answers:
        if value not in f.values:
            raise KnowledgeError(f"finding {f.id!r}: an answer for the unknown value {value!r} cannot be written: use one of {f.values}")
    cells = {
        **{name: getattr(f, name) for name in ("id", "name", "type", "kind", "group", "axis", "sex", "question", "source")},
        "values": "" if binary else _joined(f, f.values),
        "parent": f.parent or "",
        "activated_by": _joined(f, f.activated_by),
        "background": _background_text(f, f.background),
        "complaint": _text(f.complaint),
        "red_flag": _flag(f.red_flag),
        "cost": _text(f.cost),
        "reliability": _text(f.reliability),
        "ages": "" if f.ages == _ANYONE else f"{f.ages[0]}-{f.ages[1]}",
        "yes": f.answers.get(YES, "") if binary else "",
        "no": f.answers.get(NO, "") if binary else "",
        "answers": "" if binary else _joined(f, [f"{_joined(f, [v], '=')}={text}" for v, text in f.answers.items()]),
    }
    return [cells[column] for column in _FINDING]


def _joined(f: Finding, parts: Iterable[str], forbidden: str = ";") -> str:
    parts = list(parts)
    for part in parts:
        if forbidden in part or not part:
            raise KnowledgeError(f"finding {f.id!r}: {part!r} cannot be written, it is empty or holds {forbidden!r}: reword it")
    return ";".join(parts)


def _background_text(f: Finding, background: Sequence[float]) -> str:
    if f.type == "binary" and len(background) == 2 and _text(1 - background[1]) == _text(background[0]):
        return _text(background[1])
    return ";".join(map(_text, background))


def _link_rows(link: Link) -> list[list[str]]:
    if not link.probabilities:
        raise KnowledgeError(f"link {link.condition} -> {link.finding}: it has no value and cannot be written: leave the link out")
    tail = [_flag(link.fixed), link.grade, link.source]
    return [[link.condition, link.finding, value, _text(p), *tail] for value, p in link.probabilities.items()]


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(text.encode())
    os.replace(part, path)
