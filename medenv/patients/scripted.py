"""How a scripted patient words an opening statement and an answer.

A reply is a pure function of (finding, values, persona). Personas: `plain` uses the base's own phrases, `brief` answers in a
word. None is tied to ethnicity or religion.

Does not cover: understanding a question that is written in words.
"""

from __future__ import annotations

from typing import Protocol

from medenv.errors import unknown
from medenv.knowledge.base import YES, Finding, KnowledgeBase

PERSONAS = ("plain", "brief")
UNKNOWN = "I don't know."


class Patient(Protocol):
    """Whoever words an answer. What is said must be a pure function of the arguments; `medenv.testing.check_patient` checks."""

    def opening(self, finding: Finding | None) -> str:
        """The opening statement for this complaint, or for none."""

    def answer(self, finding: Finding, values: tuple[str, ...]) -> str:
        """The reply that discloses these values of a finding; no values: the patient does not know."""


class ScriptedPatient:
    """Wordings for one base. Texts are made when first asked for, and kept."""

    def __init__(self, base: KnowledgeBase, persona: str = "plain") -> None:
        if persona not in PERSONAS:
            raise unknown("persona", persona, PERSONAS)
        self.base, self.persona = base, persona
        self._texts: dict[tuple[str, tuple[str, ...]], str] = {}

    def opening(self, finding: Finding | None) -> str:
        """The opening statement; without a finding the patient only asks for help."""
        if finding is None:
            return "I am not feeling well, doctor."
        words = finding.answers.get(YES, "").removeprefix("Yes, ")
        if words:
            return f"{words[:1].upper()}{words[1:]}"
        return f"{finding.question} Yes." if _is_question(finding) else f"I have this: {finding.name}."

    def answer(self, finding: Finding, values: tuple[str, ...]) -> str:
        """The reply to one question; no values: the patient does not know."""
        key = (finding.id, values)
        if key not in self._texts:
            self._texts[key] = self._word(finding, values)
        return self._texts[key]

    def _word(self, finding: Finding, values: tuple[str, ...]) -> str:
        if not values:
            return UNKNOWN
        if self.persona == "plain" and len(values) == 1 and finding.answers.get(values[0]):
            return finding.answers[values[0]]
        if finding.type == "binary":
            word = "Yes" if values == (YES,) else "No"
            return (
                f"{word}."
                if self.persona == "brief" or _is_question(finding)
                else f"{word}, {'' if word == 'Yes' else 'no '}{finding.name}."
            )
        text = ", ".join(values)
        return f"{text[:1].upper()}{text[1:]}." if self.persona == "brief" else f"{finding.name}: {text}."


def _is_question(finding: Finding) -> bool:
    """Whether a source named the finding by its question, so that an answer cannot be built from the name."""
    return bool(finding.question) and finding.question.rstrip(" ?:") == finding.name.rstrip(" ?:")
