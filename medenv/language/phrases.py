"""What can be said about a knowledge base: the doctor's questions, orders and diagnoses, the patient's answers and opening statement.

All of it is made from the base's own texts (question, answers, name, id) and a few templates, so it works for any base; names alone are
enough. Everything that the doctor can say here is understood as what it means (`understanding` is built from it).

Does not cover: which wording is taken (`voice.Speaker`, `understanding.Language.write`), languages other than the base's and English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from medenv.knowledge.base import YES, Finding, KnowledgeBase
from medenv.language.voice import Speaker, statements, third_person
from medenv.language.words import canonical, content

UNKNOWN = ("I don't know.", "I'm not sure.", "I couldn't say.", "I really don't know, sorry.")
NOT_UNDERSTOOD = "I'm not sure what you mean."
REFER = (
    "I refer you to a specialist.",
    "I would like to refer you to a specialist.",
    "You need a referral: I am sending you to a specialist.",
)
_ASK = ("{question}", "{name}?", "Please tell me: {question}", "What about this: {name}?", "I would like to ask: {question}")
_EXAMINE = ("{question}", "Let me examine you: {name}.", "On examination: {name}?")
_ORDER = ("Order: {name}", "I would like to order a test: {name}.", "Please do this test: {name}.")
_DIAGNOSE = ("Diagnosis: {name}", "My diagnosis is {name}.", "I think the diagnosis is {name}.", "Final diagnosis: {name}")
_YES = ("Yes, {s}", "Yes. {S}", "Yeah, {s}", "Yes, doctor: {s}")
_NO = ("No, {s}", "No. {S}", "No, doctor: {s}")
_OTHER = ("{S}", "Well, {s}", "Hm, {s}", "Doctor, {s}")
_OPENING = ("{S}", "Doctor, {s}", "The reason for coming: {s}", "What brings us here today: {s}")
_NO_COMPLAINT = ("I am not feeling well, doctor.", "I don't feel well.", "Something is wrong with me.")
_BRACKETS = re.compile(r"\s*\([^()]*\)")
_HELD_LOW = re.compile(r"(?:I\b|[A-Z]\w*[A-Z0-9]|[A-Z]-)")  # a first word that keeps its capital: I, ECG, D-dimer


def named_by_question(finding: Finding) -> bool:
    """Whether a source named the finding by its question, so that no sentence can be built from the name."""
    return bool(finding.question) and finding.question.rstrip(" ?:") == finding.name.rstrip(" ?:")


def label(finding: Finding) -> str:
    """What an answer is about, to stand before it."""
    return finding.question if named_by_question(finding) else f"{_upper(finding.name)}:"


def short(name: str) -> str:
    """A name without what stands in brackets."""
    return _BRACKETS.sub("", name).strip() or name


def questions(finding: Finding) -> tuple[str, ...]:
    """Ways to ask, examine for or order a finding, the base's own question first."""
    templates = {"ask": _ASK, "examine": _EXAMINE, "order": _ORDER}[finding.kind]
    name = _lower(finding.name.rstrip(" ?:"))
    question = finding.question or f"{_upper(name)}?"
    return tuple(dict.fromkeys(t.format(question=question, name=name) for t in templates))


def diagnoses(name: str) -> tuple[str, ...]:
    """Ways to give a diagnosis by a condition's name."""
    return tuple(t.format(name=name) for t in _DIAGNOSE)


def finding_wordings(base: KnowledgeBase) -> Iterator[tuple[int, str]]:
    """(question number, text) of everything that means a finding; the better ones, over all findings, first."""
    findings = list(enumerate(base.findings))
    yield from ((q, text) for q, f in findings for text in questions(f)[:1])
    yield from ((q, f.name) for q, f in findings)
    yield from ((q, f.id) for q, f in findings)
    yield from ((q, text) for q, f in findings for text in questions(f)[1:])
    yield from ((q, text) for q, f in findings for text in (short(f.question), short(f.name)) if text)


def condition_wordings(base: KnowledgeBase) -> Iterator[tuple[int, str]]:
    """(condition number, text) of everything that means a condition; the better ones first."""
    conditions = list(enumerate(base.conditions))
    yield from ((d, c.name) for d, c in conditions)
    yield from ((d, c.id) for d, c in conditions)
    yield from ((d, short(c.name)) for d, c in conditions)
    yield from ((d, c.name.partition(",")[0]) for d, c in conditions)
    yield from ((d, c.icd10) for d, c in conditions if c.icd10)


def opening(finding: Finding | None, speaker: Speaker) -> tuple[str, ...]:
    """Opening statements for a complaint, or for none, without age and sex."""
    if finding is None:
        return tuple(third_person(s, speaker.pronoun) for s in _NO_COMPLAINT)
    said = _sentence(finding, YES)
    told, asked = content(canonical(said)), content(canonical(f"{finding.name} {finding.question}"))
    if not (content(canonical(finding.name)) <= told or (said.startswith(("I ", "My ")) and told & asked)):
        said = f"{finding.question if named_by_question(finding) else f'{finding.name}.'} {said}"  # "It burns." needs what it is about
    return _fill(_OPENING, third_person(said, speaker.pronoun))


def answers(finding: Finding, values: tuple[str, ...], speaker: Speaker) -> tuple[str, ...]:
    """Ways to disclose these values of a finding; no values: not known. Examinations and tests give a line with the result."""
    if finding.kind != "ask":
        head = f"{'On examination' if finding.kind == 'examine' else 'Result'}, {_lower(finding.name)}: "
        return (head + (_result(finding, values) if values else "not available."),)
    if not values:
        return UNKNOWN
    said = third_person(_sentence(finding, *values), speaker.pronoun)
    if finding.type != "binary":
        return _fill(_OTHER, said)
    return _fill(_YES if values == (YES,) else _NO, said)


def _sentence(finding: Finding, *values: str) -> str:
    """Values in the first person, without the leading yes or no."""
    if finding.type != "binary":
        return _values(finding, values)
    own = finding.answers.get(values[0], "")
    if own:
        return _upper(own.removeprefix("Yes, ").removeprefix("No, "))
    said = statements(finding.question)[values[0] == YES]
    if said:
        return said
    if named_by_question(finding):
        return "That is so." if values[0] == YES else "That is not so."
    return f"{_upper(finding.name)}." if values[0] == YES else f"No {_lower(finding.name)}."


def _values(finding: Finding, values: tuple[str, ...]) -> str:
    """Values of a finding that is not binary: the base's sentences, or its words, or a place on a scale."""
    if all(v.isdigit() for v in finding.values) and not any(v in finding.answers for v in values):
        return f"{' or '.join(values)}, on a scale from {finding.values[0]} to {finding.values[-1]}."
    texts = [finding.answers.get(v) or v.replace("_", " ") for v in values]
    if all(t.endswith((".", "!")) for t in texts):
        return " ".join(texts)
    texts = [t.rstrip(".") for t in texts]
    words = ", ".join(texts[:-1]) + " and " * (len(texts) > 1) + texts[-1]
    return f"{_upper(words)}." if named_by_question(finding) or finding.question else f"{_upper(finding.name)}: {words}."


def _result(finding: Finding, values: tuple[str, ...]) -> str:
    own = [finding.answers.get(v) for v in values]
    if finding.type == "binary" and not own[0]:
        words = ("positive", "negative") if finding.kind == "order" else ("present", "absent")
        return f"{words[values[0] != YES]}."
    return " ".join(t for t in own if t) if all(own) else f"{', '.join(t or v for t, v in zip(own, values, strict=True))}."


def _fill(templates: tuple[str, ...], said: str) -> tuple[str, ...]:
    return tuple(t.format(S=said, s=_lower(said)) for t in templates)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    """With a small first letter, unless the first word is one that keeps its capital."""
    return text if _HELD_LOW.match(text) else text[:1].lower() + text[1:]
