"""Mixes: text and tables that mean the same, errors that point at the place, presets, rewards of one's own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import strict_base
from hypothesis import given
from hypothesis import strategies as st
from reward_fixture import transition

from medenv.cases.case import Case
from medenv.envs.consult import ConsultEnv
from medenv.errors import RewardError
from medenv.rewards import mix as mixes
from medenv.rewards.base import Transition
from medenv.rewards.information_gain import VALUES
from medenv.rewards.mix import DEFAULT, PRESETS, known_presets, known_rewards, parse_mix, register_reward
from medenv.testing import check_reward

weights = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda w: w == 0 or abs(w) > 1e-12)
terms = st.fixed_dictionaries(
    {},
    optional={
        "accuracy": st.fixed_dictionaries({"weight": weights}, optional={"referral": st.floats(0, 0.99), "wrong": st.floats(0, 9)}),
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
        ("accuracy(referal=.2)", "unknown parameter of accuracy 'referal'; did you mean 'referral'.* at character 1"),
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
        ({"accuracy": {"refer": 1}}, "unknown parameter of accuracy 'refer'; did you mean 'referral'"),
        ({}, "is empty"),
        (None, "a string or a table, not None"),
        (["accuracy"], "a string or a table"),
        (3.5, "a string or a table"),
    ],
)
def test_bad_table__is_an_error_that_names_the_key(table: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        parse_mix(table)


# Presets


@pytest.mark.parametrize("name", known_presets())
def test_preset__is_a_whole_mix(name: str) -> None:
    assert parse_mix(name) == parse_mix(f" {name} ") == parse_mix(PRESETS[name])
    assert str(parse_mix(name)) == PRESETS[name]
    check_reward(name)


def test_presets__have_names_of_their_own() -> None:
    assert set(known_presets()) == {"default", "doctoragent", "aarlc"} == set(PRESETS) and not set(PRESETS) & set(known_rewards())


@pytest.mark.parametrize("mix", ["accuracy + 0.5*doctoragent", "-doctoragent", "doctoragent()", {"doctoragent": 1}, {"doctoragent": {}}])
def test_preset_in_a_sum__is_an_error_that_says_to_write_the_parts(mix: Any) -> None:
    with pytest.raises(
        RewardError, match=r"'doctoragent' is a preset, a whole mix that stands alone: write its parts, 'new_answer - no_"
    ) as e:
        parse_mix(mix)
    assert isinstance(mix, dict) or " of the mix: " in str(e.value)


def test_preset_misspelt__is_proposed() -> None:
    with pytest.raises(RewardError, match="did you mean 'doctoragent'"):
        parse_mix("doctorgent")


PATIENT = Case(30, "female", "primary", "one", {"hello": ("yes",), "a": ("yes",), "b": ("no",), "set": ("x",)}, "hello", "train")
ON_X = 0.84 / 1.04  # P(one | set = x): x comes from one (.8 + .2 * .2) or from two (.2), and is the commonest value
LEFT = -(ON_X * math.log2(ON_X) + (1 - ON_X) * math.log2(1 - ON_X))  # share of the opening's entropy that is left then
HELLO, A, B, C, SET, ONE, TWO, REFER = range(8)  # actions; the patient does not know C


@pytest.mark.parametrize(
    ("preset", "turns", "actions", "paid"),
    [
        ("doctoragent", 9, [A, A, C, B, ONE], [1, -2, -1, 1, 5]),
        ("doctoragent", 9, [HELLO, TWO], [-2, 0]),
        ("doctoragent", 9, [REFER], [0]),
        ("doctoragent", 3, [B, SET, A], [1, 1, -7]),
        ("aarlc", 9, [A, A, C, ONE], [0.7 + 2.826, -1, -1, 1]),
        ("aarlc", 9, [SET, TWO], [-0.3 + 2.826 * (1 - LEFT), -1]),
        ("aarlc", 9, [REFER], [0]),
        ("aarlc", 2, [A, B], [0.7 + 2.826, -1]),
    ],
)
def test_preset__pays_a_consultation_by_hand(preset: str, turns: int, actions: list[int], paid: list[float]) -> None:
    env = ConsultEnv(knowledge=strict_base(), cases=[PATIENT], noise=0.0, reward=preset, max_turns=turns)
    env.reset(seed=0)
    steps = [env.step(action) for action in actions]
    assert [s[1] for s in steps] == pytest.approx(paid, abs=1e-5) and steps[-1][2]


# Rewards of one's own


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
