"""Check that nothing shown tells of the hidden case: two cases with equal histories look equal.

Does not cover: openings that give the truth away (`bases.check_opening`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from medenv.cases.case import Case
from medenv.cases.source import ALL
from medenv.knowledge.base import KnowledgeBase
from medenv.knowledge.compiled import Compiled
from medenv.testing.shared import difference, keys_of, pick, scripted_actions


def check_equal_histories(env_id: str, patients: int = 4, **arguments: Any) -> None:
    """Two cases that differ only in what was not disclosed look equal: observation, mask, info, rendering, imagined consultations.

    The pairs are loaded cases without reporting noise; the environment must take `cases`, `split` and `noise`.
    """
    first = gym.make(env_id, **arguments | {"noise": 0.0}).unwrapped
    tables: Compiled = first.get_wrapper_attr("tables")
    for seed in range(patients):
        case, asked = _one_history(first, seed, arguments)
        pair = [case, _twin(tables.base, case, asked, seed)]
        envs = [gym.make(env_id, **arguments | {"noise": 0.0, "cases": pair, "split": ALL, "render_mode": "ansi"}).unwrapped for _ in pair]
        seen = [env.reset(seed=seed, options={"case": c.id}) for env, c in zip(envs, pair, strict=True)]
        _check_looks(env_id, envs, seen, "at the start")
        for q in asked:
            turns = [env.step(q) for env in envs]
            _check_looks(env_id, envs, [(t[0], t[4]) for t in turns], f"after question {q}")
            if not ([t[2] for t in turns] == [False, False]):
                raise AssertionError(f"{env_id}: expected both consultations to go on, saw {[t[2] for t in turns]}")


def _one_history(env: gym.Env, seed: int, arguments: Mapping[str, Any]) -> tuple[Case, list[int]]:
    """A patient of the environment and questions that it answers in turn, one fewer than the turns there are."""
    seen, _ = env.reset(seed=100 + seed)
    asked: list[int] = []
    Q = env.get_wrapper_attr("num_questions")
    for turn in range(min(6, int(seen["turns_left"][0]) - 2)):
        open_ = np.asarray(seen["action_mask"])[None, :Q] == 1
        if open_.any():
            asked.append(int(pick(open_, keys_of(1) + np.uint64(seed), turn, 0)[0]))
            seen, *_ = env.step(asked[-1])
    return dataclasses.replace(env.get_wrapper_attr("case"), split=""), asked


def _twin(base: KnowledgeBase, case: Case, asked: Sequence[int], seed: int) -> Case:
    """Another truth, and another value for each finding that stays undisclosed."""
    known = {base.findings[q].id for q in asked} | {case.opening}
    values = dict(case.values)
    for finding in base.findings:
        if finding.id not in known and values.get(finding.id):
            others = [v for v in finding.values if v not in values[finding.id]]
            values[finding.id] = (others[seed % len(others)],) if others else ()
    ids = [c.id for c in base.conditions if c.id != case.truth]
    return dataclasses.replace(case, truth=ids[seed % len(ids)], values=values)


def _check_looks(env_id: str, envs: Sequence[gym.Env], seen: Sequence[tuple[Any, Any]], when: str) -> None:
    looks = [
        {"observation": shown, "info": info, "mask": env.get_wrapper_attr("action_masks")(), "rendering": env.render()}
        for env, (shown, info) in zip(envs, seen, strict=True)
    ]
    where = difference(looks[0], looks[1])
    if not where:
        dreams = [env.get_wrapper_attr("imagine")(3, 17) for env in envs]
        for turn in range(3):
            actions = [scripted_actions(d.action_masks(), d.num_questions, keys_of(3), turn, closing=False) for d in dreams]
            steps = [d.step(a)[:3] for d, a in zip(dreams, actions, strict=True)]
            where = where or difference(steps[0], steps[1], "imagined")
            if steps[0][2].any():
                break
    if where:
        raise AssertionError(
            f"{env_id}: expected two cases with equal histories to look equal {when}, saw a difference in {where}: "
            "it comes from the hidden case"
        )
