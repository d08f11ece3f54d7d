"""One concrete patient, whatever it came from: a generator, a data set, or a user's own file.

Does not cover: who answers and in which words (`medenv.patients`), nor how a batch of cases is stored (`sampled`, `loaded`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Case:
    """A patient.

    `values` maps a finding's id to the names of its values: `("yes",)` or `("no",)` for a binary finding, one name for
    any other, several for a multi-choice finding that a data set lists so. A finding that is missing or maps to `()` is
    unknown: asking it discloses nothing. `opening` is the finding of the opening statement, None if there is none.
    `split` is the source's own, or empty: then a hash of the content decides, so that duplicates stay together.
    """

    age: float
    sex: str
    setting: str
    truth: str
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    opening: str | None = None
    split: str = ""

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits over demographics, values and truth: equal content, equal id."""
        known = {k: sorted(v) for k, v in self.values.items() if v}
        body = json.dumps([round(float(self.age), 3), self.sex, self.setting, self.opening, known, self.truth], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    @cached_property
    def assigned_split(self) -> str:
        """The declared split, else 70 % train, 10 % validation, 20 % test by the content's hash."""
        if self.split:
            return self.split
        part = int(self.id, 16) % 10
        return "train" if part < 7 else "validation" if part < 8 else "test"
