"""Copies of an engine: its exact state, and consultations redrawn from the belief.

Does not cover: the rules (`engine`).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from medenv.cases.source import CaseSource
from medenv.envs.engine import Engine
from medenv.errors import EpisodeError, MedenvError
from medenv.hashing import draw_array, seed_for
from medenv.rewards.ledger import ARRAYS

_STATE = (
    *("buffer", "scores", "belief", "entropy", "shift", "normaliser", "cell", "truth", "complaint", "demographics"),
    *("turns_left", "handle", "done", "started", "stream", "episode", "differential"),
)
_OBSERVED = ("buffer", "scores", "belief", "entropy", "shift", "normaliser", "cell", "complaint", "demographics", "turns_left")


def snapshot(engine: Engine) -> dict[str, Any]:
    """Everything that changes, copied: exact, for debugging and replay. Never search over it: it holds the hidden case."""
    out = {name: copy.copy(getattr(engine, name)) for name in _STATE} | {"tables": engine.tables.name}
    if engine.ledger is not None:
        out |= {f"ledger_{name}": array for name, array in engine.ledger.state().items()}
    return out


def restore(engine: Engine, state: dict[str, Any]) -> None:
    """Go back to a snapshot of an engine with the same tables, size and mix."""
    if state.get("tables") != engine.tables.name or state["buffer"].shape != engine.buffer.shape:
        raise MedenvError(
            f"this snapshot is of {state.get('tables')!r}, {len(state.get('buffer', ()))} consultation(s), "
            f"not of {engine.tables.name!r}, {engine.num}: restore it where it was taken"
        )
    if ("ledger_row" in state) != (engine.ledger is not None):
        raise MedenvError(f"this snapshot was taken under another reward mix than {engine.rewards}: restore it where it was taken")
    for name in _STATE:
        setattr(engine, name, copy.copy(state[name]))
    if engine.ledger is not None:
        engine.ledger.load({name: state[f"ledger_{name}"] for name in ARRAYS})


def imagined(engine: Engine, index: int, num: int, seed: int, source: CaseSource) -> Engine:
    """`num` consultations at the same turn as consultation `index`, whose hidden cases are redrawn from the belief.

    Disclosed slots stay as they are (an asked question cannot be asked again). `source` must draw from the base.
    MedenvError when no condition fits what was observed.
    """
    if engine.no_condition_fits()[index]:
        raise MedenvError("imagine: no condition fits the answers so far, there is no belief to draw from")
    if engine.done[index]:
        raise EpisodeError("imagine: the consultation has ended")
    out = Engine(source, engine.rewards, num, engine.max_turns)
    out.seed([seed_for(seed, i, "imagine") for i in range(num)])
    total = np.cumsum(engine.belief[index].astype(np.float64))
    u = (draw_array(out.stream, 0) >> np.uint64(11)).astype(np.float64) / 2.0**53
    out.truth = np.minimum(np.searchsorted(total / total[-1], u, side="right"), engine.D - 1).astype(np.int32)
    out.handle = draw_array(out.stream, 1)
    for name in _OBSERVED:
        getattr(out, name)[...] = getattr(engine, name)[index]
    if engine.ledger is not None:
        out.ledger = engine.ledger.imagined(index, source, out.handle, out.truth)
    out.episode[:] = 2
    out.done[:] = False
    out.started = True
    return out
