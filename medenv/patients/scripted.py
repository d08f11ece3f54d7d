"""How a scripted patient words an opening statement and an answer.

In numbers (`MedConsult-v0`) a reply is a pure function of (finding, values, persona). In words (`MedConsultText-v0`) somebody speaks: the
patient, or for a small child a caregiver, in one of several wordings that the speaker's key chooses. Personas: `plain` uses the base's
own phrases, `brief` answers in a word. None is tied to ethnicity or religion.

Does not cover: understanding a question that is written in words (`medenv.language`).
"""

from __future__ import annotations

from typing import Protocol

from medenv.errors import unknown
from medenv.knowledge.base import YES, Finding, KnowledgeBase
from medenv.language import phrases
from medenv.language.phrases import named_by_question
from medenv.language.voice import Speaker

PERSONAS = ("plain", "brief")
UNKNOWN = "I don't know."


class Patient(Protocol):
    """Whoever words an answer. What is said must be a pure function of the arguments; `medenv.testing.check_patient` checks.

    `speaker` is given in `MedConsultText-v0` only; a patient without it serves `MedConsult-v0`.
    """

    def opening(self, finding: Finding | None, speaker: Speaker | None = None) -> str:
        """The opening statement for this complaint, or for none; in words with age and sex."""

    def answer(self, finding: Finding, values: tuple[str, ...], speaker: Speaker | None = None) -> str:
        """The reply that discloses these values of a finding; no values: the patient does not know."""


class ScriptedPatient:
    """Wordings for one base. Texts are made when first asked for, and kept."""

    def __init__(self, base: KnowledgeBase, persona: str = "plain") -> None:
        if persona not in PERSONAS:
            raise unknown("persona", persona, PERSONAS)
        self.base, self.persona = base, persona
        self._texts: dict[tuple[str, tuple[str, ...]], str] = {}
        self._wordings: dict[tuple[str, tuple[str, ...], str], tuple[str, ...]] = {}

    def opening(self, finding: Finding | None, speaker: Speaker | None = None) -> str:
        """The opening statement; without a finding the patient only asks for help."""
        if speaker is not None:
            said = speaker.choose(phrases.opening(finding, speaker), len(self.base.findings))
            return f"{speaker.choose(speaker.introduction(), len(self.base.findings) + 1)} {said}"
        if finding is None:
            return "I am not feeling well, doctor."
        words = finding.answers.get(YES, "").removeprefix("Yes, ")
        if words:
            return f"{words[:1].upper()}{words[1:]}"
        return f"{finding.question} Yes." if named_by_question(finding) else f"I have this: {finding.name}."

    def answer(self, finding: Finding, values: tuple[str, ...], speaker: Speaker | None = None) -> str:
        """The reply to one question; no values: the patient does not know."""
        if speaker is None or (self.persona == "brief" and finding.kind == "ask"):
            key = (finding.id, values)
            if key not in self._texts:
                self._texts[key] = self._word(finding, values)
            return self._texts[key]
        voice = (finding.id, values, speaker.pronoun)
        if voice not in self._wordings:
            self._wordings[voice] = phrases.answers(finding, values, speaker)
        return speaker.choose(self._wordings[voice], self.base.finding_index[finding.id])

    def _word(self, finding: Finding, values: tuple[str, ...]) -> str:
        if not values:
            return UNKNOWN
        if self.persona == "plain" and len(values) == 1 and finding.answers.get(values[0]):
            return finding.answers[values[0]]
        if finding.type == "binary":
            word = "Yes" if values == (YES,) else "No"
            return (
                f"{word}."
                if self.persona == "brief" or named_by_question(finding)
                else f"{word}, {'' if word == 'Yes' else 'no '}{finding.name}."
            )
        text = ", ".join(values)
        return f"{text[:1].upper()}{text[1:]}." if self.persona == "brief" else f"{finding.name}: {text}."
