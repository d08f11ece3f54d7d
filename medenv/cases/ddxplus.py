"""DDXPlus patients as cases: a release's CSV, or its zip, with a report of all that had to be put right.

How evidences are read is said in `medenv.knowledge.ddxplus`. An evidence that a patient does not list is absent: "no" for a
binary one, the default for another root; so a case answers every question, except a child's whose parent is not active.

Does not cover: the differential diagnoses of the release, nor other data sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medenv.cases.case import SPLITS, Case
from medenv.errors import CaseError, unknown
from medenv.knowledge.base import KnowledgeBase
from medenv.knowledge.ddxplus import SETTING
from medenv.knowledge.ddxplus_patients import Listing, closest, patients_file, read_patients

KINDS = {
    "orphan_default": "a child at its default under an absent parent: dropped",
    "orphan_value": "a child with another value under an absent parent: dropped",
    "default_filled": "a child that is not listed under an active parent: its default",
    "default_with_others": "a multi-choice default listed beside other values: the default is dropped",
    "two_values": "two values of a finding that can have one: unknown",
    "repeated": "an evidence listed twice: counted once",
    "opening_not_listed": "an initial evidence that the patient does not list: no opening statement",
    "opening_cannot_open": "an initial evidence that is not a binary finding without parent: no opening statement",
}
EXAMPLES = 3  # how many examples of each kind a report keeps


@dataclass
class Report:
    """What `load_cases` met: the number of cases, and per kind (see `KINDS`) how often and the first examples."""

    path: str
    split: str
    cases: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, line: int, what: str) -> None:
        """Count one event on a line of the file."""
        self.counts[kind] += 1
        if self.counts[kind] <= EXAMPLES:
            self.examples.setdefault(kind, []).append(f"line {line}: {what}")

    def lines(self) -> list[str]:
        """For people: one line for the file, one per kind met."""
        head = f"{self.path}: {self.cases} cases, split {self.split or 'by content'}"
        return [head, *(f"{n} x {KINDS[k]} ({'; '.join(self.examples[k])})" for k, n in sorted(self.counts.items()))]


class Answers(Mapping[str, tuple[str, ...]]):
    """A case's values: what one patient lists over what all share when they list nothing.

    Equal to the dict it stands for, at a tenth of its size: 134,000 patients of 209 values each would take over a gigabyte.
    """

    __slots__ = ("absent", "listed")

    def __init__(self, listed: dict[str, tuple[str, ...]], absent: Mapping[str, tuple[str, ...]]) -> None:
        self.listed = listed
        self.absent = absent

    def __getitem__(self, key: str) -> tuple[str, ...]:
        found = self.listed.get(key)
        return self.absent[key] if found is None else found

    def __iter__(self) -> Iterator[str]:
        yield from self.absent
        yield from (k for k in self.listed if k not in self.absent)

    def __len__(self) -> int:
        return len(self.absent) + sum(k not in self.absent for k in self.listed)

    def __repr__(self) -> str:
        return repr(dict(self))


def load_cases(path: str | Path, base: KnowledgeBase, split: str | None = None) -> tuple[list[Case], Report]:
    """All patients of a file, or of the file of `split` in a release's directory, in their order.

    `split` is "train", "validation", "test" or "" (a hash of the content decides); None takes it from the file's name. Nothing
    is fitted here: `base` gives names and values only. Raises `CaseError` naming file, line and value.
    """
    if split and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    file = _file(Path(path), split)
    split = _split_of(file.name) if split is None else split
    listing, report = Listing(base.findings), Report(str(file), split)
    truths = {c.name: c.id for c in base.conditions} | {c.id: c.id for c in base.conditions}
    can_open = {f.id for f in base.findings if f.type == "binary" and f.parent is None}
    cases: list[Case] = []
    for row in read_patients(file):
        where = (file, row.line)
        if row.condition not in truths:
            raise CaseError(f"{file}, line {row.line}: unknown condition {row.condition!r}{closest(row.condition, truths)}")
        listed, events = listing.read(row.tokens, where)
        opening: str | None = row.opening
        if opening not in can_open or opening not in listed:
            listing.read([row.opening], where)  # an unknown code is an error, not an opening that is missing
            events.append(("opening_not_listed" if opening in can_open else "opening_cannot_open", row.opening))
            opening = None
        for kind, what in events:
            report.add(kind, row.line, what)
        cases.append(Case(float(row.age), row.sex, SETTING, truths[row.condition], Answers(listed, listing.absent), opening, split))
    if not cases:
        raise CaseError(f"{file} has a header but no patient: download it again")
    report.cases = len(cases)
    return cases, report


def _file(path: Path, split: str | None) -> Path:
    if not path.is_dir():
        return path
    if not split:
        raise CaseError(f"{path} is a directory: say which split to load (train, validation or test), or name a file in it")
    file = patients_file(path, split)
    if file is None:
        raise CaseError(f"{path} has no patients file for the split {split!r}: add the release's zip or CSV")
    return file


def _split_of(name: str) -> str:
    words = {"train": "train", "valid": "validation", "test": "test"}
    found = [split for word, split in words.items() if word in name.lower()]
    return found[0] if len(found) == 1 else ""
