"""The space of messages: any Unicode text up to a length.

Gymnasium's `Text` holds the characters of a list, letters and digits by default, and looks each one up; this one holds them all.

Does not cover: bytes, token ids.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from medenv.errors import MedenvError

_SAMPLE = 64  # characters of a sampled text, at most
_PLANES = ((0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x5D0, 0x6FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF))  # first, last + 1


class Unicode(gym.Space[str]):
    """Texts of at most `max_length` characters (code points), the empty one included."""

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        if isinstance(max_length, bool) or not isinstance(max_length, int | np.integer) or max_length < 1:
            raise MedenvError(f"max_length is {max_length!r}: give an integer of at least 1")
        self.max_length = int(max_length)
        super().__init__(dtype=str, seed=seed)

    def sample(self, mask: None = None, probability: None = None) -> str:
        """A short text of letters, signs and pictures from several scripts. There is nothing to mask."""
        if mask is not None or probability is not None:
            raise MedenvError("texts have no mask and no probabilities to sample by: call sample()")
        planes = self.np_random.integers(len(_PLANES), size=int(self.np_random.integers(min(_SAMPLE, self.max_length) + 1)))
        return "".join(chr(self.np_random.integers(*_PLANES[i])) for i in planes)

    def contains(self, x: Any) -> bool:
        """Whether x is a text and short enough."""
        return isinstance(x, str) and len(x) <= self.max_length

    @property
    def is_np_flattenable(self) -> bool:
        """No."""
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unicode) and self.max_length == other.max_length

    def __repr__(self) -> str:
        return f"Unicode({self.max_length})"
