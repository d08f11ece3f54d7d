"""What the simulator knows: conditions, findings, and how often one shows the other.

`KnowledgeBase` is plain, frozen data, checked when it is made; `medenv.knowledge.compiled` turns it into arrays once.
Words: a *condition* can be diagnosed, a *finding* can be asked, a *link* is P(value | condition).

Does not cover: reading files (`files`, `ddxplus`), nor anything that draws a patient (`medenv.cases`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from medenv.errors import KnowledgeError, unknown

FINDING_TYPES = ("binary", "categorical", "multi_choice", "scale", "numeric")
QUESTION_KINDS = ("ask", "examine", "order")
SEXES = ("female", "male")
NO, YES = "no", "yes"
TEST_COSTS = ("money", "delay", "invasiveness")  # of a Finding; where they are 0, files and fingerprint leave them out


@dataclass(frozen=True)
class Condition:
    """Something that can be diagnosed.

    `prior` is its share of the consultations in each setting (>= 0, any scale), `age` one multiplier per age band and
    `sex` one per sex (female, male); a multiplier of 0 is a hard limit. `severity` runs from 1 (mild) to 5 (deadly),
    `triage` from 1 (at once) to 5 (can wait for weeks).
    """

    id: str
    name: str
    prior: Mapping[str, float]
    age: tuple[float, ...]
    sex: tuple[float, float] = (1.0, 1.0)
    icd10: str = ""
    severity: int = 2
    triage: int = 4
    must_not_miss: bool = False
    source: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that can be asked, examined or ordered.

    `values` are `("no", "yes")` for a binary finding, else two or more names (numeric: bins such as `"38.0-38.9"`).
    `background` is the distribution over `values` without any cause (it sums to 1); `background_by_cell` replaces it in
    a demographic cell `(sex, age band index)`. A child is asked only when its `parent` was answered by one of
    `activated_by`. `complaint` is the salience as an opening statement (0: never one). `reliability` in [0, 1] is how far
    the answer resists reporting noise: it is misreported with probability noise * (1 - reliability).
    `sex` and `ages` (inclusive years) limit who can have it and be asked.

    `cost` (>= 0) is the whole price of the question in the base's units, an ordinary question 1. What a test costs is also given apart:
    `money` in US dollars (>= 0), `delay` in hours until the answer is there (>= 0), `invasiveness` in [0, 1] (0 none, .1 a blood draw,
    .6 a lumbar puncture, 1 like surgery).
    """

    id: str
    name: str
    type: str = "binary"
    values: tuple[str, ...] = (NO, YES)
    kind: str = "ask"
    group: str = "symptom"
    background: tuple[float, ...] = ()
    background_by_cell: Mapping[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    parent: str | None = None
    activated_by: tuple[str, ...] = ()
    axis: str = ""
    complaint: float = 0.0
    red_flag: bool = False
    cost: float = 1.0
    reliability: float = 0.0
    money: float = 0.0
    delay: float = 0.0
    invasiveness: float = 0.0
    sex: str = ""
    ages: tuple[int, int] = (0, 200)
    question: str = ""
    answers: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Link:
    """P(values of `finding` | `condition`), on top of the background.

    Binary: the present value's chance through this condition alone, joined with the background by noisy-or,
    1 - (1 - link)(1 - background), or, with `fixed`, the whole probability. Other types: the chance of each named
    value; what is missing to 1 follows the background. A child's link holds given that its parent is active.
    """

    condition: str
    finding: str
    probabilities: Mapping[str, float]
    fixed: bool = False
    grade: str = ""
    source: str = ""


@dataclass(frozen=True)
class KnowledgeBase:
    """Everything a simulator needs, as frozen data, versioned apart from the environments (`builtin@0`).

    `age_bands` are the lower edges in years, first 0; the last band ends at `oldest`. `population[setting]` has shape
    [2][len(age_bands)]: who consults, female then male, any scale. `complaints[condition]` maps a finding to
    P(it is the opening statement | condition), for binary findings without parent, not all 0 (scaled to sum to 1); a condition
    without an entry gets one from the findings' salience.
    """

    name: str
    version: int
    conditions: tuple[Condition, ...]
    findings: tuple[Finding, ...]
    links: tuple[Link, ...]
    age_bands: tuple[int, ...] = (0,)
    oldest: int = 100
    settings: Mapping[str, float] = field(default_factory=lambda: {"primary": 1.0})
    population: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    complaints: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    @property
    def id(self) -> str:
        """`name@version`, as users write it."""
        return f"{self.name}@{self.version}"

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over the whole content but the notes; it stands in every record and checkpoint.

        `money`, `delay` and `invasiveness` enter only where they are not 0, so a base without them has the digits of earlier versions.
        """
        body = {k: v for k, v in asdict(self).items() if k != "notes"}
        body["findings"] = [{k: v for k, v in f.items() if v or k not in TEST_COSTS} for f in body["findings"]]
        return hashlib.sha256(json.dumps(_plain(body), sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def condition_index(self) -> dict[str, int]:
        """Condition id -> index in [0, D)."""
        return {c.id: i for i, c in enumerate(self.conditions)}

    @cached_property
    def finding_index(self) -> dict[str, int]:
        """Finding id -> index in [0, Q): a question asks one finding and has its index."""
        return {f.id: i for i, f in enumerate(self.findings)}

    def condition(self, name: str) -> Condition:
        """The condition with this id; an unknown one proposes the closest."""
        if name not in self.condition_index:
            raise unknown("condition", name, self.condition_index)
        return self.conditions[self.condition_index[name]]

    def finding(self, name: str) -> Finding:
        """The finding with this id; an unknown one proposes the closest."""
        if name not in self.finding_index:
            raise unknown("finding", name, self.finding_index)
        return self.findings[self.finding_index[name]]

    def band(self, age: float) -> int:
        """The index of the age band that holds `age` (years)."""
        return sum(age >= edge for edge in self.age_bands[1:])


def parents_first(findings: Sequence[Finding]) -> list[Finding]:
    """The findings in an order in which a parent comes before its children. KnowledgeError for a cycle or a missing parent."""
    out: dict[str, Finding] = {}
    left = list(findings)
    while left:
        ready = [f for f in left if f.parent is None or f.parent in out]
        if not ready:
            names = ", ".join(f.id for f in left)
            raise KnowledgeError(f"the parents of {names} form a cycle or do not exist: give each a parent that leads to a root")
        out.update({f.id: f for f in ready})
        left = [f for f in left if f.id not in out]
    return list(out.values())


def _plain(value: Any) -> Any:
    """JSON with string keys; tuples of a cell become `female:3`."""
    if isinstance(value, Mapping):
        return {":".join(map(str, k)) if isinstance(k, tuple) else str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _probability(value: float, where: str) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and 0.0 <= value <= 1.0):
        raise KnowledgeError(f"{where}: {value!r} is not a probability in [0, 1]")


def _check(base: KnowledgeBase) -> None:
    """Every rule that a base must keep; the first one broken is raised with the entry and the value."""
    if not base.conditions or not base.findings:
        raise KnowledgeError(f"{base.id}: a base needs at least one condition and one finding")
    for what, items in (("condition", base.conditions), ("finding", base.findings)):
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise KnowledgeError(f"{what} {item.id!r} is defined twice: give each an id of its own")
            seen.add(item.id)
    if list(base.age_bands) != sorted(set(base.age_bands)) or base.age_bands[0] != 0 or base.age_bands[-1] > base.oldest:
        raise KnowledgeError(f"age bands {base.age_bands} must rise from 0 to at most {base.oldest}")
    for condition in base.conditions:
        _check_condition(base, condition)
    for finding in base.findings:
        _check_finding(base, finding)
    _check_parents(base)
    pairs: set[tuple[str, str]] = set()
    for link in base.links:
        _check_link(base, link)
        if (link.condition, link.finding) in pairs:
            raise KnowledgeError(f"link {link.condition} -> {link.finding} is given twice")
        pairs.add((link.condition, link.finding))
    for name, table in base.complaints.items():
        _check_complaints(base, name, table)


def _check_condition(base: KnowledgeBase, condition: Condition) -> None:
    where = f"condition {condition.id!r}"
    if len(condition.age) != len(base.age_bands):
        raise KnowledgeError(f"{where}: {len(condition.age)} age multipliers for {len(base.age_bands)} age bands")
    for number in (*condition.prior.values(), *condition.age, *condition.sex):
        if not math.isfinite(number) or number < 0:
            raise KnowledgeError(f"{where}: {number!r} must be a number >= 0")
    if not any(condition.prior.get(s, 0.0) for s in base.settings) or not any(condition.age) or not any(condition.sex):
        raise KnowledgeError(f"{where}: nobody can have it (prior, age or sex is 0 throughout)")
    if not 1 <= condition.severity <= 5 or not 1 <= condition.triage <= 5:
        raise KnowledgeError(f"{where}: severity {condition.severity} and triage {condition.triage} must be 1 to 5")


def _check_finding(base: KnowledgeBase, finding: Finding) -> None:
    where = f"finding {finding.id!r}"
    if finding.type not in FINDING_TYPES:
        raise unknown(f"type of {where}", finding.type, FINDING_TYPES)
    if finding.kind not in QUESTION_KINDS:
        raise unknown(f"kind of {where}", finding.kind, QUESTION_KINDS)
    if finding.type == "binary" and finding.values != (NO, YES):
        raise KnowledgeError(f"{where}: a binary finding has the values no and yes, not {finding.values}")
    if len(finding.values) < 2 or len(set(finding.values)) != len(finding.values):
        raise KnowledgeError(f"{where}: needs two or more different values, got {finding.values}")
    for background in (finding.background, *finding.background_by_cell.values()):
        if background and (len(background) != len(finding.values) or abs(sum(background) - 1) > 1e-6):
            raise KnowledgeError(f"{where}: background {background} must have {len(finding.values)} entries that sum to 1")
        for p in background:
            _probability(p, f"{where}: background")
    _probability(finding.reliability, f"{where}: reliability")
    for name in ("cost", "complaint", "money", "delay"):
        number = getattr(finding, name)
        if not (math.isfinite(number) and number >= 0):
            raise KnowledgeError(f"{where}: {name} {number!r} must be >= 0")
    if not 0 <= finding.invasiveness <= 1:
        raise KnowledgeError(f"{where}: invasiveness {finding.invasiveness!r} must be from 0 (none) to 1 (like surgery)")
    if finding.complaint and (finding.type != "binary" or finding.parent):
        raise KnowledgeError(f"{where}: only a binary finding without parent can be an opening statement")
    if finding.sex and finding.sex not in SEXES:
        raise unknown(f"sex of {where}", finding.sex, SEXES)
    if (finding.sex or finding.ages != (0, 200)) and finding.type != "binary":
        raise KnowledgeError(f"{where}: only a binary finding can be limited by sex or age (limit its parent instead)")


def _check_parents(base: KnowledgeBase) -> None:
    for finding in base.findings:
        if finding.parent is None:
            if finding.activated_by:
                raise KnowledgeError(f"finding {finding.id!r}: activated_by without a parent")
            continue
        parent = base.finding(finding.parent)
        for value in finding.activated_by:
            if value not in parent.values:
                raise unknown(f"activating value of finding {finding.id!r}", value, parent.values)
        if not finding.activated_by:
            raise KnowledgeError(f"finding {finding.id!r}: say which values of {finding.parent!r} activate it")
        chain, node = [finding.id], finding
        while node.parent is not None:
            chain.append(node.parent)
            if node.parent in chain[:-1]:
                raise KnowledgeError(f"parents form a cycle: {' -> '.join(chain)}")
            node = base.finding(node.parent)


def _check_link(base: KnowledgeBase, link: Link) -> None:
    where = f"link {link.condition} -> {link.finding}"
    base.condition(link.condition)
    finding = base.finding(link.finding)
    for value, p in link.probabilities.items():
        if value not in finding.values:
            raise unknown(f"value in {where}", value, finding.values)
        _probability(p, where)
    if sum(link.probabilities.values()) > 1 + 1e-6:
        raise KnowledgeError(f"{where}: the probabilities sum to {sum(link.probabilities.values()):.4g}, more than 1")
    if finding.type == "binary" and set(link.probabilities) != {YES}:
        raise KnowledgeError(f"{where}: a binary finding's link gives the value yes alone, got {sorted(link.probabilities)}")


def _check_complaints(base: KnowledgeBase, condition: str, table: Mapping[str, float]) -> None:
    if condition not in base.condition_index:
        raise unknown("condition with complaints", condition, base.condition_index)
    where = f"complaints of {condition!r}"
    for name, p in table.items():
        if name not in base.finding_index:
            raise unknown(f"finding in the {where}", name, base.finding_index)
        finding = base.finding(name)
        if finding.type != "binary" or finding.parent is not None:
            raise KnowledgeError(f"complaint {condition} -> {name}: it can't open a consultation, use a binary finding without parent")
        _probability(p, f"complaint {condition} -> {name}")
    if not any(table.values()):
        raise KnowledgeError(f"{where}: the table {dict(table)} sums to 0, give a finding a probability above 0 or leave the table out")
