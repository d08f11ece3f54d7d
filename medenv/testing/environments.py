"""Checks of a registered environment, and of one consultation in it: Gymnasium's rules, seeds, pickling, snapshots.

Does not cover: batches (`batches`), what must stay hidden (`histories`); `check_environment` calls these too.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from medenv.testing.batches import check_batch, check_split_batch
from medenv.testing.histories import check_equal_histories
from medenv.testing.shared import difference, keys_of, scripted_actions


def check_environment(env_id: str, **arguments: Any) -> None:
    """A registered environment keeps Gymnasium's rules and medenv's: see the checks below, each of which can be called alone.

    Environments whose actions are not numbers are checked for what holds for them: Gymnasium's rules, seeds and pickling.
    """
    check_gymnasium(env_id, **arguments)
    check_seeds(env_id, **arguments)
    check_pickling(env_id, **arguments)
    env = gym.make(env_id, **arguments)
    if isinstance(env.action_space, gym.spaces.Discrete):
        check_episode(env_id, **arguments)
        for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            check_batch(env_id, mode, **arguments)
        check_split_batch(env_id, **arguments)
        check_snapshot(env_id, **arguments)
        check_equal_histories(env_id, **arguments)


def check_gymnasium(env_id: str, **arguments: Any) -> None:
    """Gymnasium's own checker, every warning an error."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("error")
        try:
            check_env(gym.make(env_id, **arguments).unwrapped)
        except Exception as error:
            raise AssertionError(f"expected {env_id} to pass gymnasium's check_env without a warning, saw: {error}") from error


def check_seeds(env_id: str, **arguments: Any) -> None:
    """Two instances with one seed are equal, another seed gives others, and no global random state is touched."""
    state, legacy = random.getstate(), np.random.get_state()
    one, two = (_episodes(gym.make(env_id, **arguments), 5, 60) for _ in range(2))
    other = _episodes(gym.make(env_id, **arguments), 6, 60)
    where = difference(one, two, "step")
    if where:
        raise AssertionError(f"{env_id}: expected two instances with one seed to be equal, saw a difference at {where}")
    if not difference(one, other):
        raise AssertionError(f"{env_id}: expected another seed to give other consultations, saw the same: the seed is ignored")
    if not (random.getstate() == state and not difference(np.random.get_state(), legacy)):
        raise AssertionError(f"{env_id}: expected global random states to be left alone, saw them moved")


def check_pickling(env_id: str, **arguments: Any) -> None:
    """The environment's spec survives pickling, and makes an equal environment."""
    env = gym.make(env_id, **arguments)
    copied = gym.make(pickle.loads(pickle.dumps(env.spec)))
    where = difference(_episodes(env, 5, 20), _episodes(copied, 5, 20), "step")
    if where:
        raise AssertionError(f"{env_id}: expected a pickled spec to make an equal environment, saw a difference at {where}")


def check_episode(env_id: str, **arguments: Any) -> None:
    """Within a consultation: components sum to the reward, masks hold, hidden components stay hidden, the end gives the truth."""
    env = gym.make(env_id, **arguments).unwrapped
    Q = env.get_wrapper_attr("num_questions")
    seen, _ = env.reset(seed=11)
    for turn in range(120):
        mask = np.asarray(seen["action_mask"])
        where = difference(mask.astype(bool), env.get_wrapper_attr("action_masks")())
        if where:
            raise AssertionError(f"{env_id}: expected action_masks() to equal the observation's mask, saw {where}")
        if not mask[Q:].all():
            raise AssertionError(f"{env_id}: expected diagnosing and referring to be open always, saw {mask[Q:]}")
        if mask[:Q][np.asarray(seen["asked"]) == 1].any():
            raise AssertionError(f"{env_id}: expected questions that were asked to be masked, saw one open")
        if not (float(seen["turns_left"][0]) > 1 or not mask[:Q].any()):
            raise AssertionError(f"{env_id}: expected only diagnosing and referring on the last turn, saw a question open")
        action = _act(env, seen, turn)
        seen, reward, terminated, truncated, info = env.step(action)
        parts = {k: v for k, v in info["components"].items() if v is not None}
        hidden = len(parts) < len(info["components"])
        if not (hidden or abs(sum(parts.values()) - reward) < 1e-9):
            raise AssertionError(f"{env_id}: expected components to sum to the reward {reward}, saw {info['components']}")
        if terminated and hidden and info["scored"]:
            raise AssertionError(f"{env_id}: expected every component at the end, saw {info['components']}")
        early = {"truth", "case_id", "belief"} & set(info)
        if not (terminated or not early):
            raise AssertionError(f"{env_id}: expected {sorted(early)} at the end only, saw them before")
        if terminated or truncated:
            if terminated and "truth" not in info:
                raise AssertionError(f"{env_id}: expected the truth at the end, saw {sorted(info)}")
            seen, _ = env.reset()


def check_snapshot(env_id: str, **arguments: Any) -> None:
    """A restored snapshot goes on exactly as the consultation did, in this environment and in a fresh one."""
    env, fresh = gym.make(env_id, **arguments).unwrapped, gym.make(env_id, **arguments).unwrapped
    seen, _ = env.reset(seed=21)
    for turn in range(3):
        seen, _, end, *_ = env.step(_act(env, seen, turn, closing=False))
        if end:
            seen, _ = env.reset()
    state = env.snapshot()  # type: ignore[attr-defined]
    runs = [_continue(env, seen)]
    for one in (env, fresh):
        restored = one.restore(pickle.loads(pickle.dumps(state)))  # type: ignore[attr-defined]
        where = difference(seen, restored)
        if where:
            raise AssertionError(f"{env_id}: expected the snapshot's observation after restore, saw another at {where}")
        runs.append(_continue(one, restored))
    for kind, run in zip(("the same", "a fresh"), runs[1:], strict=True):
        where = difference(runs[0], run, "step")
        if where:
            raise AssertionError(f"{env_id}: expected {kind} environment to go on exactly from a snapshot, saw a difference at {where}")


def _episodes(env: gym.Env, seed: int, steps: int) -> list[Any]:
    """What `steps` steps from `seed` show, resets included."""
    seen, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    out: list[Any] = [(seen, info)]
    for turn in range(steps):
        if isinstance(env.action_space, gym.spaces.Discrete):
            action: Any = _act(env, seen, turn)
        else:
            action = env.action_space.sample()
        turned = env.step(action)
        out.append((action, *turned))
        seen = turned[0]
        if turned[2] or turned[3]:
            seen, info = env.reset()
            out.append((seen, info))
    return out


def _continue(env: gym.Env, seen: Any, steps: int = 25) -> list[Any]:
    out: list[Any] = []
    for turn in range(steps):
        turned = env.step(_act(env, seen, 1000 + turn))
        out.append(turned)
        seen = turned[0]
        if turned[2]:
            seen, info = env.reset()
            out.append((seen, info))
    return out


def _act(env: gym.Env, seen: Mapping[str, Any], turn: int, closing: bool = True) -> int:
    return int(scripted_actions(np.asarray(seen["action_mask"])[None], env.get_wrapper_attr("num_questions"), keys_of(1), turn, closing)[0])
