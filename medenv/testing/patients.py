"""Check of a patient: words for every opening and answer of a base.

Does not cover: whether the words mean what they should.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from medenv.knowledge.base import KnowledgeBase
from medenv.patients.scripted import Patient


def check_patient(patient: Patient, base: KnowledgeBase) -> None:
    """Words for every opening and answer of `base`: text, never empty, the same each time, different for different answers."""
    for finding in (None, *(f for f in base.findings if f.complaint)):
        _check_words(partial(patient.opening, finding), f"the opening {finding and finding.id}")
    for finding in base.findings:
        said: dict[str, tuple[str, ...]] = {}
        for values in ((), *((v,) for v in finding.values)):
            words = _check_words(partial(patient.answer, finding, values), f"the answer {finding.id} = {values or 'unknown'}")
            if words in said:
                raise AssertionError(f"{finding.id}: expected other words for {values} than for {said[words]}, saw {words!r} for both")
            said[words] = values


def _check_words(say: Callable[[], str], what: str) -> str:
    first, second = say(), say()
    if not isinstance(first, str) or not first.strip():
        raise AssertionError(f"{what}: expected words, saw {first!r}")
    if first != second:
        raise AssertionError(f"{what}: expected the same words each time, saw {first!r} and {second!r}")
    return first
