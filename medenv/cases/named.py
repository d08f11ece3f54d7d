"""Case sources by name, as the environments and the command line spell them.

`sampled` (drawn from the base, without end) · `ddxplus:FILE` (a DDXPlus patients CSV or zip) · a list of `Case` · a case
source of your own.

Does not cover: what a source must do (`medenv.cases.source`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from medenv.cases.case import Case
from medenv.cases.loaded import LoadedCases
from medenv.cases.sampled import SampledCases
from medenv.cases.source import CaseSource
from medenv.errors import CaseError, unknown
from medenv.knowledge.base import KnowledgeBase
from medenv.knowledge.compiled import Compiled

if TYPE_CHECKING:
    from medenv.cases.ddxplus import Report

KINDS = ("sampled", "ddxplus:FILE")


def case_source(cases: str | Sequence[Case] | CaseSource, tables: Compiled, split: str) -> CaseSource:
    """The source that `cases` names (or is), over these tables and this split."""
    if isinstance(cases, str):
        kind, _, rest = cases.partition(":")
        if kind == "sampled" and not rest:
            return SampledCases(tables, split)
        if kind == "ddxplus" and rest:
            return _loaded(rest, tables, split)
        raise unknown("case source", cases, KINDS)
    if isinstance(cases, Sequence) and all(isinstance(c, Case) for c in cases):
        return LoadedCases(tables, [c for c in cases if isinstance(c, Case)], split)
    if isinstance(cases, Sequence) or not hasattr(cases, "rows") or not hasattr(cases, "tables"):
        raise CaseError(f"cases is {cases!r:.80}: give {', '.join(KINDS)}, a list of Case, or a case source")
    if cases.tables is not tables:
        raise CaseError("this case source was made for other tables: build it on the environment's own (env.unwrapped.tables)")
    return cases


@lru_cache(maxsize=2)
def _loaded(path: str, tables: Compiled, split: str) -> LoadedCases:
    cases, report = _read(path, tables.base.fingerprint, tables.base)
    return LoadedCases(tables, cases, split, report)


_FILES: dict[tuple[str, str], tuple[list[Case], Report]] = {}


def _read(path: str, fingerprint: str, base: KnowledgeBase) -> tuple[list[Case], Report]:
    if (path, fingerprint) not in _FILES:
        from medenv.cases.ddxplus import load_cases

        _FILES.clear()  # one file at a time: the large ones take gigabytes
        _FILES[path, fingerprint] = load_cases(path, base)
    return _FILES[path, fingerprint]
