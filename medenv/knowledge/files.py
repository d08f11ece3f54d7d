"""Knowledge bases as plain text: a directory of CSV files and one TOML file that a clinician can read and diff.

    base.toml        name, version, age_bands, oldest, notes, [settings] with shares, [population] with [female row, male row]
    conditions.csv   id, name, icd10, prior_<setting> ..., age_<first>-<last> ..., female, male, severity, triage, must_not_miss, source
    findings.csv     id, name, type, values (a;b;c, blank if binary), kind, group, parent, activated_by (a;b), axis, background
                     (P(yes) if binary, else one per value), complaint, red_flag, cost, reliability, money (US dollars), delay (hours),
                     invasiveness (0 to 1), sex, ages (10-55), question, yes, no, answers (value=text;value=text, if not binary), source
    links.csv        condition, finding, value, probability, fixed, grade, source: one line per value
    backgrounds.csv  finding, sex, ages, background: where a demographic cell differs; blank = every sex or age          (optional)
    complaints.csv   condition, finding, probability: P(it opens the consultation | condition)                          (optional)
    sources.csv      id, citation: what the `source` columns refer to                                                   (optional)

Flags are `yes` or blank; a blank cell means the default of `medenv.knowledge.base`. Every error names the file and the line.

Does not cover: writing (`files_write`), other formats (`ddxplus`), nor whether each condition has enough openings (`compiled`).
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from medenv.errors import KnowledgeError, UnknownName
from medenv.knowledge.base import FINDING_TYPES, NO, SEXES, TEST_COSTS, YES, Condition, Finding, KnowledgeBase, Link
from medenv.knowledge.files_write import ANYONE, COLUMNS, OPTIONAL_COLUMNS, OPTIONAL_FILES, File, band_labels, condition_columns

T = TypeVar("T")
Backgrounds = dict[tuple[str, int], tuple[float, ...]]
Directory = Path | Traversable


def load_base(directory: str | Directory) -> KnowledgeBase:
    """The knowledge base in `directory`; `source` fields hold ids of sources.csv.

    Raises KnowledgeError, `file:line: what (value) - what to do`, at the first thing that is wrong.
    """
    folder: Directory = Path(directory) if isinstance(directory, str) else directory
    head = _read_head(folder)
    files = _Files(folder, {**load_sources(folder), "": ""}, {})
    conditions = _read_conditions(files, head)
    findings = _read_findings(files, head)
    links = _read_links(files, conditions, findings)
    complaints = _read_complaints(files, conditions, findings)
    try:
        return KnowledgeBase(
            **head, conditions=tuple(conditions.values()), findings=tuple(findings.values()), links=links, complaints=complaints
        )
    except (KnowledgeError, UnknownName) as error:
        raise _located(str(error), files) from error


def load_sources(directory: str | Directory) -> dict[str, str]:
    """Citations by source id, from sources.csv; empty where there is no such file."""
    folder: Directory = Path(directory) if isinstance(directory, str) else directory
    out: dict[str, str] = {}
    for row in _table(folder, File.SOURCES, COLUMNS[File.SOURCES]):
        row.fresh("id", out)
        out[row["id"]] = row["citation"]
    return out


@cache
def builtin() -> KnowledgeBase:
    """The base that comes with the package, `builtin@0`: about a hundred conditions of primary and emergency care."""
    return load_base(resources.files("medenv.knowledge").joinpath("builtin"))


@dataclass(frozen=True)
class _Row:
    """One line of a table: cells by column, and where it stands."""

    path: str
    line: int
    cells: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    def fail(self, what: str, value: object, todo: str) -> KnowledgeError:
        return KnowledgeError(f"{self.path}:{self.line}: {what} ({value}) - {todo}")

    def number(self, column: str, default: float) -> float:
        return self._parsed(column, self[column]) if self[column] else default

    def whole(self, column: str, default: int) -> int:
        value = self.number(column, default)
        if not isinstance(value, int):
            raise self.fail(f"{column} is not a whole number", repr(self[column]), "write one without a decimal point")
        return value

    def probability(self, column: str, text: str) -> float:
        value = self._parsed(column, text) if text else -1
        if not 0 <= value <= 1:
            raise self.fail(f"{column} is {'not a probability' if text else 'blank'}", repr(text), "write a number from 0 to 1")
        return value

    def flag(self, column: str) -> bool:
        if self[column] not in ("", NO, YES):
            raise self.fail(f"{column} is neither yes nor blank", repr(self[column]), "write yes, or leave the cell blank")
        return self[column] == YES

    def known(self, column: str, kind: str, names: Mapping[str, T], home: str) -> T:
        name = self[column]
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            raise self.fail(f"unknown {kind}", repr(name), f"did you mean {close[0]!r}?" if close else f"add it to {home}")
        return names[name]

    def fresh(self, column: str, seen: Mapping[str, object]) -> None:
        if not self[column]:
            raise self.fail(f"{column} is blank", repr(""), "give it an id")
        if self[column] in seen:
            raise self.fail(f"{column} is given twice", repr(self[column]), "delete one of the lines or change the id")

    def split(self, column: str) -> tuple[str, ...]:
        return tuple(self[column].split(";")) if self[column] else ()

    def values(self) -> tuple[str, ...]:
        return self.split("values") or ((NO, YES) if self["type"] == "binary" else ())

    def ages(self) -> tuple[int, int] | None:
        if not self["ages"]:
            return None
        match = re.fullmatch(r"(\d+)-(\d+)", self["ages"])
        if not match or int(match[1]) > int(match[2]):
            raise self.fail("ages is not a range of years", repr(self["ages"]), "write the first and the last year, such as 10-55")
        return int(match[1]), int(match[2])

    def background(self, finding: _Row) -> tuple[float, ...]:
        """The background in a line about `finding`. Blank: none. One number for a binary finding is P(yes)."""
        parts = tuple(self.probability("background", text) for text in self.split("background"))
        binary, values = finding["type"] == "binary", finding.values()
        if binary and len(parts) == 1:
            return 1 - parts[0], parts[0]
        if parts and (len(parts) != len(values) or abs(sum(parts) - 1) > 1e-6):
            todo = f"write numbers that sum to 1, one for each of {';'.join(values)}{', or P(yes) alone' if binary else ''}"
            raise self.fail(f"background has {len(parts)} numbers that sum to {sum(parts):.6g}", repr(self["background"]), todo)
        return parts

    def answers(self) -> dict[str, str]:
        out: dict[str, str] = {}
        binary = [(value, "=", self[value]) for value in (NO, YES) if self[value]]
        for value, equals, text in [*binary, *(part.partition("=") for part in self.split("answers"))]:
            if not equals:
                raise self.fail("an answer has no value", repr(value), "write value=text;value=text")
            if value not in self.values():
                raise self.fail("an answer is for an unknown value", repr(value), f"use one of {', '.join(self.values())}")
            out[value] = text
        return out

    def _parsed(self, column: str, text: str) -> float:
        """An int stays an int, so that what was saved loads with an equal fingerprint."""
        for kind in (int, float):
            try:
                value = kind(text)
            except ValueError:
                continue
            if math.isfinite(value):
                return value
        raise self.fail(f"{column} is not a number", repr(text), "write a number such as 0.25")


@dataclass(frozen=True)
class _Files:
    """The folder, its citations, and the line of each entry, by the words with which `KnowledgeBase` names it in an error."""

    folder: Directory
    sources: Mapping[str, str]
    where: dict[str, _Row]


def _a(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_share(value: Any) -> bool:
    return (_a(int)(value) or _a(float)(value)) and math.isfinite(value) and value >= 0


_HEAD: dict[str, tuple[Callable[[Any], bool], str, Any]] = {  # key: what it must be, in words, default (None: it must be there)
    "name": (_a(str), "a text in quotes", None),
    "version": (_a(int), "a whole number", None),
    "age_bands": (_list_of(_a(int)), "a list of whole years, first 0", [0]),
    "oldest": (_a(int), "a whole number of years", 100),
    "notes": (_list_of(_a(str)), "a list of texts", []),
    "settings": (_a(dict), "a table of shares", {"primary": 1.0}),
    "population": (_a(dict), "a table", {}),
}


def _read_head(folder: Directory) -> dict[str, Any]:
    """base.toml, checked: the fields of `KnowledgeBase` that it holds."""
    path, text = _read(folder, File.BASE)
    lines = text.splitlines()

    def fail(key: str, what: str, value: object, todo: str, section: str = "") -> KnowledgeError:
        """tomllib keeps no line numbers, so the key's line is looked up in the text."""
        starts = re.compile(rf"""\s*\[?["']?{re.escape(key)}["']?\s*[=\]]""")
        begin = next((i for i, line in enumerate(lines) if line.strip().startswith(f"[{section}]")), 0) if section else 0
        return _Row(path, next((i for i, line in enumerate(lines[begin:], begin + 1) if starts.match(line)), 1)).fail(what, value, todo)

    try:
        head: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"line (\d+)", str(error))
        raise _Row(path, int(at[1]) if at else len(lines)).fail("not TOML", error, "correct the syntax") from None
    for key in head:
        if key not in _HEAD:
            raise fail(key, "unknown key", key, "delete it or correct its name")
    for key, (check, needs, default) in _HEAD.items():
        if head.get(key, default) is None:
            raise _Row(path, 1).fail(f"{key} is missing", repr(key), f"add it: {needs}")
        if not check(head.setdefault(key, default)):
            raise fail(key, f"{key} is of the wrong kind", repr(head[key]), f"write {needs}")
    bands, oldest, settings = head["age_bands"], head["oldest"], head["settings"]
    if not bands or bands != sorted(set(bands)) or bands[0] != 0 or bands[-1] > oldest:
        raise fail("age_bands", "age bands do not rise from 0", bands, f"list rising years from 0 to at most {oldest}")
    for name, share in settings.items():
        if not _is_share(share):
            raise fail(name, f"share of {name!r} is not a number >= 0", share, "write a number such as 0.6", "settings")
    if not any(settings.values()):
        raise fail("settings", "no setting has a share", settings, "give one a share above 0")
    for name, rows in head["population"].items():
        if name not in settings:
            raise fail(name, "population of an unknown setting", name, f"use one of {', '.join(settings)}", "population")
        if not _list_of(_list_of(_is_share))(rows) or [len(row) for row in rows] != [len(bands)] * 2 or not any(map(any, rows)):
            todo = f"give [female, male] rows of {len(bands)} numbers, not all 0"
            raise fail(name, "population is not 2 rows of numbers >= 0", rows, todo, "population")
    people = {name: tuple(map(tuple, rows)) for name, rows in head["population"].items()}
    return {**head, "age_bands": tuple(bands), "notes": tuple(head["notes"]), "settings": dict(settings), "population": people}


def _read(folder: Directory, name: str) -> tuple[str, str]:
    file = folder.joinpath(name)
    if not file.is_file():
        raise _Row(str(file), 1).fail("no such file", name, f"a knowledge base is a directory with {', '.join(list(File)[:4])}")
    raw: bytes = file.read_bytes()
    try:
        return str(file), raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _Row(str(file), raw.count(b"\n", 0, error.start) + 1)
        raise place.fail("not UTF-8", f"{raw[error.start]:#x}", "save the file as UTF-8") from None


def _table(folder: Directory, name: str, columns: Sequence[str]) -> list[_Row]:
    """The lines of a CSV file under its header; none where an optional file is absent."""
    if name in OPTIONAL_FILES and not folder.joinpath(name).is_file():
        return []
    path, text = _read(folder, name)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cells)]
    except csv.Error as error:
        raise _Row(path, reader.line_num).fail("not CSV", error, "look for an open quotation mark") from None
    if not lines:
        raise _Row(path, 1).fail("no header", "empty file", f"the first line names the columns: {', '.join(columns)}")
    top, header = _Row(path, lines[0][0]), lines[0][1]
    for column in columns:
        if column not in header and column not in OPTIONAL_COLUMNS.get(name, ()):
            raise top.fail("column is missing", column, "add it to the header and to every line")
    for column in header:
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
            raise top.fail("unknown column", repr(column), f"did you mean {close[0]!r}?" if close else "delete it")
        if header.count(column) > 1:
            raise top.fail("column is given twice", repr(column), "delete one of them")
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            what, value = f"{len(cells)} cells for {len(header)} columns", f"{','.join(cells[:3])}..."
            raise _Row(path, line).fail(what, value, "look for a missing comma or an unquoted one")
    return [_Row(path, line, dict(zip(header, cells, strict=True))) for line, cells in lines[1:]]


def _read_conditions(files: _Files, head: dict[str, Any]) -> dict[str, Condition]:
    columns = condition_columns(head["settings"], head["age_bands"], head["oldest"])
    out: dict[str, Condition] = {}
    for row in _table(files.folder, File.CONDITIONS, columns):
        row.fresh("id", out)
        row.known("source", "source", files.sources, File.SOURCES)
        out[row["id"]] = Condition(
            **{column: row[column] for column in ("id", "name", "icd10", "source")},
            prior={s: row.number(f"prior_{s}", 0) for s in head["settings"] if row[f"prior_{s}"]},
            age=tuple(row.number(column, 1.0) for column in columns if column.startswith("age_")),
            sex=(row.number("female", 1.0), row.number("male", 1.0)),
            severity=row.whole("severity", 2),
            triage=row.whole("triage", 4),
            must_not_miss=row.flag("must_not_miss"),
        )
        files.where[f"condition {row['id']!r}"] = row
    return out


def _read_findings(files: _Files, head: dict[str, Any]) -> dict[str, Finding]:
    rows: dict[str, _Row] = {}
    for row in _table(files.folder, File.FINDINGS, COLUMNS[File.FINDINGS]):
        row.fresh("id", rows)
        if row["type"] not in FINDING_TYPES:
            raise row.fail("unknown type", repr(row["type"]), f"use one of {', '.join(FINDING_TYPES)}")
        rows[row["id"]] = row
    backgrounds = _read_backgrounds(files, head, rows)
    out: dict[str, Finding] = {}
    for name, row in rows.items():
        row.known("source", "source", files.sources, File.SOURCES)
        if row["parent"]:
            row.known("parent", "finding", rows, File.FINDINGS)
        cells: dict[str, Any] = {column: row[column] for column in ("id", "name", "type", "kind", "axis", "sex", "question", "source")}
        cells |= {column: row.number(column, 0.0) for column in ("complaint", "reliability", *TEST_COSTS)}
        out[name] = Finding(
            **cells,
            values=row.values(),
            group=row["group"] or "symptom",
            background=row.background(row),
            background_by_cell=backgrounds.get(name, {}),
            parent=row["parent"] or None,
            activated_by=row.split("activated_by"),
            red_flag=row.flag("red_flag"),
            cost=row.number("cost", 1.0),
            ages=row.ages() or ANYONE,
            answers=row.answers(),
        )
        files.where[f"finding {name!r}"] = files.where[f"parents form a cycle: {name} ->"] = row
    return out


def _read_backgrounds(files: _Files, head: dict[str, Any], findings: Mapping[str, _Row]) -> dict[str, Backgrounds]:
    bands = [*head["age_bands"], head["oldest"] + 1]
    out: dict[str, Backgrounds] = {}
    for row in _table(files.folder, File.BACKGROUNDS, COLUMNS[File.BACKGROUNDS]):
        background = row.background(row.known("finding", "finding", findings, File.FINDINGS))
        low, high = row.ages() or (0, head["oldest"])
        if low not in bands or high + 1 not in bands:
            todo = f"use whole bands: {', '.join(band_labels(head['age_bands'], head['oldest']))}"
            raise row.fail("ages cuts an age band", repr(row["ages"]), todo)
        if row["sex"] not in ("", *SEXES):
            raise row.fail("unknown sex", repr(row["sex"]), "write female, male, or leave it blank for both")
        table = out.setdefault(row["finding"], {})
        for sex in [row["sex"]] if row["sex"] else SEXES:
            for band in range(bands.index(low), bands.index(high + 1)):
                if (sex, band) in table:
                    label = f"{row['finding']}, {sex}, {bands[band]}-{bands[band + 1] - 1}"
                    raise row.fail("this background is given twice", label, "let each sex and age stand in one line only")
                table[sex, band] = background
    return out


def _read_links(files: _Files, conditions: Mapping[str, Condition], findings: Mapping[str, Finding]) -> tuple[Link, ...]:
    first: dict[tuple[str, str], _Row] = {}
    tables: dict[tuple[str, str], dict[str, float]] = {}
    for row in _table(files.folder, File.LINKS, COLUMNS[File.LINKS]):
        row.known("condition", "condition", conditions, File.CONDITIONS)
        finding = row.known("finding", "finding", findings, File.FINDINGS)
        row.known("source", "source", files.sources, File.SOURCES)
        row.known("value", f"value of {row['finding']}", dict.fromkeys(finding.values), File.FINDINGS)
        key = (row["condition"], row["finding"])
        head = first.setdefault(key, row)
        for column in ("fixed", "grade", "source"):
            if row[column] != head[column]:
                raise row.fail(f"{column} differs from line {head.line}, the same link", repr(row[column]), f"write {head[column]!r}")
        table = tables.setdefault(key, {})
        if row["value"] in table:
            raise row.fail("this value of the link is given twice", f"{' -> '.join(key)} = {row['value']}", "delete one of the lines")
        table[row["value"]] = row.probability("probability", row["probability"])
    files.where.update({f"link {c} -> {f}": row for (c, f), row in first.items()})
    return tuple(Link(*key, tables[key], row.flag("fixed"), row["grade"], row["source"]) for key, row in first.items())


def _read_complaints(files: _Files, conditions: Mapping[str, Condition], findings: Mapping[str, Finding]) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for row in _table(files.folder, File.COMPLAINTS, COLUMNS[File.COMPLAINTS]):
        row.known("condition", "condition", conditions, File.CONDITIONS)
        row.known("finding", "finding", findings, File.FINDINGS)
        table = out.setdefault(row["condition"], {})
        if row["finding"] in table:
            raise row.fail("this complaint is given twice", row["finding"], "delete one of the lines")
        table[row["finding"]] = row.probability("probability", row["probability"])
        files.where.setdefault(f"complaints of {row['condition']!r}", row)
        files.where[f"complaint {row['condition']} -> {row['finding']}"] = row
    return out


def _located(message: str, files: _Files) -> KnowledgeError:
    """A rule that `KnowledgeBase` found broken, with the file and line of the entry that its message names."""
    named = sorted((message.find(key), -len(key), key) for key in files.where if key in message)
    place = files.where[named[0][2]] if named else _Row(str(files.folder.joinpath(File.BASE)), 1)
    return KnowledgeError(f"{place.path}:{place.line}: {message} - correct {'this line' if named else 'the files beside it'}")
