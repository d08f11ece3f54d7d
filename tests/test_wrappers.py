"""Wrapped observations: Gymnasium's checker, scalar and batch equal, the parts where they should be."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import medenv  # noqa: F401  registers the environments
from medenv.envs.wrappers import FlatObservation, FlatVectorObservation, RLlibObservation
from medenv.errors import MedenvError
from medenv.hashing import draw

SMALL = {"knowledge": "synthetic:6x20", "max_turns": 5}


def make(**arguments: Any) -> gym.Env:
    return gym.make("MedConsult-v0", **SMALL, **arguments)


def choose(mask: Any, *where: int) -> int:
    """A valid action, hashed."""
    open_ = np.flatnonzero(mask)
    key = 7
    for w in where:
        key = draw(key, w)
    return int(open_[key % open_.size])


@pytest.mark.parametrize("wrapper", [FlatObservation, RLlibObservation])
@pytest.mark.parametrize("observe_belief", [False, True])
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")  # a wrapper is what is checked here
def test_wrapper__passes_the_checker(wrapper: Any, observe_belief: bool) -> None:
    check_env(wrapper(make(observe_belief=observe_belief)), skip_render_check=True)


@pytest.mark.parametrize("wrapper", [FlatObservation, RLlibObservation])
def test_wrapper__is_made_again_from_its_spec(wrapper: Any) -> None:
    spec = wrapper(make()).spec
    assert isinstance(gym.make(spec), wrapper)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_flat__holds_every_part_scaled() -> None:
    env = FlatObservation(make(observe_belief=True))
    flat, _ = env.reset(seed=3)
    inner = env.unwrapped
    seen = inner._observation()
    complaint = np.zeros(inner.num_questions + 1)
    complaint[int(seen["complaint"])] = 1
    who = seen["demographics"] / np.array([inner.setup.base.oldest, 1, 1])
    expected = np.concatenate([seen["evidence"], seen["asked"], complaint, who, [1.0], seen["belief"]])
    assert flat.dtype == np.float32
    np.testing.assert_allclose(flat, expected, rtol=1e-6)
    assert env.observation_space.contains(flat)
    question = choose(env.action_masks()[: inner.num_questions], 0)
    after, *_ = env.step(question)
    assert after[inner.setup.tables.num_slots + question] == 1
    assert after[-inner.num_conditions - 1] == pytest.approx(4 / 5)


def test_flat__scalar_equals_batch() -> None:
    n, turns = 6, 12
    batch = FlatVectorObservation(gym.make_vec("MedConsult-v0", num_envs=n, observe_belief=True, **SMALL))
    alone = [FlatObservation(make(observe_belief=True)) for _ in range(n)]
    seen, _ = batch.reset(seed=40)
    assert batch.observation_space.contains(seen)
    assert batch.single_observation_space == alone[0].observation_space
    for i, env in enumerate(alone):
        np.testing.assert_array_equal(seen[i], env.reset(seed=40 + i)[0])
    ended = np.zeros(n, bool)
    for turn in range(turns):
        masks = batch.action_masks()
        actions = np.array([choose(m, turn, i) for i, m in enumerate(masks)])
        seen, _, now, _, _ = batch.step(actions)
        assert batch.observation_space.contains(seen)
        for i, env in enumerate(alone):
            mine = env.reset()[0] if ended[i] else env.step(int(actions[i]))[0]
            np.testing.assert_array_equal(seen[i], mine)
            np.testing.assert_array_equal(batch.action_masks()[i], env.action_masks())
        ended = now


def test_flat__final_observation_of_same_step_is_flat() -> None:
    batch = FlatVectorObservation(gym.make_vec("MedConsult-v0", num_envs=3, autoreset_mode=AutoresetMode.SAME_STEP, **SMALL))
    batch.reset(seed=1)
    refer = np.full(3, batch.single_action_space.n - 1)
    seen, _, ended, _, info = batch.step(refer)
    assert ended.all()
    assert info["final_obs"].shape == seen.shape
    turns_left = -1
    np.testing.assert_allclose(info["final_obs"][:, turns_left], 4 / 5)
    np.testing.assert_allclose(seen[:, turns_left], 1.0)


def test_flat__a_foreign_batch_is_refused() -> None:
    with pytest.raises(MedenvError, match="wrap each consultation with FlatObservation"):
        FlatVectorObservation(gym.make_vec("CartPole-v1", num_envs=2))
    with pytest.raises(MedenvError, match="flat observations are made from"):
        FlatObservation(gym.make("CartPole-v1"))


def test_rllib__has_flat_observations_and_the_mask() -> None:
    env, flat = RLlibObservation(make()), FlatObservation(make())
    seen, _ = env.reset(seed=9)
    np.testing.assert_array_equal(seen["observations"], flat.reset(seed=9)[0])
    assert seen["action_mask"].dtype == np.float32
    np.testing.assert_array_equal(seen["action_mask"].astype(bool), env.action_masks())
    assert env.observation_space.contains(seen)
