"""The engine's rules: a batch equals its consultations, answers do not depend on order, masks, ends, invalid actions, pay."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from conftest import strict_base, tiny_base
from hypothesis import given
from hypothesis import strategies as st

import medenv  # noqa: F401  registers the environments
from medenv.cases.case import Case
from medenv.cases.loaded import LoadedCases
from medenv.cases.sampled import SampledCases
from medenv.envs.engine import Engine
from medenv.envs.steps import NONE
from medenv.errors import ActionError, EpisodeError, MedenvError
from medenv.knowledge.compiled import compiled
from medenv.knowledge.named import knowledge_base
from medenv.rewards.mix import RewardMix, parse_mix
from medenv.testing import check_batch, check_split_batch, difference

ID = "MedConsult-v0"
MIXES = (
    "accuracy",
    "accuracy + 0.1*information_gain - 0.01*question_cost - 0.1*invalid_action",
    "2*accuracy(referral=0.3) + information_gain(value=log_probability) - question_cost",
    "information_gain(value=probability) - 0.5*invalid_action",
)
BASES = ("synthetic:2x8", "synthetic:5x24", "synthetic:9x46@3", "synthetic:17x30")
MODES = ("NextStep", "SameStep", "Disabled")


def make(**arguments):  # type: ignore[no-untyped-def]
    return gym.make(ID, **{"knowledge": "synthetic:5x24", "max_turns": 6} | arguments).unwrapped


def loaded() -> list[Case]:
    """Patients with sets of values, unknown findings, no opening, and contradictions."""
    yes = {"hello": ("yes",)}
    return [
        Case(30, "female", "primary", "one", yes | {"a": ("yes",), "b": ("yes",), "set": ("x", "y")}, "hello"),
        Case(31, "male", "primary", "two", yes | {"b": ("yes",), "c": ("no",), "set": ("z",)}, "hello"),
        Case(2, "male", "primary", "one", {"a": ("no",), "c": ("yes",), "set": ("x", "y", "z")}),
        Case(99, "female", "primary", "two", {}),
    ]


@given(
    seed=st.integers(0, 2**31),
    base=st.sampled_from(BASES),
    mix=st.sampled_from(MIXES),
    noise=st.sampled_from([0.0, 0.02, 0.5]),
    mode=st.sampled_from(MODES),
    turns=st.integers(1, 9),
    split=st.sampled_from(["train", "validation", "test", "all"]),
    observe=st.booleans(),
    num=st.integers(1, 9),
)
def test_batch__equals_its_consultations(seed, base, mix, noise, mode, turns, split, observe, num) -> None:  # type: ignore[no-untyped-def]
    check_batch(
        ID,
        mode,
        num,
        25,
        seed,
        knowledge=base,
        reward=mix,
        noise=noise,
        max_turns=turns,
        split=split,
        observe_belief=observe,
        persona="brief",
    )


@given(
    seed=st.integers(0, 2**31),
    mode=st.sampled_from(MODES),
    mix=st.sampled_from(MIXES),
    noise=st.sampled_from([0.0, 0.3]),
    num=st.integers(1, 7),
)
def test_batch_of_loaded_cases__equals_its_consultations(seed, mode, mix, noise, num) -> None:  # type: ignore[no-untyped-def]
    check_batch(ID, mode, num, 25, seed, knowledge=strict_base(), cases=loaded(), split="all", reward=mix, noise=noise, max_turns=5)


@given(num=st.integers(2, 40), cut=st.integers(1, 39), base=st.sampled_from(BASES))
def test_batch_in_two_parts__equals_the_whole(num: int, cut: int, base: str) -> None:
    check_split_batch(ID, num, min(cut, num - 1), 20, knowledge=base, max_turns=5)


@given(actions=st.lists(st.integers(-3, 40), min_size=1, max_size=30), seed=st.integers(0, 2**40))
def test_any_action__keeps_the_books(actions: list[int], seed: int) -> None:
    """Whatever is tried: evidence only grows, the mask closes what was asked, every action takes a turn, nothing is paid twice."""
    tables = compiled(knowledge_base("synthetic:5x24"), 0.1)
    engine = Engine(SampledCases(tables, "all"), parse_mix("information_gain - question_cost"), 1, 12)
    engine.seed([seed])
    engine.begin()
    start, paid = float(engine.entropy[0]), 0.0
    for action in actions:
        if engine.done[0]:
            break
        before, left = engine.buffer[0].copy(), int(engine.turns_left[0])
        open_ = 0 <= action < engine.A and bool(before[engine.mask_at + action])
        step = engine.step(np.array([action]))
        after = engine.buffer[0]
        assert engine.turns_left[0] == left - 1
        assert bool(step.transition.invalid[0]) == (not open_)
        assert (step.row[0] != NONE) == (open_ and action < engine.Q)
        known = before[: engine.S] >= 0
        assert (after[: engine.S][known] == before[: engine.S][known]).all()
        assert not after[engine.mask_at : engine.mask_at + engine.Q][after[engine.asked_at : engine.mask_at] == 1].any()
        assert after[engine.spare] == 0, "the spare column stays closed"
        if step.row[0] == NONE:
            assert step.reward[0] == 0 and (after[: engine.mask_at] == before[: engine.mask_at]).all()
        paid += float(step.components["information_gain"][0])
        assert paid == pytest.approx(start - float(engine.entropy[0]), abs=1e-5), "the gains telescope"


def test_answers__do_not_depend_on_the_order() -> None:
    env = make(knowledge="synthetic:12x50", noise=0.2, max_turns=60)
    for seed in range(10):
        seen, _ = env.reset(seed=seed)
        open_ = np.flatnonzero(seen["action_mask"][: env.num_questions])
        runs = []
        for order in (open_, open_[::-1], np.roll(open_, 7)):
            env.reset(seed=seed)
            replies = {int(q): env.step(int(q))[4]["reply"] for q in order}
            runs.append((replies, env.engine.buffer.copy(), env.engine.belief.copy()))
        for other in runs[1:]:
            assert other[0] == runs[0][0] and (other[1] == runs[0][1]).all()
            assert other[2] == pytest.approx(runs[0][2], abs=1e-5)


def test_repeated_question__is_masked_invalid_and_paid_nothing() -> None:
    env = make(reward="information_gain - question_cost")
    seen, _ = env.reset(seed=3)
    q = int(np.flatnonzero(seen["action_mask"])[0])
    seen, first, *_ = env.step(q)
    assert first != 0 and not seen["action_mask"][q] and seen["asked"][q]
    belief = env.engine.belief.copy()
    seen, reward, _, _, info = env.step(q)
    assert reward == 0 and info["reply"] == "" and info["components"] == {"information_gain": 0.0, "question_cost": 0.0}
    assert (env.engine.belief == belief).all() and env.invalid_actions == 1


def test_opening_statement__counts_as_asked_and_pays_nothing() -> None:
    env = make(knowledge=tiny_base(), reward="information_gain")
    for seed in range(20):
        seen, info = env.reset(seed=seed)
        q = int(seen["complaint"])
        assert seen["asked"][q] and not seen["action_mask"][q] and info["reply"]
        assert seen["evidence"][env.tables.slot_start[q]] == 1 and (seen["evidence"] >= 0).sum() == 1
        assert env.step(q)[1] == 0


def test_child__opens_when_its_parent_is_answered_so_or_is_the_opening() -> None:
    env = make(knowledge=tiny_base(), noise=0.3)
    cough, kind = 1, 2
    by_opening = by_answer = denied = 0
    for seed in range(120):
        seen, _ = env.reset(seed=seed)
        if seen["complaint"] == cough:
            assert seen["action_mask"][kind]
            by_opening += 1
            continue
        assert not seen["action_mask"][kind]
        seen, *_, info = env.step(kind)
        assert info["reply"] == "" and env.invalid_actions == 1, "a masked child is an invalid action"
        seen, *_ = env.step(cough)
        yes = seen["evidence"][env.tables.slot_start[cough]] == 1
        assert seen["action_mask"][kind] == yes
        by_answer, denied = by_answer + yes, denied + (not yes)
    assert by_opening and by_answer and denied


def test_questions_that_sex_rules_out__are_masked() -> None:
    env, q = make(knowledge=tiny_base()), 4
    open_ = {(int(env.reset(seed=s)[0]["demographics"][1]), int(env.action_masks()[q])) for s in range(40)}
    assert open_ == {(0, 1), (1, 0)}


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_last_turn__leaves_only_diagnosing_and_referring(turns: int) -> None:
    env = make(max_turns=turns)
    seen, _ = env.reset(seed=1)
    Q = env.num_questions
    for left in range(turns, 1, -1):
        assert seen["turns_left"][0] == left and seen["action_mask"][:Q].any()
        seen, _, done, *_ = env.step(int(np.flatnonzero(seen["action_mask"])[0]))
        assert not done
    assert seen["turns_left"][0] == 1 and not seen["action_mask"][:Q].any() and seen["action_mask"][Q:].all()
    seen, _reward, done, cut, info = env.step(0)
    assert done and not cut and seen["turns_left"][0] == 0
    assert info["components"]["accuracy"] == 0.0 and info["invalid_actions"] == 1, "the budget's end is an end without a diagnosis"
    assert "truth" in info


def test_diagnosis_and_referral__end_and_pay() -> None:
    env = make(reward="accuracy(referral=0.2)")
    Q, D = env.num_questions, env.num_conditions
    for seed in range(5):
        for d in range(D):
            env.reset(seed=seed)
            truth = env.case.truth
            _, reward, done, _, info = env.step(Q + d)
            assert done and info["truth"] == truth and reward == float(env.tables.base.conditions[d].id == truth)
        env.reset(seed=seed)
        _, reward, done, _, info = env.step(Q + D)
        assert done and reward == 0.2 and info["reply"] == ""


@pytest.mark.parametrize("action", [-1, 10_000, "ask", None, 1.5, np.float32(2), np.array([1, 2])])
def test_action_outside_the_space__is_an_error_for_one(action: object) -> None:
    env = make()
    env.reset(seed=0)
    before = env.snapshot()
    with pytest.raises(ActionError, match="outside Discrete"):
        env.step(action)
    assert not difference(before, env.snapshot()), "nothing has happened"


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8, np.array])
def test_integers_of_any_kind__are_actions(kind) -> None:  # type: ignore[no-untyped-def]
    env = make()
    env.reset(seed=0)
    env.step(kind(3))


def test_action_outside_the_space__is_counted_in_a_batch() -> None:
    batch = gym.make_vec(ID, 4, "vector_entry_point", knowledge="synthetic:5x24", max_turns=3, reward="accuracy - 0.1*invalid_action")
    seen, _ = batch.reset(seed=0)
    q = int(np.flatnonzero(seen["action_mask"].all(0))[0])
    after, reward, ended, _, info = batch.step(np.array([-5, 10**9, q, int(seen["complaint"][3])]))
    assert info["invalid"].tolist() == [True, True, False, True] and reward.tolist() == [-0.1, -0.1, 0.0, -0.1]
    assert after["turns_left"].ravel().tolist() == [2] * 4 and not ended.any()
    assert not difference(after["evidence"][[0, 1, 3]], seen["evidence"][[0, 1, 3]])


@pytest.mark.parametrize("actions", [np.zeros(3, int), np.zeros((4, 1), int), np.zeros(4), [True] * 4])
def test_batch_actions__must_be_n_integers(actions: object) -> None:
    batch = gym.make_vec(ID, 4, "vector_entry_point", knowledge="synthetic:5x24")
    batch.reset(seed=0)
    with pytest.raises(ActionError, match="4 integers"):
        batch.step(actions)


def test_calls_out_of_order__are_errors() -> None:
    env = make()
    with pytest.raises(EpisodeError, match="before reset"):
        env.step(0)
    env.reset(seed=0)
    env.step(env.engine.refer_action)
    with pytest.raises(EpisodeError, match="after the end"):
        env.step(0)
    with pytest.raises(EpisodeError, match="ended"):
        env.imagine(2, 0)
    batch = gym.make_vec(ID, 2, "vector_entry_point", knowledge="synthetic:5x24", autoreset_mode="Disabled")
    with pytest.raises(EpisodeError):
        batch.step(np.zeros(2, int))
    batch.reset(seed=0)
    batch.step(np.full(2, batch.engine.refer_action))
    with pytest.raises(EpisodeError, match="reset_mask"):
        batch.step(np.zeros(2, int))


class _Sometimes:
    """A reward that cannot score every other question."""

    name, when, bounds, needs_truth = "sometimes", "answered", (0.0, 1.0), False

    def __call__(self, t):  # type: ignore[no-untyped-def]
        return np.where(t.question % 2 == 0, np.nan, 1.0)


@pytest.mark.parametrize("num", [1, 3])
def test_component_that_cannot_be_scored__is_none_and_adds_nothing(num: int) -> None:
    mix = RewardMix((*parse_mix("question_cost").terms, ("sometimes", 1.0, _Sometimes())))
    tables = compiled(strict_base())
    case = [Case(30, "female", "primary", "one", {"a": ("no",), "b": ("no",)})]
    engine = Engine(LoadedCases(tables, case, "all"), mix, num, 9)
    engine.seed([0] * num)
    engine.begin()
    step = engine.step(np.full(num, 2))
    assert step.scored.tolist() == [False] * num and step.reward.tolist() == [1.0] * num and np.isnan(step.components["sometimes"]).all()
    step = engine.step(np.full(num, 1))
    assert step.scored.tolist() == [True] * num and step.reward.tolist() == [2.0] * num
    env = make(knowledge=strict_base(), cases=case, split="all", reward=mix)
    env.reset(seed=0)
    info = env.step(2)[4]
    assert info["scored"] is False and info["components"] == {"question_cost": 1.0, "sometimes": None}
    check_batch(ID, "NextStep", 3, 20, knowledge="synthetic:5x24", reward=mix, max_turns=5)


def test_unknown_answer__takes_a_turn_gains_nothing_and_costs() -> None:
    env = make(
        knowledge=strict_base(), cases=[Case(30, "female", "primary", "one", {})], split="all", reward="information_gain - question_cost"
    )
    seen, info = env.reset(seed=0)
    assert seen["complaint"] == env.num_questions and "not feeling well" in info["reply"]
    after, reward, _, _, info = env.step(1)
    assert reward == -1.0 and info["components"]["information_gain"] == 0.0  # nothing gained, the question costs all the same
    assert info["reply"] == "I don't know." and info["scored"]
    assert after["asked"][1] and not after["action_mask"][1] and (after["evidence"] == seen["evidence"]).all()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.ones((1, 4)) / 4, "shape"),
        (np.ones(5), "sum to 1"),
        (np.array([1.5, -0.5, 0, 0, 0]), ">= 0"),
        (np.array([0.5, 0.5, np.nan, 0, 0]), "sum to 1"),
    ],
)
def test_differential_that_is_none__is_refused(bad, words: str) -> None:  # type: ignore[no-untyped-def]
    env = make()
    env.reset(seed=0)
    with pytest.raises(MedenvError, match=words):
        env.submit_differential(bad)


def test_differential__is_the_doctors_own_or_none() -> None:
    env = make()
    env.reset(seed=0)
    assert env.step(env.num_questions)[4]["differential"] is None
    env.reset(seed=0)
    own = np.array([0.5, 0.5, 0, 0, 0], np.float32)
    env.submit_differential(own)
    assert env.step(env.num_questions)[4]["differential"].tolist() == own.tolist()
    env.reset()
    assert env.step(env.num_questions)[4]["differential"] is None, "it does not stay for the next patient"


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("max_turns", 0, "max_turns is 0"),
        ("max_turns", 2.7, "integer"),
        ("max_turns", "x", "integer"),
        ("noise", "a", "noise is 'a'"),
        ("difficulty", None, "difficulty is None"),
        ("noise", 0.7, "noise"),
        ("split", "dev", "split"),
        ("complaint", "feverr", "complaint"),
    ],
)
def test_bad_argument__is_refused_in_words(argument: str, value: object, words: str) -> None:
    with pytest.raises(MedenvError, match=words):
        make(**{argument: value})
