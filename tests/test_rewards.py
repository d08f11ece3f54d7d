"""Rewards: what each pays for full marks, nothing, and what is malformed; mixes as text and tables, and errors that point."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medenv.errors import RewardError
from medenv.knowledge.compiled import compiled
from medenv.knowledge.named import knowledge_base
from medenv.rewards import mix as mixes
from medenv.rewards.accuracy import Accuracy
from medenv.rewards.base import FLOOR, Reward, Transition
from medenv.rewards.costs import InvalidAction, QuestionCost
from medenv.rewards.information_gain import VALUES, InformationGain
from medenv.rewards.mix import DEFAULT, RewardMix, known_rewards, parse_mix, register_reward
from medenv.testing import check_reward, recorded_transitions


def transition(**changes: Any) -> Transition:
    """Three consultations: an answer, a repeated question, an end with a diagnosis; changed by `changes`."""
    before = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]], np.float32)
    after = np.array([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]], np.float32)
    values: dict[str, Any] = {
        "question": np.array([4, -1, -1]),
        "asked": np.array([True, False, False]),
        "answered": np.array([True, False, False]),
        "invalid": np.array([False, True, False]),
        "diagnosis": np.array([-1, -1, 2]),
        "referred": np.array([False, False, False]),
        "ended": np.array([False, False, True]),
        "truth": np.array([0, 1, 2]),
        "cost": np.array([2.5, 0.0, 0.0], np.float32),
        "entropy_before": _entropy(before),
        "entropy_after": _entropy(after),
        "belief_before": before,
        "belief_after": after,
    }
    return Transition(**values | changes)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-30))).sum(1)


RECORDED = recorded_transitions(compiled(knowledge_base("synthetic:5x24"), 0.1), 60, 6)
ENDED = {"ended": np.ones(3, bool), "answered": np.zeros(3, bool), "invalid": np.zeros(3, bool)}
FIXTURES: list[tuple[str, Reward, dict[str, Any], list[float]]] = [
    ("right", Accuracy(), ENDED | {"diagnosis": np.array([0, 1, 2])}, [1.0, 1.0, 1.0]),
    ("wrong", Accuracy(), ENDED | {"diagnosis": np.array([1, 2, 0])}, [0.0, 0.0, 0.0]),
    ("undiagnosed", Accuracy(), ENDED | {"diagnosis": np.full(3, -1)}, [0.0, 0.0, 0.0]),
    ("referred", Accuracy(referral=0.25), ENDED | {"diagnosis": np.full(3, -1), "referred": np.ones(3, bool)}, [0.25, 0.25, 0.25]),
    ("not ended", Accuracy(), {}, [0.0, 0.0, 1.0]),
    ("entropy", InformationGain(), {}, [_entropy(np.array([[0.5, 0.3, 0.2]]))[0] - _entropy(np.array([[0.9, 0.1, 0]]))[0], 0.0, 0.0]),
    ("probability", InformationGain(value="probability"), {}, [0.4, 0.0, 0.0]),
    ("log probability", InformationGain(value="log_probability"), {}, [math.log(0.9 / 0.5), 0.0, 0.0]),
    ("excluded truth", InformationGain(value="log_probability"), {"truth": np.array([2, 1, 2])}, [math.log(FLOOR / 0.2), 0.0, 0.0]),
    ("not answered", InformationGain(), {"answered": np.zeros(3, bool)}, [0.0, 0.0, 0.0]),
    ("cost", QuestionCost(), {}, [2.5, 0.0, 0.0]),
    ("invalid", InvalidAction(), {}, [0.0, 1.0, 0.0]),
]


@pytest.mark.parametrize(("reward", "changes", "expected"), [f[1:] for f in FIXTURES], ids=[f[0] for f in FIXTURES])
def test_reward__pays(reward: Reward, changes: dict[str, Any], expected: list[float]) -> None:
    t = transition(**changes)
    for _ in range(2):
        total, components = RewardMix(((reward.name, 2.0, reward),)).score(t)
        assert total == pytest.approx(2 * np.array(expected), abs=1e-6) and total.dtype == np.float64
        assert list(components) == [reward.name]


def test_malformed_belief__is_not_scored_and_adds_nothing() -> None:
    broken = np.full((3, 3), np.nan)
    t = transition(belief_after=broken, answered=np.ones(3, bool))
    total, components = parse_mix("information_gain(value=probability) + invalid_action").score(t)
    assert np.isnan(components["information_gain"]).all() and total.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("name", known_rewards())
def test_every_registered_reward__conforms(name: str) -> None:
    check_reward(name)
    reward = parse_mix(name).terms[0][2]
    assert isinstance(reward, Reward) and reward.name == name and hasattr(transition(), reward.when)
    assert type(reward).__doc__ and "Fixtures:" in type(reward).__doc__


@pytest.mark.parametrize("value", VALUES)
def test_every_value_of_information_gain__conforms(value: str) -> None:
    check_reward(f"accuracy + information_gain(value={value}) - 0.5*question_cost")


@given(which=st.integers(0, 59), weights=st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4))
def test_components__sum_to_the_reward_and_one_equals_many(which: int, weights: list[float]) -> None:
    t = RECORDED[which]
    mix = parse_mix(dict(zip(("accuracy", "information_gain", "question_cost", "invalid_action"), weights, strict=True)))
    total, components = mix.score(t)
    assert total == pytest.approx(sum(components.values()), abs=1e-9)
    for i in range(t.ended.size):
        one = Transition(**{f.name: v[i : i + 1] if (v := getattr(t, f.name)) is not None else None for f in dataclasses.fields(t)})
        flags = [f for f in ("asked", "answered", "ended", "invalid") if getattr(one, f)[0]]
        paid, parts = mix.score_one(one, flags)
        assert paid == total[i] and all(parts[k] == components[k][i] for k in components)


def test_hidden__are_the_components_that_hang_on_the_truth() -> None:
    assert parse_mix(DEFAULT).hidden == {"accuracy"}
    assert parse_mix("accuracy + information_gain(value=probability) - question_cost").hidden == {"accuracy", "information_gain"}


# Mixes


weights = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda w: w == 0 or abs(w) > 1e-12)
terms = st.fixed_dictionaries(
    {},
    optional={
        "accuracy": st.fixed_dictionaries({"weight": weights}, optional={"referral": st.floats(0, 0.99)}),
        "information_gain": st.fixed_dictionaries({"weight": weights}, optional={"value": st.sampled_from(VALUES)}),
        "question_cost": weights,
        "invalid_action": weights,
    },
).filter(bool)


@given(terms)
def test_mix__reads_back_what_it_writes(table: dict[str, Any]) -> None:
    mix = parse_mix(table)
    assert parse_mix(str(mix)) == mix
    assert str(parse_mix(str(mix))) == str(mix)
    assert parse_mix(mix) is mix


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("accuracy", {"accuracy": 1}),
        (" + accuracy ", {"accuracy": 1.0}),
        ("-accuracy", {"accuracy": -1}),
        ("accuracy+0.5*information_gain-.02*question_cost", {"accuracy": 1, "information_gain": 0.5, "question_cost": -0.02}),
        ("1e-2 * question_cost()", {"question_cost": 0.01}),
        ("2.*information_gain(value = probability)", {"information_gain": {"weight": 2, "value": "probability"}}),
        ("accuracy(referral=.3,)", {"accuracy": {"referral": 0.3}}),
        ("0*accuracy", {"accuracy": 0}),
    ],
)
def test_text_and_table__mean_the_same(text: str, table: dict[str, Any]) -> None:
    assert parse_mix(text) == parse_mix(table)


def test_default__is_a_mix_as_it_would_be_written() -> None:
    assert str(parse_mix(DEFAULT)) == DEFAULT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("accuracy + acuracy2", r"did you mean 'accuracy'.* at character 12 of the mix: accuracy \+ >>>acuracy2"),
        ("accuracy +", "expected a reward's name at character 11"),
        ("accuracy accuracy", r"expected \+ or - between terms at character 10"),
        ("0.5 accuracy", r"expected \* and a reward's name after the weight at character 5"),
        ("accuracy + 0.5*", "expected a reward's name at character 16"),
        ("accuracy ? 2", "no place in a mix at character 10 of the mix: accuracy >>>"),
        ("accuracy(referral", "expected parameter=value at character 18"),
        ("accuracy(referral=", "expected a value at character 19"),
        ("accuracy(referral=.2", r"expected , or \) at character 21"),
        ("accuracy(.2)", "expected parameter=value at character 10"),
        ("accuracy(referal=.2)", "does not take these parameters: {'referal': 0.2}.* at character 1"),
        ("accuracy(referral=2)", "referral of accuracy is 2.0.* at character 1"),
        ("accuracy + information_gain(value=entropi)", "did you mean 'entropy'.* at character 12"),
        ("accuracy - - accuracy", "expected a reward's name"),
        ("1e999*accuracy", "weight of 'accuracy' is inf"),
        ("accuracy + 2*accuracy", "names 'accuracy' twice"),
        ("", "is empty"),
        ("   ", "is empty"),
    ],
)
def test_bad_text__is_an_error_that_points_at_the_place(text: str, words: str) -> None:
    with pytest.raises(RewardError, match=words) as error:
        parse_mix(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"accuracy": "high"}, "weight of 'accuracy' is 'high', not a number"),
        ({"accuracy": None}, "is None, not a number"),
        ({"accuracy": True}, "is True, not a number"),
        ({"accuracy": float("nan")}, "is nan, not a number"),
        ({"accuracy": {"weight": [1]}}, r"is \[1\], not a number"),
        ({"acuracy": 1}, "did you mean 'accuracy'"),
        ({"accuracy": {"refer": 1}}, "does not take these parameters"),
        ({}, "is empty"),
        (None, "a string or a table, not None"),
        (["accuracy"], "a string or a table"),
        (3.5, "a string or a table"),
    ],
)
def test_bad_table__is_an_error_that_names_the_key(table: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        parse_mix(table)


class Haste:
    """1 for each turn that is left. Fixtures: none left 0."""

    name, when, bounds, needs_truth = "haste", "ended", (0.0, 1.0), False

    def __call__(self, t: Transition) -> np.ndarray:
        return t.ended.astype(np.float64)


def test_reward_of_your_own__joins_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixes, "_REGISTRY", dict(mixes._REGISTRY))
    register_reward(Haste, "haste")
    mix = parse_mix("accuracy + 0.5*haste")
    assert str(mix) == "accuracy + 0.5*haste" and "haste" in known_rewards()
    check_reward(mix)
    check_reward(Haste())
    assert mix.score(transition())[0].tolist() == [0.0, 0.0, 1.5]


@dataclasses.dataclass(frozen=True)
class Handover:
    name, when, bounds, needs_truth = "handover", "referred", (0.0, 1.0), False

    def __call__(self, t: Transition) -> np.ndarray:
        return t.referred.astype(np.float64)


def test_reward_on_referral__is_paid_alone_and_in_a_batch() -> None:
    check_reward(Handover())
    register_reward(Handover, "handover")
    one, many = (
        gym.make("MedConsult-v0", knowledge="synthetic:5x24", reward="handover"),
        gym.make_vec("MedConsult-v0", num_envs=2, knowledge="synthetic:5x24", reward="handover"),
    )
    one.reset(seed=0)
    many.reset(seed=0)
    refer = one.action_space.n - 1
    assert one.step(refer)[1] == 1.0 and (many.step(np.full(2, refer))[1] == 1.0).all()


def test_reward_that_waits_for_an_unknown_flag__is_noticed() -> None:
    with pytest.raises(AssertionError, match="when"):
        check_reward(type("Odd", (Handover,), {"when": "truth"})())
