"""Who speaks for a patient, and the change from the patient's own words to a caregiver's: "I have a cough" to "She has a cough".

Does not cover: which words are said (`phrases`), languages other than English.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from medenv.hashing import draw
from medenv.knowledge.base import SEXES

CAREGIVER_AGE, ADULT_AGE = 10, 18  # years: below the first somebody else speaks

_UNCHANGED = """
can can't cannot could couldn't will won't would wouldn't must might may should had hadn't did didn't was wasn't came lost broke put hurt
got took felt ate went fell began saw gave woke threw said told thought
"""
_FIXED = frozenset(_UNCHANGED.split())  # after "I", the same for she and he: modals and irregular past forms
_HERS = {"my": "her", "me": "her", "myself": "herself", "mine": "hers"}
_HIS = {"my": "his", "me": "him", "myself": "himself", "mine": "his"}
_THIRD = {"am": "is", "have": "has", "haven't": "hasn't", "do": "does", "don't": "doesn't", "go": "goes"}
_ADVERBS = r"(?: (?:often|always|still|also|never|just|sometimes|even|now|(?!apply|reply|rely|fly|supply)\w+ly))*"
_ENDS_LIKE_PAST = frozenset(("need", "feed", "bleed"))
_KEPT = "that I know of"  # the caregiver's own knowledge
_FIRST = re.compile(rf"{_KEPT}|\bI'm\b|\bI've\b|\bI\b({_ADVERBS})(?: ([A-Za-z']+))?|\b(?:[Mm]y(?:self)?|[Mm]e|[Mm]ine)\b")


class Speaker(NamedTuple):
    """Whose words a reply is in. `key` (64 bits) chooses among wordings: a hash of what the doctor sees, never of the hidden case."""

    key: int
    age: float
    sex: str

    @classmethod
    def of(cls, age: float, sex: int, setting: int, complaint: int) -> Speaker:
        """The speaker of a consultation that begins so (sex 0 female, 1 male; setting and complaint as indices)."""
        key = 0
        for number in (round(age * 1000), sex, setting, complaint):
            key = draw(key, number)
        return cls(key, age, SEXES[sex])

    @property
    def pronoun(self) -> str:
        """`I`, or for a child that somebody speaks for `she` or `he`."""
        return "I" if self.age >= CAREGIVER_AGE else "she" if self.sex == SEXES[0] else "he"

    def choose(self, options: tuple[str, ...], number: int) -> str:
        """One of the options, by the key and a number."""
        return options[draw(self.key, number) % len(options)]

    def introduction(self) -> tuple[str, ...]:
        """Ways to say age and sex.

        >>> Speaker(0, 34, "female").introduction()[0], Speaker(0, 0, "male").introduction()[0]
        ("I'm a 34-year-old woman.", "I'm here with my son. He is less than a year old.")
        """
        age = f"{self.age:.0f}" if self.age >= 1 else ""
        if self.pronoun != "I":
            child, she = ("daughter", "She") if self.sex == SEXES[0] else ("son", "He")
            old = f"{she} is {age} year{'s' * (age != '1')} old." if age else f"{she} is less than a year old."
            return tuple(
                f"{start} {old}" for start in (f"I'm here with my {child}.", f"It's about my {child}.", f"I've brought my {child}.")
            )
        adult = self.age >= ADULT_AGE
        woman = ("woman" if adult else "girl") if self.sex == SEXES[0] else ("man" if adult else "boy")
        article = "an" if age.startswith("8") or age in ("11", "18") else "a"
        return (f"I'm {article} {age}-year-old {woman}.", f"I am {age} years old, {self.sex}.", f"I'm {self.sex}, {age} years old.")


def third_person(text: str, pronoun: str) -> str:
    """A patient's sentence about `I` as somebody else says it; unchanged for the pronoun `I`.

    >>> third_person("I cough until I vomit, and my chest hurts me.", "she")
    'She coughs until she vomits, and her chest hurts her.'
    """
    if pronoun == "I":
        return text
    her = _HERS if pronoun == "she" else _HIS

    def change(match: re.Match[str]) -> str:
        found = match[0]
        if found == _KEPT:
            return found
        starts = not match.start() or text[: match.start()].rstrip().endswith((".", "!", "?", ":"))
        if found.lower() in her:
            other = her[found.lower()]
        elif found in ("I'm", "I've"):
            other = f"{pronoun} is" if found == "I'm" else f"{pronoun} has"
        else:
            other = f"{pronoun}{match[1] or ''}" + (f" {_verb(match[2])}" if match[2] else "")
        return other[:1].upper() + other[1:] if starts else other

    return _FIRST.sub(change, text)


def _verb(word: str) -> str:
    if word in _THIRD or word in _FIXED or (word.endswith("ed") and word not in _ENDS_LIKE_PAST):
        return _THIRD.get(word, word)
    if word.endswith(("s", "sh", "ch", "x", "z", "o")):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else f"{word}s"


# From a source's question to the sentence that answers it

_YOU = re.compile(r"\b(?:do you|did you|have you|are you|were you|you are|you're|you were|you|your|yourself)\b")
_TURNED = {"do you": "I", "did you": "I did", "have you": "I have", "are you": "I am", "were you": "I was"}
_FIXED_YOU = {"you are": "I am", "you're": "I'm", "you were": "I was", "your": "my", "yourself": "myself"} | _TURNED
_OBJECT = re.compile(r"\b(?:to|for|of|with|around|than|as|about|wake|wakes|bother|bothers|keeping|hurt|hurts|make|makes|on|by)$")
_CLAUSE = re.compile(r"\b(?:do|did|are|were|have) you\b|\b(?:and|or),? (?:do|did|are|were|have)\b")
_OTHER_CLAUSE = re.compile(r"^or\b|\b(?:do|did|are|were|is|does|have|has) your\b|\b(?:and|or),? (?:is|has|does)\b")
_ASKED = re.compile(r"(Do|Did|Have|Are|Were) you (.+?)[\s?.:]*")
_LONGEST = 14  # words of a question that is denied whole
_SHORT = {
    "Do": ("I do", "I don't"),
    "Did": ("I did", "I didn't"),
    "Have": ("I have", "I haven't"),
    "Are": ("I am", "I am not"),
    "Were": ("I was", "I wasn't"),
}


def statements(question: str) -> tuple[str, str]:
    """What no and yes mean to a question, as sentences in the first person; both empty where the question is of another form.

    >>> statements("Have you ever had a stroke?")
    ('I have never had a stroke.', 'I have had a stroke.')
    """
    match = _ASKED.fullmatch(question.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    if match is None:
        return "", ""
    verb, rest = match.groups()
    yes, no = _SHORT[verb]
    if _OTHER_CLAUSE.search(rest):
        return f"{no}.", f"{yes}."
    said = _YOU.sub(lambda m: _mine(m, rest), rest)
    positive = re.sub(r"^((?:have |had |noticed )?)any ", r"\1", said.removeprefix("ever "))
    positive = f"{'I' if verb == 'Do' else yes} {positive}."
    if _CLAUSE.search(rest) or len(rest.split()) > _LONGEST:
        return f"{no}.", positive
    if said.startswith("ever ") and verb == "Have":
        return f"I have never {said.removeprefix('ever ')}.", positive
    return f"{no} {said}.", positive


def _mine(match: re.Match[str], rest: str) -> str:
    if match[0] in _FIXED_YOU:
        return _FIXED_YOU[match[0]]
    before, after = rest[: match.start()].rstrip(), rest[match.end() :].strip()
    return "me" if _OBJECT.search(before) or not after else "I"
