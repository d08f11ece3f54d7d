"""What the checks share: comparing nested things, actions, keys and handles drawn from hashes.

Does not cover: any check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenv.cases.source import CaseSource
from medenv.hashing import draw_array, seed_for

_U32 = np.uint64(32)


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two nested things differ, with both values; empty if they are equal bit for bit (NaN equals NaN)."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(a) != list(b) and set(a) != set(b):
            return f"{where}: keys {sorted(map(str, a))} against {sorted(map(str, b))}"
        return next((d for k in a if (d := difference(a[k], b[k], f"{where}.{k}"))), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} entries against {len(b)}"
        return next((d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := difference(x, y, f"{where}[{i}]"))), "")
    if isinstance(a, np.ndarray | np.generic) or isinstance(b, np.ndarray | np.generic):
        x, y = np.asarray(a), np.asarray(b)
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"{where}: {x.dtype} {list(x.shape)} against {y.dtype} {list(y.shape)}"
        same = (x == y) | ((x != x) & (y != y))
        return (
            "" if np.all(same) else f"{where}: {x[~same].flat[0]!r} against {y[~same].flat[0]!r}, {int((~same).sum())} of {x.size} entries"
        )
    return "" if a == b or (a != a and b != b) else f"{where}: {a!r} against {b!r}"


def scripted_actions(mask: NDArray, questions: int, keys: NDArray[np.uint64], turn: int, closing: bool = True) -> NDArray[np.int64]:
    """Actions int64 [N] for masks [N, A] whose first `questions` columns ask: mostly open questions, sometimes another open
    action, sometimes one that may be masked. A hash of (key, turn) for each row.

    With `closing` False nothing is invalid, and a consultation is closed only where no question is open.
    """
    open_ = np.asarray(mask) == 1
    ask = open_.copy()
    ask[:, questions:] = False
    ask = np.where(ask.any(1, keepdims=True), ask, open_)
    kind = (draw_array(keys, 1000 + 2 * turn) >> np.uint64(60))[:, None]  # 0 to 15
    return pick(np.where(kind < 12, ask, np.where(kind < 14, open_, True)) if closing else ask, keys, 1001 + 2 * turn, 0)


def pick(allowed: NDArray[np.bool_], keys: NDArray[np.uint64], counter: int, nothing_open: int) -> NDArray[np.int64]:
    """One of the True columns of each row [N, K], uniformly by hash; `nothing_open` where there is none."""
    count = allowed.sum(1)
    place = ((draw_array(keys, counter) >> _U32) * count.astype(np.uint64)) >> _U32
    found = np.argmax(np.cumsum(allowed, axis=1) == (place.astype(np.int64) + 1)[:, None], axis=1)
    return np.where(count > 0, found, nothing_open)


def keys_of(num: int, seed: int = 0) -> NDArray[np.uint64]:
    """A key uint64 [num] for each consultation of a check."""
    return np.array([seed_for(seed, "check", i) for i in range(num)], np.uint64)


def handles(source: CaseSource, number: int, seed: int, first: int = 0) -> NDArray[np.uint64]:
    """Handles uint64 [number] of cases of `source`: episodes `first`, `first` + 1, … of one stream."""
    stream = np.full(number, seed_for(seed, "streams"), np.uint64)
    return source.next(stream, np.arange(first, first + number, dtype=np.uint64))
