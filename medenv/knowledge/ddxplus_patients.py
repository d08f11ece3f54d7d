"""DDXPlus patients files, read as they are written: one CSV, alone or in a zip, and what a list of evidence tokens says.

Both sides need it: counting a training file (`ddxplus_release`) and loading patients (`medenv.cases.ddxplus`).

Does not cover: metadata and probabilities, nor making cases.
"""

from __future__ import annotations

import ast
import csv
import difflib
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from medenv.errors import CaseError
from medenv.knowledge.base import YES, Finding, parents_first

OLDEST = 110  # the releases go up to 109
COLUMNS = ("AGE", "SEX", "PATHOLOGY", "EVIDENCES", "INITIAL_EVIDENCE")
SPLIT_STEMS = {"train": "release_train_patients", "validation": "release_validate_patients", "test": "release_test_patients"}

_SEX_LETTERS = {"F": "female", "M": "male"}


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
                raise CaseError(f"{path}, line 1: the header {short(header)} lacks {', '.join(missing)}; expected {', '.join(COLUMNS)}")
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
            (f.id, f.parent, frozenset(f.activated_by), f.values[:1]) for f in parents_first(findings) if f.parent is not None
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
            raise CaseError(f"{path} holds {len(names)} files ({short(names)}); expected one CSV")
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
        raise CaseError(f"{where[0]}, line {where[1]}: EVIDENCES is {short(text)}; expected a list such as ['E_53', 'E_56_@_4']") from error
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise CaseError(f"{where[0]}, line {where[1]}: EVIDENCES is {short(text)}; expected a list of strings")
    if not tokens:
        raise CaseError(
            f"{where[0]}, line {where[1]}: the patient has no evidence; every DDXPlus patient lists at least one: remove the row"
        )
    return tokens


def short(value: Any) -> str:
    """The value as text, cut to 80 characters for a message."""
    text = str(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")
