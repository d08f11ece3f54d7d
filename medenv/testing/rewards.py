"""Checks of a reward or a mix, on recorded transitions of random doctors.

Does not cover: whether a reward is worth having, or what a learning doctor makes of it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from medenv.cases.sampled import SampledCases
from medenv.cases.source import ALL
from medenv.envs.engine import Engine
from medenv.hashing import seed_for
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.rewards.base import Reward, Transition
from medenv.rewards.ledger import Ledger
from medenv.rewards.mix import RewardMix, parse_mix
from medenv.testing.shared import difference, scripted_actions

FLAGS = (
    "turn",
    "asked",
    "answered",
    "invalid",
    "malformed",
    "repeated",
    "referred",
    "ended",
)  # of a transition: what a reward may wait for


def check_reward(reward: str | Mapping[str, Any] | RewardMix | Reward, tables: Compiled | None = None, steps: int = 60) -> None:
    """Each reward of a mix, or one reward: float64 [N], the same each time and in any batch, within its bounds, 0 where its flag is off.

    It is called on recorded transitions of random doctors on `tables` (default: a small invented base). Among them are
    repeated questions, resets and questions that disclose nothing: a flag that is off must mean 0, whatever the beliefs do.
    """
    if isinstance(reward, str | Mapping | RewardMix):
        mix = parse_mix(reward)
    else:
        mix = RewardMix(((reward.name, 1.0, reward),))
    for name, _, part in mix.terms:
        if part.when not in FLAGS:
            raise AssertionError(f"{name}: expected `when` to be one of {', '.join(FLAGS)}, saw {part.when!r}")
    tables = compiled(knowledge_base("synthetic:6x24"), 0.05) if tables is None else tables
    mix = mix.bound(tables)
    for t in recorded_transitions(tables, steps):
        for name, _, part in mix.terms:
            _check_one_reward(name, part, t)
        total, components = mix.score(t)
        added = sum((np.where(np.isnan(v), 0.0, v) for v in components.values()), np.zeros(t.ended.size))
        if not (np.abs(total - added) < 1e-9).all():
            raise AssertionError(f"expected the components to sum to the reward, saw {total} against {added}")
        one = t.part(slice(0, 1))
        alone = mix.score_one(one, [flag for flag in FLAGS if getattr(one, flag)[0]])[0]
        if alone != total[0]:
            raise AssertionError(f"expected the same reward for a consultation alone, saw {alone} against {total[0]}")


def recorded_transitions(tables: Compiled, steps: int = 60, num: int = 24) -> list[Transition]:
    """Copies of the transitions of `num` random doctors over `steps` steps, resets among them."""
    source = SampledCases(tables, ALL)
    engine = Engine(source, parse_mix("accuracy"), num, 7)
    engine.ledger = Ledger(source, num, 7)
    engine.seed([seed_for("recorded", i) for i in range(num)])
    engine.begin()
    out: list[Transition] = []
    for turn in range(steps):
        if turn % 3 == 0:
            engine.submit(engine.belief / engine.belief.sum(1, keepdims=True))
        actions = scripted_actions(engine.buffer[:, engine.mask_at : engine.spare], engine.Q, engine.stream, turn)
        out.append(copy.deepcopy(engine.step(actions, engine.done.copy()).transition))
    return out


def _check_one_reward(name: str, reward: Reward, t: Transition) -> None:
    n, before = t.ended.size, copy.deepcopy(t)
    value = np.asarray(reward(t))
    if not (value.dtype == np.float64 and value.shape == (n,)):
        raise AssertionError(f"{name}: expected float64 [{n}], saw {value.dtype} {list(value.shape)}")
    for field in dataclasses.fields(t):
        where = difference(getattr(before, field.name), getattr(t, field.name), field.name)
        if where:
            raise AssertionError(f"{name}: expected the transition to be left as it is, saw it changed ({where})")
    where = difference(value, np.asarray(reward(t)))
    if where:
        raise AssertionError(f"{name}: expected the same numbers for the same transition, saw others the second time ({where})")
    when = getattr(t, reward.when)
    wrong = np.flatnonzero(~when & (value != 0))
    if wrong.size:
        raise AssertionError(
            f"{name}: expected 0 where {reward.when!r} is off, saw {value[wrong[0]]} "
            f"(invalid {t.invalid[wrong[0]]}): a repeated or refused question pays nothing"
        )
    low, high = reward.bounds
    wrong = np.flatnonzero((value < low) | (value > high))
    if wrong.size:
        raise AssertionError(f"{name}: expected values in [{low:g}, {high:g}], saw {value[wrong[0]]}")
    for cut in (1, n // 3, n - 1):
        parts = np.concatenate([reward(t.part(slice(None, cut))), reward(t.part(slice(cut, None)))])
        where = difference(value, parts)
        if where:
            raise AssertionError(
                f"{name}: expected the same numbers for a batch in two parts, saw others ({where}): "
                "a consultation's reward depends on it alone"
            )
