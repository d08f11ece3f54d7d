"""Words that mean the same: normalised text, and an index that finds which of many wordings a text is.

A text is compared three times, each time more loosely: as a line of normalised words; as its set of content words; by how much its
content words, weighted by how rare they are among the wordings, overlap with a wording's. The last needs two words in common, a high
overlap, and a lead over the next meaning: what could mean two things is not understood. Weights are integers, so no order of adding
them up changes the result.

Does not cover: synonyms, spelling mistakes, context ("how long?"), languages whose words are not separated, other stop words than English.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache

OVERLAP, LEAD = 0.5, 0.15  # least overlap in [0, 1] for a loose match, and its least lead over the next meaning
WORDS = 40  # content words beyond which a line is no longer matched loosely
RARE = 32  # loose candidates are looked up by content words that at most so many wordings have, while there are any

_WORD = re.compile(r"[^\W_]+")
_XRAY = re.compile(r"\bx[- ]ray")
_PERSONS = frozenset(("child", "baby", "son", "daughter", "boy", "girl", "toddler", "infant", "kid", "patient"))
_SAME = {"his": "your", "her": "your", "their": "your", "does": "do", "has": "have", "is": "are", "ekg": "ecg"}
_SAME |= dict.fromkeys(("he", "she", "they", *_PERSONS), "you") | {f"{w}s": "your" for w in _PERSONS}
_IRREGULAR = {"lost": "loss", "lose": "loss", "losing": "loss", "swollen": "swell", "swelled": "swell", "bled": "bleed", "began": "begin"}
_IRREGULAR |= {"start": "begin", "started": "begin", "begun": "begin", "onset": "begin", "broken": "break", "broke": "break"}
_IRREGULAR |= dict.fromkeys(("abdomen", "abdominal", "tummy", "stomach"), "belly") | dict.fromkeys(("feces", "faeces", "poo"), "stool")
_WITHOUT_MEANING = """
a an the and or of in on at to for from with by about into than as if so whether any some more very really also too just now today such
currently recently recent lately ever yet already i me my we us our you your yours it its this that these those there id im ive ill
do did doing are was were be been being am have had having can could will would should may might shall must get got
notice noticed experience experienced experiencing feel feeling felt suffer suffering suffered symptom symptoms problem problems
please tell say let lets want know known ask asking next first question check order request perform run examine examination test measure
count find out help understand history exactly specifically sorry ok okay well thank thanks hello hi doctor true
not no dont didnt isnt arent havent last past few couple day days week weeks month months year years ago time times usual usually
related consulting
"""
_STOP = frozenset(_WITHOUT_MEANING.split())


def canonical(text: str) -> str:
    """The text as lower-case words without accents, marks and punctuation; who is spoken of becomes `you`, so that a question to a
    caregiver ("Does your child have a cough?") is the patient's own ("Do you have a cough?").

    >>> canonical("Does SHE have a  Cough?!")
    'do you have a cough'
    """
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = _XRAY.sub("xray", text.casefold().replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", ""))
    out: list[str] = []
    for word in _WORD.findall(text):
        if word in _SAME:
            if out and out[-1] in ("your", "the", "my") and word.removesuffix("s") in _PERSONS:
                out.pop()
            word = _SAME[word]
        out.append(word)
    return " ".join(out)


def content(line: str) -> frozenset[str]:
    """The stems of a canonical line's words that carry meaning; of all its words where none does."""
    words = line.split()
    return frozenset(_stem(w) for w in words if w not in _STOP) or frozenset(map(_stem, words))


@lru_cache(maxsize=20_000)
def _stem(word: str) -> str:
    """A rough stem, the same for singular and plural, noun and verb, British and American spelling.

    >>> _stem("vomiting") == _stem("vomited"), _stem("diarrhoea") == _stem("diarrhea"), _stem("dizziness") == _stem("dizzy")
    (True, True, True)
    """
    word = _IRREGULAR.get(word, word).replace("ae", "e").replace("oe", "e")
    for suffix, least in (("s", 3), ("ness", 4), ("ing", 4), ("ion", 4), ("ed", 4), ("ly", 4), ("e", 4)):
        if word.endswith(suffix) and len(word) - len(suffix) >= least and not (suffix == "s" and word.endswith(("ss", "us", "is"))):
            word = word[: -len(suffix)]
            if suffix in ("ing", "ed") and word[-1] == word[-2] and word[-1] not in "sz":
                word = word[:-1]  # travelled, dripping
    if word.endswith("our") and len(word) > 4:
        word = word[:-3] + "or"
    return word[:-1] + "i" if word.endswith("y") and len(word) > 3 else word


class Index:
    """Wordings of numbered meanings. A wording given for several meanings belongs to the earliest; `wordings` must list the
    better ones first: [(meaning, text), …].
    """

    def __init__(self, wordings: Iterable[tuple[int, str]]) -> None:
        self._exact: dict[str, int] = {}
        sets: dict[frozenset[str], set[int]] = defaultdict(set)
        for meaning, text in wordings:
            line = canonical(text)
            if line and self._exact.setdefault(line, meaning) == meaning:
                sets[content(line)].add(meaning)
        self._sets = {words: next(iter(m)) if len(m) == 1 else None for words, m in sets.items()}
        self._wordings = [(m, words) for words, meanings in sets.items() for m in sorted(meanings)]
        counts = Counter(w for _, words in self._wordings for w in words)
        total = max(len(self._wordings), 2)
        self._weight = {w: round(1000 * math.log(1 + total / n)) for w, n in counts.items()}
        self._unseen = round(1000 * math.log(1 + total))
        self._size = [sum(self._weight[w] for w in words) for _, words in self._wordings]
        self._having: dict[str, list[int]] = defaultdict(list)
        for i, (_, words) in enumerate(self._wordings):
            for w in words:
                self._having[w].append(i)

    def literal(self, line: str) -> int | None:
        """The meaning of a canonical line that is a wording, word by word."""
        return self._exact.get(line)

    def exact(self, line: str) -> int | None:
        """The meaning of a canonical line that is a wording, word by word or by its content words."""
        found = self._exact.get(line)
        return self._sets.get(content(line)) if found is None and line else found

    def loose(self, line: str) -> int | None:
        """The meaning whose wording overlaps most with a canonical line, if by enough and clearly more than the next one's."""
        words = content(line)
        known = [w for w in words if w in self._having] if len(words) <= WORDS else []
        rare = [w for w in known if len(self._having[w]) <= RARE] or known
        size = sum(self._weight.get(w, self._unseen) for w in words)
        best: dict[int, float] = {}
        for i in {i for w in rare for i in self._having[w]}:
            meaning, wording = self._wordings[i]
            both = [self._weight[w] for w in known if w in wording]
            if len(both) > 1:
                overlap = sum(both) / (size + self._size[i] - sum(both))
                best[meaning] = max(overlap, best.get(meaning, 0.0))
        first, second, *_ = [*sorted(((o, -m) for m, o in best.items()), reverse=True), (0.0, 0), (0.0, 0)]
        return -first[1] if first[0] >= OVERLAP and first[0] - second[0] >= LEAD else None
