"""Rewards: what each pays for full marks, nothing, and what is malformed; and that none can be had cheaply."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from conftest import tiny_base
from hypothesis import given
from hypothesis import strategies as st
from reward_fixture import FEMALE, PRIOR, TABLES, ended, entropy, ledger, transition, wary_base

from medenv.agents.greedy import Greedy
from medenv.cases.case import Case
from medenv.envs.consult import ConsultEnv
from medenv.envs.setup import Setup
from medenv.errors import RewardError
from medenv.knowledge.base import Link
from medenv.knowledge.compiled import compiled
from medenv.knowledge.named import knowledge_base
from medenv.rewards.accuracy import Accuracy
from medenv.rewards.answers import NewAnswer, NoAnswer, PositiveAnswer
from medenv.rewards.base import FLOOR, Reward
from medenv.rewards.costs import CostOfTest, Format, InvalidAction, QuestionCost, Repetition, TimeOut
from medenv.rewards.differential import BrierScore, LogScore, ReciprocalRank
from medenv.rewards.information_gain import LEAST, VALUES, InformationGain
from medenv.rewards.mix import RewardMix, known_rewards, parse_mix
from medenv.rewards.must_ask import MustAsk, tells
from medenv.rewards.referral import Referral
from medenv.rewards.safety import Safety
from medenv.rewards.triage import Triage
from medenv.runs.consultations import asking, consultations
from medenv.runs.evaluate import assign
from medenv.testing import FLAGS, check_reward, recorded_transitions

NAN = math.nan
NONE = np.zeros(3, bool)
ALL = np.ones(3, bool)
RECORDED = recorded_transitions(compiled(knowledge_base("synthetic:5x24"), 0.1), 60, 6)
RECORDED_WITH_LEDGER = recorded_transitions(TABLES, 40, 16)
GAINED = (entropy(PRIOR) - entropy(np.array([[0.9, 0.1, 0]])))[0]


def differential(*rows: list[float]) -> dict[str, Any]:
    """Three ends with these differentials; the truths are 0, 1, 2."""
    return ended(differential=np.array(rows, np.float32))


def asks(question: int, known: bool = True, **answers: str) -> dict[str, Any]:
    """All three asked `question`; `answers` is what the ledger holds."""
    return {"question": np.full(3, question), "asked": ALL, "answered": np.full(3, known), "invalid": NONE, "repeated": NONE} | (
        {"ledger": ledger(answers)} if answers else {}
    )


def of(reward: Any) -> Any:
    """The reward ready for the small base."""
    return reward.bind(TABLES)


CERTAIN, OTHER, EVEN = np.eye(3).tolist(), np.eye(3)[[1, 2, 0]].tolist(), [[1 / 3] * 3] * 3
NO_DIFFERENTIAL, SPOILT = [[NAN] * 3] * 3, [[0.5, NAN, 0.5]] * 3
LAST = [[1e-7, 0.5, 0.5], [0.5, 1e-7, 0.5], [0.5, 0.5, 1e-7]]
SURE_AND_WRONG = [[0.0, 1.0, 1e-9], [1e-9, 0.0, 1.0], [1.0, 1e-9, 0.0]]
PAID = np.array([0.04, 0.06, 0.04])
BLEED = {"truth": np.zeros(3, int)}
FLAGS_SEEN = {"stiff_neck": "yes", "headache": "yes", "onset": "sudden"}

FIXTURES: list[tuple[str, Reward, dict[str, Any], list[float]]] = [
    ("right", Accuracy(), ended([0, 1, 2]), [1, 1, 1]),
    ("wrong", Accuracy(), ended([1, 2, 0]), [0, 0, 0]),
    ("wrong costs", Accuracy(wrong=2), ended([0, 2, -1]), [1, -2, 0]),
    ("undiagnosed", Accuracy(), ended(), [0, 0, 0]),
    ("referred", Accuracy(referral=0.25, wrong=1), ended(referred=True), [0.25] * 3),
    ("not ended", Accuracy(), {}, [0, 0, 1]),
    ("entropy", InformationGain(), {}, [GAINED, 0, 0]),
    ("share", InformationGain(value="relative_entropy"), {"ledger": ledger({})}, [GAINED / entropy(PRIOR)[0], 0, 0]),
    ("sure opening", InformationGain("relative_entropy"), {"ledger": ledger({}, prior=[[0.99, 0.005, 0.005]])}, [GAINED / LEAST, 0, 0]),
    ("probability", InformationGain(value="probability"), {}, [0.4, 0, 0]),
    ("log probability", InformationGain(value="log_probability"), {}, [math.log(0.9 / 0.5), 0, 0]),
    ("excluded truth", InformationGain(value="log_probability"), {"truth": np.array([2, 1, 2])}, [math.log(FLOOR / 0.2), 0, 0]),
    ("not answered", InformationGain(), {"answered": NONE}, [0, 0, 0]),
    ("cost", QuestionCost(), {}, [2.5, 0, 0]),
    ("test", of(CostOfTest()), {}, [0.08, 0, 0]),
    ("test, own weights", of(CostOfTest(money=0, delay=1.5, invasiveness=0)), {}, [3, 0, 0]),
    ("plain question", of(CostOfTest()), asks(0), [0, 0, 0]),
    ("invalid", InvalidAction(), {}, [0, 1, 0]),
    ("again", Repetition(), {}, [0, 1, 0]),
    ("masked, not again", Repetition(), {"repeated": NONE}, [0, 0, 0]),
    ("no action", Format(), {"malformed": np.array([False, True, False])}, [0, 1, 0]),
    ("an action", Format(), {}, [0, 0, 0]),
    ("time out", TimeOut(), ended([-1, 1, -1], [False, False, True]), [1, 0, 0]),
    ("going on", TimeOut(), {}, [0, 0, 0]),
    ("new", NewAnswer(), {}, [1, 0, 0]),
    ("nothing new", NewAnswer(), {"answered": NONE}, [0, 0, 0]),
    ("unknown", NoAnswer(), asks(4, known=False), [1, 1, 1]),
    ("known", NoAnswer(), {}, [0, 0, 0]),
    ("yes", PositiveAnswer(), asks(1, fever="no", stiff_neck="yes"), [1, 1, 1]),
    ("no", PositiveAnswer(), asks(0, fever="no", stiff_neck="yes"), [0, 0, 0]),
    ("commonest value", PositiveAnswer(), asks(6, colour="white"), [0, 0, 0]),
    ("uncommon value", PositiveAnswer(), asks(6, stiff_neck="no", colour="blue"), [1, 1, 1]),
    ("rank 1", of(ReciprocalRank()), differential(*CERTAIN), [0.98] * 3),
    ("rank of ties", of(ReciprocalRank()), differential(*EVEN), [1 / 3 - 0.06] * 3),
    ("rank 2", of(ReciprocalRank(price=0)), differential(*[[0.6, 0.3, 0.1]] * 3), [1, 1 / 2, 1 / 3]),
    ("not in the list", of(ReciprocalRank()), differential(*SURE_AND_WRONG), [-0.04] * 3),
    ("no rank", of(ReciprocalRank()), differential(*NO_DIFFERENTIAL), [NAN] * 3),
    ("log of 1", of(LogScore(price=0)), differential(*CERTAIN), [0, 0, 0]),
    (
        "log of .5",
        of(LogScore()),
        differential([0.5, 0.5, 0], [0.3, 0.5, 0.2], [0.5, 0, 0.5]),
        [math.log(0.5) - p for p in (0.04, 0.06, 0.04)],
    ),
    ("log of next to nothing", of(LogScore()), differential(*LAST), [math.log(FLOOR) - 0.06] * 3),
    ("no log", of(LogScore()), differential(*SPOILT), [NAN] * 3),
    ("before the end", of(LogScore()), differential(*CERTAIN) | {"ended": NONE}, [0, 0, 0]),
    ("Brier 1", of(BrierScore()), differential(*CERTAIN), [0.98] * 3),
    ("Brier 0", of(BrierScore()), differential(*OTHER), [-0.02] * 3),
    ("Brier least", of(BrierScore()), differential([1e-9, 1, 1e-9], [1e-9, 1e-9, 1], [1, 1e-9, 1e-9]), [-0.06] * 3),
    ("Brier between", of(BrierScore(price=0)), differential(*[[0.6, 0.3, 0.1]] * 3), [1 - 0.13, 1 - 0.43, 1 - 0.63]),
    ("no differential at all", of(BrierScore()), ended(), [NAN] * 3),
    ("triage right", of(Triage()), ended([0, 1, 2]), [1, 1, 1]),
    ("triage too soon", of(Triage()), ended([0, 0, 0]), [1, 0.5, 0]),
    ("triage too late", of(Triage()), ended([2, 2, 2]), [-1, 0, 1]),
    ("triage, no end", of(Triage()), ended(), [-1, 0, 1]),
    ("triage by referral", of(Triage(under=4, referral_level=2)), ended(referred=True), [0, 0.75, 0.25]),
    ("unsure", Referral(), ended(referred=True, belief_before=np.full((3, 50), 0.02)), [0.48] * 3),
    ("sure", Referral(), ended(referred=True, belief_before=np.eye(3, dtype=np.float32)), [-0.5] * 3),
    ("Chow", Referral(threshold=0.9), ended(referred=True), [0.4, 0.1, 0.3]),
    ("not referred", Referral(), ended([0, 1, 2]), [0, 0, 0]),
    ("broken belief", Referral(), ended(referred=True, belief_before=np.full((3, 3), NAN)), [NAN] * 3),
    ("safe", of(Safety()), ended([0, -1, -1], [False, True, True], **BLEED, ledger=ledger(FLAGS_SEEN)), [0.5] * 3),
    ("safe, told", of(Safety()), ended(0, **BLEED, ledger=ledger({"headache": "yes", "onset": "slow"}, opening="stiff_neck")), [0.5] * 3),
    ("ruled out", of(Safety()), ended(0, **BLEED, ledger=ledger({"stiff_neck": "no", "headache": "no"})), [0.5] * 3),
    ("half asked", of(Safety()), ended([0, 1, 2], **BLEED, ledger=ledger({"headache": "yes", "onset": "slow"})), [0.375, -0.875, -0.875]),
    ("sent home", of(Safety()), ended([2, 1, -1], **BLEED, ledger=ledger({})), [-1, -1, -1]),
    ("a woman's", of(Safety()), ended(0, **BLEED, ledger=ledger({"bleeding": "no"}, cell=FEMALE)), [0.25 / 3 + 0.25] * 3),
    ("no danger", of(Safety()), ended([2, 1, -1], truth=np.array([2, 1, 2]), ledger=ledger({"fever": "yes"})), [0, 0, 0]),
    ("flag", of(Safety()), ended([1, 2, 0], truth=np.ones(3, int), ledger=ledger({"stiff_neck": "yes"})), [0.25, 0, 0.25]),
    ("flag denied", of(Safety()), ended(1, truth=np.ones(3, int), ledger=ledger({"stiff_neck": "no"})), [0, 0, 0]),
    ("flag told", of(Safety()), ended([1, 2, 0], truth=np.ones(3, int), ledger=ledger({}, opening="stiff_neck")), [0.25, 0, 0.25]),
    ("flag, no end", of(Safety()), ended(truth=np.full(3, 2), ledger=ledger({"stiff_neck": "yes"})), [0, 0, 0]),
    ("under its parent", of(Safety()), ended(0, **BLEED, ledger=ledger({"stiff_neck": "no", "headache": "yes"})), [0.375] * 3),
    ("weights", of(Safety(asked=1, acted=0, missed=0.5)), ended(2, **BLEED, ledger=ledger({"stiff_neck": "no"})), [0, 0, 0]),
    ("none asked", of(MustAsk()), ended(ledger=ledger({"onset": "slow"})), [0, 0, 0]),
    ("all asked", of(MustAsk()), ended(ledger=ledger({f.id: f.values[0] for f in TABLES.base.findings}, turns=9)), [1, 1, 1]),
    ("not for him", of(MustAsk(size=1)), ended(truth=np.full(3, 2), ledger=ledger({"cough": "yes"})), [NAN] * 3),
    ("for her", of(MustAsk(size=1)), ended(truth=np.full(3, 2), ledger=ledger({"pregnant": "no"}, cell=FEMALE)), [1, 1, 1]),
    ("half", of(MustAsk(size=2)), ended(**BLEED, ledger=ledger({"scan": "yes"}, {"scan": "no", "headache": "no"}, {})), [0.5, 1, 0]),
    ("told first", of(MustAsk(size=2)), ended(**BLEED, ledger=ledger({}, opening="headache")), [0.5] * 3),
    ("not ended yet", of(MustAsk()), {"ledger": ledger({"cough": "yes"}), "ended": NONE}, [0, 0, 0]),
]
UNATTAINED = {  # default bounds that no small base comes near, or that do not end
    *("information_gain", "question_cost", "potential", "shapley", "shapley_credit", "promed_sig"),
}


@pytest.mark.parametrize(("reward", "changes", "expected"), [f[1:] for f in FIXTURES], ids=[f[0] for f in FIXTURES])
def test_reward__pays(reward: Reward, changes: dict[str, Any], expected: list[float]) -> None:
    t = transition(**changes)
    for _ in range(2):
        assert reward(t) == pytest.approx(np.array(expected), abs=1e-6, nan_ok=True)
        total, components = RewardMix(((reward.name, 2.0, reward),)).score(t)
        assert components[reward.name] == pytest.approx(2 * np.array(expected), abs=1e-6, nan_ok=True)
        assert total == pytest.approx(2 * np.nan_to_num(expected), abs=1e-6) and total.dtype == np.float64
        assert list(components) == [reward.name]


@pytest.mark.parametrize("name", [n for n in known_rewards() if n not in UNATTAINED])
def test_default_bounds__are_attained(name: str) -> None:
    default = parse_mix(name).bound(TABLES).terms[0][2]
    assert all(math.isfinite(b) for b in default.bounds)
    paid = [p for _, reward, _, expected in FIXTURES if reward == default for p in expected if p == p]
    low, high = default.bounds
    assert min(paid) == pytest.approx(low, abs=0.03) and max(paid) == pytest.approx(high, abs=0.03)


def test_malformed_belief__is_not_scored_and_adds_nothing() -> None:
    broken = np.full((3, 3), np.nan)
    t = transition(belief_after=broken, answered=ALL)
    total, components = parse_mix("information_gain(value=probability) + invalid_action").score(t)
    assert np.isnan(components["information_gain"]).all() and total.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("name", known_rewards())
def test_every_registered_reward__conforms(name: str) -> None:
    check_reward(name)
    check_reward(name, TABLES)
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
        one = t.part(slice(i, i + 1))
        flags = [f for f in FLAGS if getattr(one, f)[0]]
        paid, parts = mix.score_one(one, flags)
        assert paid == total[i] and all(parts[k] == components[k][i] for k in components)


@pytest.mark.parametrize(
    ("reward", "bounds"),
    [
        (ReciprocalRank(), (-math.inf, 0.98)),
        (of(ReciprocalRank()), (-0.04, 0.98)),
        (of(ReciprocalRank(price=0.5)), (1 / 3 - 1.5, 0.5)),
        (of(LogScore()), (math.log(FLOOR) - 0.06, 0)),
        (LogScore(price=0), (math.log(FLOOR), 0)),
        (of(BrierScore()), (-0.06, 0.98)),
        (BrierScore(price=0), (0, 1)),
        (Accuracy(wrong=2), (-2, 1)),
        (InformationGain(), (-14, 14)),
        (InformationGain("relative_entropy"), (-140, 140)),
        (InformationGain("probability"), (-1, 1)),
        (CostOfTest(), (0, math.inf)),
        (of(CostOfTest(money=1)), (0, 50.03)),
        (Triage(under=0.5), (0, 1)),
        (Safety(asked=1, missed=0), (0, 1.25)),
        (Referral(threshold=0.9), (-0.1, 0.9)),
    ],
)
def test_bounds__follow_the_parameters(reward: Reward, bounds: tuple[float, float]) -> None:
    assert reward.bounds == pytest.approx(bounds)


def test_triage__without_an_end_the_patient_waits_longest() -> None:
    reward = Triage().bind(compiled(tiny_base(), 0.0))  # all conditions of level 4
    assert reward(transition(**ended())).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", [*known_rewards(), *(f"information_gain(value={v})" for v in VALUES)])
def test_needs_truth__is_said_where_the_truth_moves_the_number(name: str) -> None:
    """With other truths in the transition and its ledger, a reward that is shown before the end pays the same."""
    written = "must_ask(size=2)" if name == "must_ask" else name  # of six, all three conditions have the same
    reward = parse_mix(written).bound(TABLES).terms[0][2]
    moved = False
    for t in RECORDED_WITH_LEDGER:
        paid = reward(t)
        for shift in (1, 2):
            other = t.part(slice(None))
            other.truth = (t.truth + shift) % t.belief_after.shape[1]
            other.ledger.truth = (t.ledger.truth + shift) % t.belief_after.shape[1]
            moved |= not np.array_equal(paid, reward(other), equal_nan=True)
    assert moved == reward.needs_truth


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ("accuracy(wrong=-1)", "wrong of accuracy is -1.0: give a number of at least 0"),
        ("test_cost(delay=-1)", "delay of test_cost is -1.0"),
        ("brier_score(price=-1)", "price of brier_score is -1.0"),
        ("triage(under=-1)", "under of triage is -1.0"),
        ("triage(referral_level=0)", r"referral_level of triage is 0.0: give a level from 1 \(at once\) to 5"),
        ("safety(acted=2)", r"acted of safety is 2.0: give a weight in \[0, 1\]"),
        ("referral(threshold=2)", "threshold of referral is 2.0"),
        ("must_ask(size=1.5)", "size of must_ask is 1.5: give a whole number"),
        ({"must_ask": {"size": NAN}}, "size of must_ask is nan"),
        ({"triage": {"under": "twice"}}, "under of triage is 'twice'"),
    ],
)
def test_bad_parameter__is_an_error_that_says_what_to_give(mix: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        parse_mix(mix)


@pytest.mark.parametrize("name", ["positive_answer", "safety", "must_ask", "information_gain(value=relative_entropy)"])
def test_reward_of_the_ledger__says_so_without_one(name: str) -> None:
    mix = parse_mix(name).bound(TABLES)
    assert mix.needs_ledger
    with pytest.raises(RewardError, match="needs the ledger of the consultation"):
        mix.score(transition())


@pytest.mark.parametrize("name", ["test_cost", "triage", "safety", "must_ask"])
def test_reward_of_the_base__says_so_without_one(name: str) -> None:
    with pytest.raises(RewardError, match=f"reward '{name}' needs a knowledge base"):
        parse_mix(name).score(transition(ledger=ledger({})))


# Differentials


@pytest.mark.parametrize("name", ["reciprocal_rank", "log_score", "brier_score"])
def test_listing_everything__loses_to_an_honest_differential(name: str) -> None:
    setup = Setup(knowledge="synthetic:12x30", split="validation")
    handles = assign(setup.source, 0, 150)
    played = consultations(setup, handles, asking(Greedy(setup.tables), setup))
    belief = np.zeros((len(played), 12))
    for i, record in enumerate(played):
        for condition, p in record["end"]["differential"].items():
            belief[i, setup.base.condition_index[condition]] = p
    third = np.sort(belief, axis=1)[:, -3:-2]
    short = np.where(belief >= third, belief, 0.0)
    short /= short.sum(1, keepdims=True)
    reward = parse_mix(name).bound(setup.tables).terms[0][2]

    def mean(p: np.ndarray) -> float:
        n = len(p)
        all_ = {f: np.ones(n, bool) if f in ("turn", "ended") else np.zeros(n, bool) for f in FLAGS}
        nothing = {k: np.zeros(n) for k in ("cost", "entropy_before", "entropy_after", "belief_before", "belief_after")}
        t = transition(**all_, **nothing, diagnosis=np.full(n, -1), question=np.full(n, -1), truth=truth, differential=p.astype(np.float32))
        return float(reward(t).mean())

    truth = np.array([setup.base.condition_index[r["end"]["truth"]] for r in played])
    everything = mean(np.full_like(belief, 1 / 12))
    assert everything + 0.3 < mean(belief), "the belief as it is names all conditions, and pays for them"
    assert everything + 0.5 < mean(short)
    assert mean(0.9999 * short + 0.0001 / 12) < mean(short), "adding all the others costs more than it brings"


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_log_and_brier_scores__are_proper(belief: list[float], said: list[float]) -> None:
    p, q = np.array(belief) / sum(belief), np.array(said) / sum(said)
    truth = np.arange(3)
    for reward in (LogScore(), BrierScore()):
        honest, other = (float(p @ reward.score(np.tile(x, (3, 1)), truth)) for x in (p, q))
        assert honest >= other - 1e-12


# Answers


def test_answers__of_a_patient_with_several_values_and_gaps() -> None:
    base = tiny_base()
    patient = Case(50, "male", "primary", "cold", {"cough": ("yes",), "spots": ("face", "back"), "fever": ("no",)}, "cough")
    env = ConsultEnv(knowledge=base, cases=[patient], split="all", noise=0.0, reward="new_answer + positive_answer - no_answer")
    env.reset(seed=0)
    paid = [env.step(base.finding_index[name])[4]["components"] for name in ("spots", "smoker", "fever", "cough")]
    several, unknown, denied, told = ([p[k] for k in ("new_answer", "positive_answer", "no_answer")] for p in paid)
    assert several == [1, 1, 0] and unknown == [0, 0, -1] and denied == [1, 0, 0] and told == [0, 0, 0]


# Referral


@given(p=st.lists(st.floats(0.01, 1), min_size=3, max_size=3), weight=st.floats(0.01, 10))
def test_referral__beside_accuracy_is_chows_rule(p: list[float], weight: float) -> None:
    belief = np.tile(np.array(p) / sum(p), (3, 1))
    mix = parse_mix({"accuracy": {"referral": 0.5}, "referral": weight})
    deferred = mix.score(transition(**ended(referred=True, belief_before=belief)))[0][0]
    best = int(belief[0].argmax())
    guessed = belief[0] @ mix.score(transition(**ended(best, belief_before=belief)))[0]
    assert deferred - guessed == pytest.approx((1 + weight) * (0.5 - belief[0, best]))


# Must ask


def test_rubric__holds_the_findings_that_tell_most() -> None:
    tables = compiled(knowledge_base("synthetic:5x24"), 0.1)
    found, weight = tells(tables), tables.cell_weight
    for d, q in itertools.product(range(5), range(24)):
        if tables.base.findings[q].parent is not None:
            assert found[d, q] == -1.0
            continue
        joint = np.zeros((2, tables.num_values[q]))
        for c, e, v in itertools.product(range(len(weight)), range(5), range(tables.num_values[q])):
            joint[int(e == d), v] += weight[c, e] * tables.probability[tables.row_of[c, q] + v, e]
        expected = sum(x * math.log(x / (joint[y].sum() * joint[:, v].sum())) for (y, v), x in np.ndenumerate(joint) if x > 0)
        assert found[d, q] == pytest.approx(expected, abs=1e-12)
    rubric = MustAsk(size=4).bind(tables).rubric
    assert (rubric.sum(1) == 4).all()
    for d in range(5):
        assert found[d, rubric[d]].min() >= found[d, ~rubric[d]].max() - 1e-9 and found[d, rubric[d]].min() >= 0


def test_rubric__holds_no_child_and_nothing_that_tells_nothing() -> None:
    rubric = MustAsk(size=50).bind(TABLES).rubric
    assert (
        rubric[0].sum() == 7
        and not rubric[0, TABLES.base.finding_index["colour"]]
        and not rubric[:, TABLES.base.finding_index["onset"]].any()
    )


# Safety


def test_red_flags_that_bear__are_linked_with_probability_of_a_fifth() -> None:
    base = wary_base()
    weaker = [link for link in base.links if (link.condition, link.finding) != ("bleed", "stiff_neck")]
    for p, share in ((0.2, 0.5), (0.19, 1.0)):
        links = (*weaker, Link("bleed", "stiff_neck", {"yes": p}))
        tables = compiled(dataclasses.replace(base, links=links), 0.0)
        reward = Safety(asked=1, acted=0, missed=0).bind(tables)
        t = transition(**ended(0, **BLEED, ledger=ledger({"headache": "no"})))
        assert reward(t).tolist() == [share] * 3
