"""Writing the plain-text format of `medenv.knowledge.files`, and its file and column names, which reading shares.

Does not cover: reading and checking, nor what a column means (both `files`).
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from medenv.errors import KnowledgeError
from medenv.knowledge.base import NO, TEST_COSTS, YES, Condition, Finding, KnowledgeBase, Link


class File(StrEnum):
    """The names of the files."""

    BASE = "base.toml"
    CONDITIONS = "conditions.csv"
    FINDINGS = "findings.csv"
    LINKS = "links.csv"
    BACKGROUNDS = "backgrounds.csv"
    COMPLAINTS = "complaints.csv"
    SOURCES = "sources.csv"


COLUMNS: dict[str, tuple[str, ...]] = {
    File.FINDINGS: (
        *("id", "name", "type", "values", "kind", "group", "parent", "activated_by", "axis", "background", "complaint", "red_flag"),
        *("cost", "reliability", *TEST_COSTS, "sex", "ages", "question", "yes", "no", "answers", "source"),
    ),
    File.LINKS: ("condition", "finding", "value", "probability", "fixed", "grade", "source"),
    File.BACKGROUNDS: ("finding", "sex", "ages", "background"),
    File.COMPLAINTS: ("condition", "finding", "probability"),
    File.SOURCES: ("id", "citation"),
}  # those of conditions.csv depend on the base, see `condition_columns`
OPTIONAL_FILES = (File.BACKGROUNDS, File.COMPLAINTS, File.SOURCES)
OPTIONAL_COLUMNS: dict[str, Collection[str]] = {
    File.CONDITIONS: ("icd10", "female", "male", "severity", "triage", "must_not_miss", "source"),
    File.FINDINGS: set(COLUMNS[File.FINDINGS]) - {"id", "name", "type", "values", "kind", "background"},
    File.LINKS: ("fixed", "grade", "source"),
}
ANYONE = (0, 200)  # the ages of a finding without limits


def save_base(base: KnowledgeBase, directory: str | Path, sources: Mapping[str, str] | None = None) -> None:
    """Write `base` so that `load_base` gives an equal fingerprint. Creates the directory and overwrites the files of the format.

    `sources` maps source ids to citations; a source without one gets its id. Raises KnowledgeError where the format
    cannot hold an entry, such as a value with a semicolon in it. A column of money, delay or invasiveness that is 0 throughout is left out.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    labels = band_labels(base.age_bands, base.oldest)
    used = [*(c.source for c in base.conditions), *(f.source for f in base.findings), *(link.source for link in base.links)]
    cited = [source for source in dict.fromkeys(used) if source]
    _write(folder / File.BASE, _toml(base))
    columns = condition_columns(base.settings, base.age_bands, base.oldest)
    _write_table(folder / File.CONDITIONS, columns, (_condition_row(c, base.settings) for c in base.conditions))
    columns = [c for c in COLUMNS[File.FINDINGS] if c not in TEST_COSTS or any(getattr(f, c) for f in base.findings)]
    _write_table(folder / File.FINDINGS, columns, (_finding_row(f, columns) for f in base.findings))
    _write_table(folder / File.LINKS, COLUMNS[File.LINKS], (row for link in base.links for row in _link_rows(link)))
    cells = ([f.id, sex, labels[band], _background_text(f, p)] for f in base.findings for (sex, band), p in f.background_by_cell.items())
    _write_table(folder / File.BACKGROUNDS, COLUMNS[File.BACKGROUNDS], cells)
    opening = ([c, f, _text(p)] for c, table in base.complaints.items() for f, p in table.items())
    _write_table(folder / File.COMPLAINTS, COLUMNS[File.COMPLAINTS], opening)
    _write_table(folder / File.SOURCES, COLUMNS[File.SOURCES], ([s, (sources or {}).get(s, s)] for s in cited))


def band_labels(bands: Sequence[int], oldest: int) -> list[str]:
    """The years of each age band, first and last: `0-0`, `1-4`, ..."""
    return [f"{low}-{high}" for low, high in zip(bands, [*[b - 1 for b in bands[1:]], oldest], strict=True)]


def condition_columns(settings: Iterable[str], bands: Sequence[int], oldest: int) -> list[str]:
    """The columns of conditions.csv in a base with these settings and age bands."""
    priors, ages = [f"prior_{s}" for s in settings], [f"age_{label}" for label in band_labels(bands, oldest)]
    return ["id", "name", "icd10", *priors, *ages, "female", "male", "severity", "triage", "must_not_miss", "source"]


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


def _condition_row(c: Condition, settings: Mapping[str, float]) -> list[str]:
    for name in c.prior:
        if name not in settings:
            raise KnowledgeError(
                f"condition {c.id!r}: a prior in the unknown setting {name!r} cannot be written: add the setting to the base"
            )
    priors = [_text(c.prior[s]) if s in c.prior else "" for s in settings]
    tail = [*map(_text, c.sex), str(c.severity), str(c.triage), _flag(c.must_not_miss), c.source]
    return [c.id, c.name, c.icd10, *priors, *map(_text, c.age), *tail]


def _flag(value: bool) -> str:
    return YES if value else ""


def _finding_row(f: Finding, columns: Iterable[str]) -> list[str]:
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
        **{name: _text(getattr(f, name)) if getattr(f, name) else "" for name in TEST_COSTS},
        "ages": "" if f.ages == ANYONE else f"{f.ages[0]}-{f.ages[1]}",
        "yes": f.answers.get(YES, "") if binary else "",
        "no": f.answers.get(NO, "") if binary else "",
        "answers": "" if binary else _joined(f, [f"{_joined(f, [v], '=')}={text}" for v, text in f.answers.items()]),
    }
    return [cells[column] for column in columns]


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
