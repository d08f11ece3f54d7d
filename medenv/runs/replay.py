"""Score saved trajectories again with another reward mix, without the doctor.

The engine meets the same cases and takes the same actions; every reply must be the one on record, else the run can't be
reproduced here and an error says where. With the original mix the returns are equal bit for bit.

Does not cover: what the doctor would have done under the other mix (train it again), and consultations that failed (left out).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenv.envs.setup import Setup
from medenv.errors import RunError
from medenv.hashing import seed_for
from medenv.rewards.mix import RewardMix, parse_mix
from medenv.runs.consultations import Choice, Observation, component_means, consultations, make_setup
from medenv.runs.evaluate import BATCH
from medenv.runs.records import (
    SUMMARY,
    TRAJECTORIES,
    Record,
    Writer,
    configuration_hash,
    read_trajectories,
    trajectory_file,
    write_atomically,
)
from medenv.runs.statistics import bootstrap_mean

_SAME = ("case_id", "demographics", "opening")


def replay(
    path: str | Path,
    mix: str | Mapping[str, Any] | RewardMix,
    output: str | Path | None = None,
    env_arguments: Mapping[str, Any] | None = None,
    batch: int = BATCH,
    torn: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Summary of the trajectories of `path` (a file or run directory) under `mix`.

    Keys: `episodes`, `failures`, `unscored`, `reward`, `mean_return` and `mean_return_ci`, `components` (weighted mean per consultation),
    `recorded_reward`, `recorded_mean_return`, `changed` (returns that differ from the recorded ones). `output`: a new folder for the
    rescored trajectories. `env_arguments` replaces arguments that are objects and so are not on record. `torn` as in
    `read_trajectories`. RunError for another base.
    """
    rewards = parse_mix(mix)
    old = list(read_trajectories(path, torn))
    if not old:
        raise RunError(f"{path} holds no trajectory: nothing to score")
    written = str(mix) if isinstance(mix, str | RewardMix) else dict(mix)
    starts = range(0, len(old), batch)
    new = [record for start in starts for record in rescored(old[start : start + batch], rewards, written, env_arguments)]
    if output is not None:
        _save(Path(output), new, path)
    summary = _summary(old, new) | {"reward": written, "recorded_reward": old[0]["arguments"]["reward"]}
    if output is not None:
        write_atomically(Path(output) / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def rescored(old: Sequence[Record], mix: RewardMix, written: Any, env_arguments: Mapping[str, Any] | None = None) -> list[Record]:
    """Records [n] with rewards, components and returns of another mix. Failures and the oracle's stay as they are."""
    out = list(old)
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(old):
        if _took_turns(record):
            groups.setdefault(record["configuration"], []).append(i)
    for members in groups.values():
        first = old[members[0]]
        setup = _setup(first, mix, env_arguments)
        handles = np.array([setup.source.handle(old[i]["case_id"]) for i in members], np.uint64)
        again = consultations(setup, handles, _Recorded([old[i] for i in members], setup).choose)
        head = {"arguments": first["arguments"] | {"reward": written}}
        for i, record in zip(members, again, strict=True):
            _check_same(old[i], record)
            out[i] = old[i] | record | head | {"configuration": configuration_hash({"of": first["configuration"], "reward": written})}
    return out


def _took_turns(record: Record) -> bool:
    """False for a failure and for the oracle, which asks nothing."""
    return record["end"] is not None and record["end"]["questions"] is not None


class _Recorded:
    """`Choose` by the actions on record; the differential is handed in where the record has one."""

    def __init__(self, old: list[Record], setup: Setup) -> None:
        self.turns = [r["turns"] for r in old]
        self.differential = np.full((len(old), setup.num_conditions), np.nan, np.float32)
        for i, record in enumerate(old):
            given = record["end"]["differential"]
            if given is not None:
                self.differential[i] = 0.0
                self.differential[i, [setup.base.condition_index[c] for c in given]] = list(given.values())
        self.any = not np.isnan(self.differential).all()

    def choose(self, observation: Observation, who: NDArray[np.intp], turn: int) -> Choice:
        missing = [i for i in who if turn >= len(self.turns[i])]
        if missing:
            raise RunError(f"the record of a consultation has {turn} turns but goes on here: it was cut, or is another version's")
        return Choice(np.array([self.turns[i][turn]["action"] for i in who]), self.differential[who] if self.any else None, {})


def _setup(record: Record, mix: RewardMix, env_arguments: Mapping[str, Any] | None) -> Setup:
    arguments = record["arguments"] | dict(env_arguments or {}) | {"reward": mix}
    for key, value in arguments.items():
        if isinstance(value, str) and value.startswith("<"):
            raise RunError(f"the run was made with {key}={value}, an object that is not on record: pass it, env_arguments={{{key!r}: ...}}")
    setup, _ = make_setup(record["environment"], arguments)
    if setup.base.fingerprint != record["base"]:
        raise RunError(
            f"the run was made on a base with fingerprint {record['base']}, {arguments['knowledge']!r} has {setup.base.fingerprint} here: "
            "replay needs the very same base (the release or the files of that run)"
        )
    return setup


def _check_same(old: Record, new: Record) -> None:
    case = old["case_id"]
    for key in _SAME:
        if old[key] != new[key]:
            raise RunError(f"case {case}: {key} is {new[key]!r} here and {old[key]!r} on record: not the same patient")
    if len(old["turns"]) != len(new["turns"]):
        raise RunError(f"case {case}: {len(new['turns'])} turns here and {len(old['turns'])} on record: the record was cut or changed")
    for number, (a, b) in enumerate(zip(old["turns"], new["turns"], strict=True), 1):
        for key in ("reply", "ledger"):
            if a[key] != b[key]:
                raise RunError(f"case {case}, turn {number}: the {key} is {b[key]!r} here, {a[key]!r} on record: not to be scored again")
    for key in ("truth", "diagnosis", "questions"):
        if old["end"][key] != new["end"][key]:
            raise RunError(f"case {case}: {key} is {new['end'][key]!r} here and {old['end'][key]!r} on record: the record was changed")


def _save(folder: Path, new: list[Record], source: str | Path) -> None:
    file = folder / TRAJECTORIES
    if file.exists():
        raise RunError(f"{file} is there already: name a new --output (the trajectories of {trajectory_file(source)} stay as they are)")
    with Writer(file) as writer:
        writer.write(new)


def _summary(old: list[Record], new: list[Record]) -> dict[str, Any]:
    ends = [(a["end"], b) for a, b in zip(old, new, strict=True) if _took_turns(a)]
    if not ends:
        raise RunError("none of these consultations can be scored: they failed, or are the oracle's, which takes no turns")
    before = [a["return"] for a, _ in ends]
    scored = [b for _, b in ends if b["end"]["return"] is not None]
    returns = [b["end"]["return"] for b in scored]
    known = [r for r in before if r is not None]
    return {
        "episodes": len(old),
        "failures": sum(r["failure"] is not None for r in old),
        "unscored": len(ends) - len(scored),
        "mean_return": math.fsum(returns) / len(returns) if returns else None,
        "mean_return_ci": list(bootstrap_mean(returns, seed_for(old[0]["seed"], "bootstrap"))) if returns else None,
        "components": component_means(scored),
        "recorded_mean_return": math.fsum(known) / len(known) if known else None,
        "changed": sum(a["return"] != b["end"]["return"] for a, b in ends),
    }
