"""Check of a doctor: valid actions, the same in any batch and order, probabilities or nothing.

Does not cover: how good it is (`medenv.runs.evaluate`).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from medenv.agents.doctor import Doctor
from medenv.cases.source import ALL
from medenv.envs.vector import ConsultVectorEnv
from medenv.hashing import draw_array
from medenv.knowledge.compiled import Compiled
from medenv.testing.shared import difference, keys_of


def check_doctor(doctor: Doctor, tables: Compiled, num: int = 24, max_turns: int = 8) -> None:
    """A doctor chooses valid actions, the same in any batch and order, changes no observation, and gives probabilities or nothing."""
    env = ConsultVectorEnv(
        num,
        "Disabled",
        knowledge=tables.base,
        noise=tables.noise,
        difficulty=tables.difficulty,
        setting=tables.setting,
        complaint=tables.complaint,
        max_turns=max_turns,
        split=ALL,
    )
    seen, _ = env.reset(seed=31)
    done = np.zeros(num, bool)
    order = np.argsort(draw_array(keys_of(num), 0))
    for turn in range(max_turns):
        before = copy.deepcopy(seen)
        action, differential = doctor.act(seen)
        where = difference(before, seen)
        if where:
            raise AssertionError(f"{doctor.name}: expected the observation to be left as it is, saw it changed at {where}")
        action = np.asarray(action)
        if not (action.shape == (num,) and np.issubdtype(action.dtype, np.integer)):
            raise AssertionError(f"{doctor.name}: expected {num} integers, saw {action.dtype} {list(action.shape)}")
        _check_differential(doctor.name, differential, num, tables.num_conditions)
        inside = (action >= 0) & (action < env.engine.A)
        wrong = np.flatnonzero(~inside | (np.asarray(seen["action_mask"])[np.arange(num), np.where(inside, action, 0)] != 1))
        if wrong.size:
            raise AssertionError(
                f"{doctor.name}: expected valid actions, saw {action[wrong].tolist()} on turn {turn}, which the mask forbids"
            )
        again = np.asarray(doctor.act({k: v[order] for k, v in seen.items()})[0])
        if not (again == action[order]).all():
            raise AssertionError(
                f"{doctor.name}: expected the same decisions in another order, "
                f"saw {int((again != action[order]).sum())} others on turn {turn}"
            )
        alone = np.array([int(doctor.act({k: v[i : i + 1] for k, v in seen.items()})[0][0]) for i in range(num)])
        if not (alone == action).all():
            raise AssertionError(
                f"{doctor.name}: expected the same decisions one by one, saw {int((alone != action).sum())} others on turn {turn}"
            )
        seen, _, ended, _, _ = env.step(action)
        done |= ended
        if ended.any():
            seen, _ = env.reset(options={"reset_mask": ended})
    if not done.all():
        raise AssertionError(
            f"{doctor.name}: expected every consultation to end within {max_turns} turns, saw {int((~done).sum())} that did not"
        )


def _check_differential(name: str, given: Any, num: int, D: int) -> None:
    if given is None:
        return
    p = np.asarray(given)
    if not (p.shape == (num, D)):
        raise AssertionError(f"{name}: expected a differential [{num}, {D}] or None, saw {list(p.shape)}")
    if not (np.isfinite(p).all() and (p >= 0).all() and (np.abs(p.sum(1) - 1) < 1e-3).all()):
        raise AssertionError(f"{name}: expected probabilities that sum to 1, saw sums {p.sum(1)[:3]}")
