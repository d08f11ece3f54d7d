"""Checks of a batch: it equals its consultations one by one, and its parts.

Does not cover: one consultation (`environments`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from medenv.testing.shared import difference, keys_of, scripted_actions

_INFO = (
    "reply",
    "components",
    "scored",
    "no_condition_fits",
    "truth",
    "case_id",
    "belief",
    "differential",
)  # compared; what else a scalar info tells is its own


def check_batch(
    env_id: str, mode: str | AutoresetMode = AutoresetMode.NEXT_STEP, num: int = 5, steps: int = 60, seed: int = 3, **arguments: Any
) -> None:
    """A batch of `num` equals as many scalar environments, seeds `seed` + i, bit for bit, under an autoreset mode."""
    mode = AutoresetMode(mode)
    batch: Any = _vector(env_id, num, mode, arguments)
    singles = [gym.make(env_id, **arguments).unwrapped for _ in range(num)]
    keys = keys_of(num, seed)
    seen, _ = batch.reset(seed=seed)
    own = [env.reset(seed=seed + i)[0] for i, env in enumerate(singles)]
    ended = np.zeros(num, bool)
    name = f"{env_id}, {mode.value}"
    for i in range(num):
        _equal(name, 0, i, _row(seen, i), own[i], "observation")
    for turn in range(steps):
        if mode == AutoresetMode.DISABLED and ended.any():
            seen, _ = batch.reset(options={"reset_mask": ended})
            own = [env.reset()[0] if ended[i] else own[i] for i, env in enumerate(singles)]
            for i in np.flatnonzero(ended).tolist():
                _equal(name, turn, i, _row(seen, i), own[i], "observation after a reset")
            ended = np.zeros(num, bool)
        actions = scripted_actions(np.asarray(seen["action_mask"]), batch.num_questions, keys, turn)
        seen, reward, terminated, truncated, info = batch.step(actions)
        replies = batch.replies()
        final, body = info.get("final_obs"), info.get("final_info", info)
        for i, env in enumerate(singles):
            if ended[i] and mode == AutoresetMode.NEXT_STEP:
                own[i] = env.reset()[0]
                _equal(name, turn, i, [_row(seen, i), float(reward[i]), bool(terminated[i])], [own[i], 0.0, False], "reset step")
                continue
            observation, paid, end, cut, told = env.step(int(actions[i]))
            at_end = mode == AutoresetMode.SAME_STEP and end
            _equal(name, turn, i, _row(final if at_end else seen, i), observation, "observation")
            _equal(name, turn, i, [float(reward[i]), bool(terminated[i]), bool(truncated[i])], [paid, end, cut], "reward and end")
            _equal(name, turn, i, _info(batch, body, i, replies[i]), {k: told[k] for k in _INFO if k in told}, "info")
            own[i] = observation
            if at_end:
                own[i] = env.reset()[0]
                _equal(name, turn, i, _row(seen, i), own[i], "observation after a reset")
        ended = np.asarray(terminated) | np.asarray(truncated)


def check_split_batch(env_id: str, num: int = 6, cut: int = 2, steps: int = 40, **arguments: Any) -> None:
    """A batch in two parts equals the whole."""
    whole, left, right = (_vector(env_id, n, AutoresetMode.NEXT_STEP, arguments) for n in (num, cut, num - cut))
    keys = keys_of(num)
    seen, parts = whole.reset(seed=9)[0], [left.reset(seed=9)[0], right.reset(seed=9 + cut)[0]]
    for turn in range(steps):
        actions = scripted_actions(np.asarray(seen["action_mask"]), whole.num_questions, keys, turn)
        seen, reward, terminated, *_ = whole.step(actions)
        halves = [left.step(actions[:cut]), right.step(actions[cut:])]
        parts = [h[0] for h in halves]
        joined = {k: np.concatenate([p[k] for p in parts]) for k in seen}
        where = (
            difference(seen, joined)
            or difference(reward, np.concatenate([h[1] for h in halves]))
            or difference(terminated, np.concatenate([h[2] for h in halves]))
        )
        if where:
            raise AssertionError(f"{env_id}: expected a batch in two parts to equal the whole, saw a difference at step {turn}: {where}")


def _vector(env_id: str, num: int, mode: AutoresetMode, arguments: Mapping[str, Any]) -> Any:
    return gym.make_vec(env_id, num, "vector_entry_point", autoreset_mode=mode, **arguments)


def _info(batch: Any, info: Mapping[str, Any], i: int, reply: str) -> dict[str, Any]:
    """A batch's info for consultation i, as the scalar environment spells it."""
    parts = info["components"]
    out: dict[str, Any] = {
        "reply": reply,
        "components": {k: float(v[i]) if parts[f"_{k}"][i] else None for k, v in parts.items() if not k.startswith("_")},
    }
    out["scored"] = bool(info["scored"][i])
    out["no_condition_fits"] = bool(info["no_condition_fits"][i]) if "no_condition_fits" in info else False
    if "_truth" in info and info["_truth"][i]:
        out["truth"] = batch.setup.base.conditions[int(info["truth"][i])].id
        out["case_id"] = batch.case_ids(info["case"][i : i + 1])[0]
        out["belief"] = info["belief"][i]
        given = info["differential"][i] if "differential" in info else None
        out["differential"] = None if given is None or np.isnan(given).all() else given
    return out


def _row(seen: Any, i: int) -> dict[str, Any]:
    return {k: v[i] for k, v in seen.items()}


def _equal(env_id: str, turn: int, i: int, batch: Any, single: Any, what: str) -> None:
    where = difference(batch, single, what)
    if where:
        raise AssertionError(
            f"{env_id}: expected consultation {i} of a batch to equal the scalar environment bit for bit, "
            f"saw a difference at step {turn}: {where}"
        )
