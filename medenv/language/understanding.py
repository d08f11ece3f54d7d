"""What a doctor's message means: questions about findings, a diagnosis, a referral, several in one message, or nothing that is known.

Exact wordings come first, then content words, then a careful loose match (`words`); what could mean two things means nothing. A sentence
without a question mark in a message that has one is not taken for a question, unless it examines or orders something: doctors repeat
what they heard. A diagnosis needs an explicit form ("Diagnosis: …", "You have influenza."), since it ends the consultation.

Does not cover: context ("how long?", "and at night?"), how a message is laid out (`formats`), when a question is open (`envs`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from medenv.errors import KnowledgeError
from medenv.knowledge.base import KnowledgeBase
from medenv.language import phrases
from medenv.language.formats import FORMATS, THOUGHT, Format, format_named
from medenv.language.words import Index, canonical

ASK, DIAGNOSE, REFER = "ask", "diagnose", "refer"
SENTENCES = 60  # of a message that are read
LONGEST = 1000  # characters of a sentence that can mean something
PIECES = 20  # of a sentence that are read apart

_SENTENCE = re.compile(r"(?<=[?!;])|(?<=\.)\s+|\n+|\s(?=\d{1,2}[.)]\s)")
_BULLET = re.compile(r"^[\s*\N{BULLET}>-]*(?:\d{1,2}[.)]\s)?\s*")
_RIGHT = re.compile(r",\s*(?:right|correct|yes|no)\W*$", re.IGNORECASE)
_AND = re.compile(r",|/|;|\band\b|\bor\b", re.IGNORECASE)
_LEAD = (
    r"^\W*(?:(?:so|therefore|thus|hence|ok|okay|in conclusion|based on this)\b,?\s*)?"
    r"(?:i\s+(?:think|believe|conclude|am sure)\s+(?:that\s+)?)?"
)
_DIAGNOSIS = re.compile(
    _LEAD + r"(?:(?:my|the|your|a)\s+)?(?:(?:final|most likely|likely|probable|working|primary|clinical)\s+)*"
    r"(?:diagnosis(?:\s+ready)?(?:\s+is|\s*[:=-])|i\s+(?:would\s+|will\s+)?diagnose(?:\s+(?:you\s+with|this\s+as))?)\s*(?P<name>.+)$",
    re.IGNORECASE | re.DOTALL,
)
_VERDICT = re.compile(
    _LEAD
    + r"(?:you|your\s+\w+|he|she|this|it|the\s+patient)\s+(?:most\s+likely\s+|probably\s+|clearly\s+)?(?:have|has|is)\s+(?P<name>.+)$",
    re.IGNORECASE | re.DOTALL,
)
_REFERRAL = re.compile(
    r"\b(?:i|we)(?: ?ll| will| would like to| am going to| must| have to| want to| d like to| am|m)? refer(?:ring)?\b"
    r"|\bneeds? (?:a|to be) refer"
)
_NOT = re.compile(
    r"^if\b|\b(?:no|not|dont|doesnt|isnt|arent|cannot|cant|wont|never|neither|unlikely|exclude[ds]?|excluding|rule[ds]?|without|unclear)\b"
)
_REASON = re.compile(r"[.;(\n]|\b(?:because|due to|based on|given|since|as)\b", re.IGNORECASE)


class Intent(NamedTuple):
    """Something that the doctor wants: `ask` with a finding's id, `diagnose` with a condition's, or `refer`."""

    kind: str
    id: str = ""


class Heard(NamedTuple):
    """What was understood of a message, in order; `missed`: a question or a conclusion was not; `cut`: not all of it was read."""

    intents: tuple[Intent, ...]
    missed: bool = False
    cut: bool = False


class Language:
    """Reads and writes a doctor's messages about one base in one format. Make it with `language`, which keeps it."""

    def __init__(self, base: KnowledgeBase, format: str | Format = "any") -> None:
        self.base, self.format = base, format_named(format)
        self._findings = Index(phrases.finding_wordings(base))
        self._conditions = Index(phrases.condition_wordings(base))
        names = {canonical(text): d for d, text in phrases.condition_wordings(base)}
        self._names = {line: d for line, d in names.items() if len(line) > 3 and self._conditions.exact(line) == d}
        self._asked = lru_cache(maxsize=20_000)(self._questions_in)
        self._condition = lru_cache(maxsize=5_000)(self._condition_in)
        self._options = lru_cache(maxsize=None)(self._ways_to_say)

    def __reduce__(self) -> tuple[Any, ...]:
        return language, (self.base, self.format.name if FORMATS.get(self.format.name) is self.format else self.format)

    def read(self, message: str) -> Heard:
        """What a message means. A pure function of it; any text will do."""
        found: dict[Intent, None] = {}
        missed, left = False, SENTENCES
        for part in self.format.read(THOUGHT.sub(" ", message)):
            sentences = [s for s in _SENTENCE.split(part.text) if s.strip()] if part.kind in ("say", "ask") else [part.text]
            for sentence in sentences[:left]:
                intents, lost = self._sentence(part.kind, sentence, "?" in part.text)
                missed |= lost
                for intent in intents:
                    found[intent] = None
                    if intent.kind != ASK:
                        return Heard(tuple(found), missed)
            left -= len(sentences)
            if left < 0:
                return Heard(tuple(found), missed, True)
        return Heard(tuple(found), missed)

    def write(self, intent: Intent, key: int = 0) -> str:
        """How a doctor puts this, in the format; `key` chooses among wordings. It is understood as what it was meant for."""
        options = self._options(intent)
        return options[key % len(options)]

    def _sentence(self, kind: str, sentence: str, questions: bool) -> tuple[Iterable[Intent], bool]:
        """What one sentence of a part means, and whether it holds a question or a conclusion that was not understood."""
        sentence = " ".join(sentence.split())
        if kind == "none" or len(sentence) > LONGEST:
            return (), kind != "none"
        if kind == REFER:
            return (Intent(REFER),), False
        if kind == DIAGNOSE:
            concluded = self._condition(sentence)
            return ((concluded,), False) if concluded else ((), True)
        asks = sentence.endswith("?")
        if kind == "say" and not asks:
            if _NOT.search(canonical(sentence)):
                return (), False
            concludes, concluded = self._conclusion(sentence)
            if concludes:
                return ((concluded,), False) if concluded else ((), True)
        found, missed = self._asked(sentence)
        if kind == "say" and questions and not asks:
            found, missed = tuple(q for q in found if self.base.findings[q].kind != ASK), False
        return (Intent(ASK, self.base.findings[q].id) for q in found), missed and (asks or kind == ASK)

    def _conclusion(self, sentence: str) -> tuple[bool, Intent | None]:
        """Whether a sentence has the form of a conclusion, and the diagnosis or referral that it gives, if it is known."""
        match = _DIAGNOSIS.match(sentence)
        if match is not None:
            return True, self._condition(match["name"])
        if _REFERRAL.search(canonical(sentence)):
            return True, Intent(REFER)
        verdict = _VERDICT.match(sentence)
        said = canonical(verdict["name"]) if verdict else ""
        d = self._names.get(said.removeprefix("a ").removeprefix("an ").removeprefix("the "))
        return d is not None, None if d is None else Intent(DIAGNOSE, self.base.conditions[d].id)

    def _condition_in(self, text: str) -> Intent | None:
        """A diagnosis by name, or a referral, where a conclusion is expected."""
        text = text.strip(" \t\r\n[]*\"'`.")
        if text in self.base.condition_index:
            return Intent(DIAGNOSE, text)
        line = canonical(text)
        d = self._conditions.literal(line)
        if d is None and not _NOT.search(line):
            if line.startswith("refer") or _REFERRAL.search(line):
                return Intent(REFER)
            cause = canonical(_REASON.split(text, maxsplit=1)[0])
            d = self._conditions.exact(cause)
            d = self._named_in(cause) if d is None else d
            d = self._conditions.loose(cause) if d is None else d
        return None if d is None or d < 0 else Intent(DIAGNOSE, self.base.conditions[d].id)

    def _named_in(self, line: str) -> int | None:
        """The one condition whose name stands in a line; -1 where several do. A name within a longer one does not count."""
        held = sorted((name for name in self._names if f" {name} " in f" {line} "), key=len)
        whole = {self._names[name] for i, name in enumerate(held) if not any(name in longer for longer in held[i + 1 :])}
        return None if not whole else whole.pop() if len(whole) == 1 else -1

    def _questions_in(self, sentence: str) -> tuple[tuple[int, ...], bool]:
        """The questions of a sentence, and whether some of it was not understood."""
        sentence = _BULLET.sub("", sentence).strip()
        if (raw := sentence.strip(" [].\"'`?")) in self.base.finding_index:
            return (self.base.finding_index[raw],), False
        sentence = _RIGHT.sub("", sentence)
        line = canonical(sentence)
        q = self._findings.exact(line)
        if q is not None or not line:
            return () if q is None else (q,), False
        pieces = [p for p in map(canonical, _AND.split(sentence)[:PIECES]) if p]
        known = [self._findings.exact(p) for p in pieces] if len(pieces) > 1 else []
        each = [k if k is not None else self._findings.loose(p) for k, p in zip(known, pieces, strict=False)]
        if each and None not in each:
            return _once(each), False
        q = self._findings.loose(line)
        return ((q,), False) if q is not None else (_once(known), True)

    def _ways_to_say(self, intent: Intent) -> tuple[str, ...]:
        """Every wording that is read as this intent and nothing else."""
        finding = self.base.finding(intent.id) if intent.kind == ASK else None
        if finding is not None:  # the base's name, and what else there is should it mean something else first
            ways = [(finding.name, phrases.questions(finding)), *((text, (text,)) for text in (finding.name, finding.question, finding.id))]
        elif intent.kind == DIAGNOSE:
            ways = [(name, phrases.diagnoses(name)) for name in (self.base.condition(intent.id).name, intent.id)]
        else:
            ways = [("refer", phrases.REFER)]
        for name, sentences in ways:
            written = dict.fromkeys(self.format.write(finding.kind if finding else intent.kind, s, name, intent.id) for s in sentences)
            meant = tuple(w for w in written if self.read(w) == Heard((intent,)))
            if meant:
                return meant
        raise KnowledgeError(f"{intent.kind} {intent.id!r} can't be said in the format {self.format.name!r}: give it another name")


def _once(found: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(q for q in found if q is not None))


_MADE: dict[tuple[str, str], Language] = {}


def language(base: KnowledgeBase, format: str | Format = "any") -> Language:
    """The language of a base in a format, made once (bases compare by fingerprint); UnknownName for an unknown format."""
    format = format_named(format)
    key = (base.fingerprint, format.name)
    if key not in _MADE or _MADE[key].format is not format:
        if len(_MADE) > 31:
            _MADE.clear()
        _MADE[key] = Language(base, format)
    return _MADE[key]
