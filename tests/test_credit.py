"""Rewards that look at the whole consultation: Shapley credit, contextual importance, potential; and the ledger they read.

Does not cover: Shapley values themselves (`test_shapley`).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import strict_base
from numpy.typing import NDArray

import medenv  # noqa: F401
from medenv.cases.case import Case
from medenv.envs.consult import ConsultEnv
from medenv.envs.engine import Engine
from medenv.envs.setup import Setup
from medenv.envs.vector import ConsultVectorEnv
from medenv.errors import MedenvError, RewardError, RunError
from medenv.knowledge.base import Condition, Finding, KnowledgeBase, Link
from medenv.rewards import contextual
from medenv.rewards.contextual import ProMed, Shapley
from medenv.rewards.ledger import NONE, Ledger
from medenv.rewards.mix import parse_mix
from medenv.rewards.shapley import shapley_of_game
from medenv.rewards.shapley_credit import ShapleyCredit, value_of
from medenv.runs.one_more import one_more
from medenv.testing import check_environment, difference, recorded_transitions, scripted_actions

SMALL = {"knowledge": "synthetic:9x40", "noise": 0.1}


def played(mix: str, turns: int = 60, num: int = 24, **arguments: Any) -> list[tuple[ConsultVectorEnv, dict[str, Any]]]:
    """The batch and its info after each step of scripted doctors."""
    env = ConsultVectorEnv(num, reward=mix, **(SMALL | arguments))
    seen, _ = env.reset(seed=4)
    keys = np.arange(num, dtype=np.uint64)
    for turn in range(turns):
        actions = scripted_actions(seen["action_mask"], env.num_questions, keys, turn)
        seen, *_, info = env.step(actions)
        yield env, info  # type: ignore[misc]


def brute_credits(env: ConsultVectorEnv, i: int, value: str) -> NDArray[np.float64]:
    """[T] by enumerating every coalition of the answers of consultation `i`."""
    ledger = env.engine.ledger
    assert ledger is not None
    turns = np.flatnonzero(ledger.row[i] != NONE)
    questions = [env.setup.base.findings[q].id for q in ledger.question[i, turns]]
    worth = []
    for coalition in range(1 << len(turns)):
        inside = {q for k, q in enumerate(questions) if coalition >> k & 1}
        for _ in questions:
            inside = {q for q in inside if (p := env.setup.base.finding(q).parent) is None or p in inside or p not in questions}
        rows = [ledger.row[i, t] for t, q in zip(turns, questions, strict=True) if q in inside]
        scores = ledger.log_prior[i].astype(np.float64) + np.maximum(ledger.likelihood[rows].astype(np.float64), np.log(1e-6)).sum(0)
        worth.append(float(value_of(scores, ledger.truth[i], value)))
    out = np.zeros(ledger.row.shape[1])
    out[turns] = shapley_of_game(np.array(worth))
    return out


@pytest.mark.parametrize("value", ["entropy", "log_probability", "probability"])
def test_credits__equal_brute_force_with_families(value: str) -> None:
    seen = families = 0
    for env, info in played(f"shapley_credit(value={value})", max_turns=9, knowledge="builtin"):
        for i in np.flatnonzero(info.get("_credits", np.zeros(24, bool))):
            assert info["credits"][i] == pytest.approx(brute_credits(env, i, value), abs=2e-5)
            ledger = env.engine.ledger
            assert ledger is not None
            families += bool((ledger.parents(ledger.question[i : i + 1]) != NONE).any())
            seen += 1
    assert seen > 40 and (families > 0 or value != "entropy")


@pytest.mark.parametrize("mix", ["shapley_credit", "shapley_credit(value=log_probability)", "shapley_credit(exact=3, pairs=2)"])
def test_credits__sum_to_the_reward(mix: str) -> None:
    total = 0
    for env, info in played(f"accuracy + 0.5*{mix}", max_turns=14):
        assert ("credits" in info) == ("truth" in info)
        if "credits" in info:
            ended = info["_credits"]
            assert (info["credits"][~ended] == 0).all()
            assert info["credits"][ended].sum(1) * 0.5 == pytest.approx(info["components"]["shapley_credit"][ended], abs=1e-5)
            ledger = env.engine.ledger
            assert ledger is not None and (info["credits"][ended][ledger.row[ended] == NONE] == 0).all(), "no answer, no credit"
            total += int(ended.sum())
    assert total > 60


def test_credit_and_information_gain__pay_the_same_sum() -> None:
    mix = "shapley_credit + information_gain"
    gained = np.zeros(24)
    for _, info in played(mix, max_turns=12):
        parts = info["components"]
        gained += parts["information_gain"]
        ended = np.flatnonzero(info.get("_credits", np.zeros(24, bool)))
        assert parts["shapley_credit"][ended] == pytest.approx(gained[ended], abs=1e-4)
        gained[ended] = 0.0


def test_credits__of_one_consultation_are_those_of_the_batch() -> None:
    arguments = {"reward": "accuracy + shapley_credit(value=probability)", "max_turns": 8, **SMALL}
    batch, found = ConsultVectorEnv(6, autoreset_mode="Disabled", **arguments), 0
    singles = [ConsultEnv(**arguments) for _ in range(6)]
    seen, _ = batch.reset(seed=2)
    for i, env in enumerate(singles):
        env.reset(seed=2 + i)
    open_, keys = np.ones(6, bool), np.arange(6, dtype=np.uint64)
    for turn in range(8):
        actions = scripted_actions(seen["action_mask"], batch.num_questions, keys, turn, closing=False)
        seen, _, ended, _, info = batch.step(actions)
        for i, env in enumerate(singles):
            *_, told = env.step(int(actions[i]))
            if ended[i]:
                assert told["credits"].shape == (turn + 1,)
                assert told["credits"] == pytest.approx(info["credits"][i, : turn + 1], abs=1e-12) and told["credits"].any()
                found += 1
        open_ &= ~ended
        if not open_.any():
            break
    assert found == 6


def test_sampled_credits__are_unbiased_and_narrow_with_more_pairs() -> None:
    exact, rough, fine = (f"shapley_credit(exact={e}, pairs={p})" for e, p in ((14, 1), (1, 2), (1, 400)))
    found = {}
    for name, mix in (("exact", exact), ("rough", rough), ("fine", fine)):
        found[name] = np.concatenate([i["credits"][i["_credits"]] for _, i in played(mix, 80, max_turns=12) if "credits" in i])
    error = {k: np.abs(found[k] - found["exact"]).max() for k in ("rough", "fine")}
    assert error["fine"] < 0.15 * error["rough"] and error["fine"] < 0.03
    assert np.abs((found["rough"] - found["exact"]).mean()) < 0.1 * error["rough"]


# Contextual importance


def one_engine(mix: str, num: int = 16, **arguments: Any) -> Engine:
    engine = Setup(reward=mix, **(SMALL | arguments)).engine(num)
    engine.seed(list(range(num)))
    engine.begin()
    return engine


def ask_all(engine: Engine, backwards: bool = False) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Ask every open question, first to last or last to first; sums of the components, and of entropy's fall."""
    sums = {name: np.zeros(engine.num) for name in engine.rewards.names}
    start = engine.entropy.copy()
    while (mask := engine.buffer[:, engine.mask_at : engine.mask_at + engine.Q] == 1).any():
        question = engine.Q - 1 - mask[:, ::-1].argmax(1) if backwards else mask.argmax(1)
        step = engine.step(np.where(mask.any(1), question, engine.A))  # nothing left to ask: an invalid action
        sums = {name: sums[name] + step.components[name] for name in sums}
    return sums, start - engine.entropy


def reference(engine: Engine, players: int = 12) -> tuple[Ledger, NDArray[np.int64]]:
    ledger = engine.ledger
    assert ledger is not None
    return ledger, Shapley(players=players, tables=engine.tables).reference_of(ledger)(np.arange(engine.num)).astype(np.int64)


def test_contextual__pays_the_whole_set_once_in_any_order() -> None:
    mix, turns = "shapley + promed_sig", {"max_turns": 60}
    engine = one_engine(mix, **turns)
    ledger, chosen = reference(engine)
    rows = np.take_along_axis(ledger.answers(np.arange(16)), np.maximum(chosen, 0), 1)
    told = np.where(chosen[:, :, None] == NONE, 0.0, ledger.floored[rows]).sum(1)
    prior = ledger.log_prior.astype(np.float64)
    value = value_of(prior + told, ledger.truth, "log_probability") - value_of(prior, ledger.truth, "log_probability")
    for backwards in (False, True):
        sums, _ = ask_all(one_engine(mix, **turns), backwards)
        assert sums["shapley"] == pytest.approx(value, abs=1e-4) and np.abs(value).min() > 0.01
        assert sums["promed_sig"] == pytest.approx(np.ones(16), abs=1e-9)


def test_reference_set__is_what_is_there_and_then_the_strongest_denials() -> None:
    engine = one_engine("shapley", num=64, knowledge="builtin", noise=0.02)
    ledger, chosen = reference(engine)
    rows, findings = ledger.answers(np.arange(64)), engine.tables.base.findings
    assert not (chosen == ledger.opening[:, None]).any(), "what was told is no player"
    assert ((chosen != NONE).sum(1) == 12).all()
    children = 0
    for i in range(64):
        there = {q for q in range(engine.Q) if ledger.present[rows[i, q]]}
        players = set(chosen[i].tolist())
        for q in players:
            parent = findings[q].parent
            if parent is not None:
                p = engine.tables.base.finding_index[parent]
                answer = findings[p].values[int(engine.tables.row_value[rows[i, p]])]
                assert answer in findings[q].activated_by, "a child of an inactive parent can't be asked"
                children += 1
            assert engine.tables.allowed[ledger.cell[i], q] == 1
        case = engine.source.case(int(engine.handle[i])).values
        open_there = {q for q in there if findings[q].id in case} - {int(ledger.opening[i])}
        assert len(players & open_there) == min(12, len(open_there)), "what is there comes before any denial"
    assert children > 0


def test_contextual__ignores_what_is_known_already() -> None:
    """The hole that it is known for: late in a settled consultation it pays for answers that tell nothing."""
    engine = one_engine("shapley + information_gain(value=log_probability)", num=400, max_turns=60)
    paid = gained = np.zeros(0)
    while (mask := engine.buffer[:, engine.mask_at : engine.mask_at + engine.Q] == 1).any():
        settled = engine.belief.max(1) > 0.95
        step = engine.step(np.where(mask.any(1), mask.argmax(1), engine.A))
        some = settled & (step.components["shapley"] > 0)
        paid = np.concatenate([paid, step.components["shapley"][some]])
        gained = np.concatenate([gained, step.components["information_gain"][some]])
    assert paid.size > 100 and paid.mean() > 3 * gained.mean()


def test_what_a_case_needs__is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, counted = one_engine("shapley", num=8, max_turns=60), []
    real = contextual.shapley_values
    monkeypatch.setattr(contextual, "shapley_values", lambda *a: counted.append(len(a[1])) or real(*a))
    ask_all(engine)
    assert 0 < sum(counted) <= 8
    engine.begin()
    ask_all(engine)
    assert 8 < sum(counted) <= 16, "another case is computed anew"


@pytest.mark.parametrize("name", ["shapley", "promed_sig"])
def test_contextual__does_not_see_the_doctor(name: str) -> None:
    """Repeats, refusals and diagnoses pay nothing."""
    engine = one_engine(name, num=4)
    mask = engine.buffer[:, engine.mask_at : engine.mask_at + engine.Q] == 1
    first = engine.step(mask.argmax(1))
    again = engine.step(mask.argmax(1))
    assert again.transition.repeated.all() and not again.components[name].any()
    over = engine.step(np.full(4, engine.Q))
    assert not over.components[name].any() and np.isfinite(first.components[name]).all()


# Potential


def test_potential__telescopes_whatever_is_done() -> None:
    for gamma in (1.0, 0.9):
        for name, start in (("entropy", lambda e: e.entropy.copy()), ("confidence", lambda e: -e.belief.max(1))):
            engine = one_engine(f"potential(gamma={gamma}, value={name})", num=40, max_turns=7)
            opening, total = start(engine), np.zeros(40)
            for turn in range(7):
                mask = engine.buffer[:, engine.mask_at : engine.spare]
                total += gamma**turn * engine.step(scripted_actions(mask, engine.Q, engine.stream, turn)).reward
            assert engine.done.all() and total == pytest.approx(opening, abs=1e-5), "-phi(opening), whatever was done"


def test_potential__is_refused_where_it_means_nothing() -> None:
    for mix in ("potential(gamma=0)", "potential(gamma=1.5)", "potential(value=hope)"):
        with pytest.raises(RewardError, match=r"gamma of potential|value of potential"):
            parse_mix(mix)
    parse_mix("accuracy + potential(gamma=.99)").check_gamma(0.99)
    with pytest.raises(RewardError, match=r"potential has gamma=0.99 and the trainer 1: write potential\(gamma=1\)"):
        parse_mix("accuracy + potential(gamma=.99)").check_gamma(1.0)


# Environments with a ledger

LEDGER = "accuracy + shapley_credit + 0.1*shapley + 0.1*promed_sig + potential"


def test_environment_with_these_rewards__conforms() -> None:
    check_environment("MedConsult-v0", reward=LEDGER, **SMALL)


def test_snapshot__holds_the_ledger() -> None:
    env = ConsultVectorEnv(5, reward=LEDGER, **SMALL)
    seen, _ = env.reset(seed=0)
    keys, runs = np.arange(5, dtype=np.uint64), []
    for turn in range(6):
        seen, *_ = env.step(scripted_actions(seen["action_mask"], env.num_questions, keys, turn, closing=False))
    state = env.snapshot()
    for _ in range(2):
        out: list[Any] = [env.restore(state)]
        for turn in range(6, 26):
            out.append(
                env.step(scripted_actions(out[-1][0]["action_mask"] if turn > 6 else out[0]["action_mask"], env.num_questions, keys, turn))
            )
        runs.append(out)
    assert not difference(*runs) and any("credits" in step[-1] for step in runs[0][1:])
    with pytest.raises(MedenvError, match="taken under another reward mix"):
        ConsultVectorEnv(5, **SMALL).restore(state)


def test_imagined_consultations__go_on_from_what_was_disclosed() -> None:
    env = ConsultEnv(reward=LEDGER, **SMALL)
    env.reset(seed=3)
    for _ in range(4):
        env.step(int(np.flatnonzero(env.action_masks())[0]))
    dreams = env.imagine(50, 0)
    ledger, own = dreams.engine.ledger, env.engine.ledger
    assert ledger is not None and own is not None
    assert (ledger.row == own.row[0]).all() and (ledger.truth == dreams.engine.truth).all() and np.unique(ledger.truth).size > 1
    _, reward, *_, info = dreams.step(np.full(50, env.num_questions))
    assert np.isfinite(reward).all() and (info["credits"] != 0).any(1).all()


def test_imagined_from_a_patient_with_several_values__can_be_scored(tiny: KnowledgeBase) -> None:
    """A loaded patient's set of values is a row of its own, which the patients that are imagined do not have."""
    told = {"fever": ("yes",), "cough": ("yes",), "cough_type": ("wet",), "spots": ("face", "back"), "smoker": ("no",)}
    env = ConsultEnv(knowledge=tiny, cases=[Case(30.0, "male", "primary", "rare", told, "fever", "train")], noise=0.0, reward=LEDGER)
    env.reset(seed=0)
    env.step(tiny.finding_index["spots"])
    ledger = env.engine.ledger
    assert ledger is not None and ledger.row[0, 0] > env.tables.unknown_row
    dreams = env.imagine(30, 0)
    _, reward, *_ = dreams.step(np.full(30, tiny.finding_index["cough"]))
    assert np.isfinite(reward).all()
    _, reward, *_, info = dreams.step(np.full(30, env.num_questions + 2))
    assert np.isfinite(reward).all() and (info["credits"][:, 0] != 0).all()


def test_rewards_of_a_base__say_so_without_one() -> None:
    t = recorded_transitions(Setup(**SMALL).tables, 3)[-1]
    for reward in (Shapley(), ProMed()):
        with pytest.raises(RewardError, match="needs a knowledge base"):
            reward(t)
    t.ledger = None
    for mix in ("shapley_credit", "shapley", "promed_sig"):
        with pytest.raises(RewardError, match="needs the ledger"):
            parse_mix(mix).bound(Setup(**SMALL).tables).terms[0][2](t)


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ("shapley_credit(value=hope)", "unknown value of shapley_credit 'hope'"),
        ("shapley_credit(exact=25)", "exact of shapley_credit is 25.0: give a whole number from 1 to 24"),
        ("shapley_credit(pairs=0.5)", "pairs of shapley_credit"),
        ("shapley(players=1)", "players of shapley is 1.0: give a whole number from 2 to 24"),
        ("promed_sig(temperature=0)", "temperature of promed_sig"),
        ("shapley(tables=3)", "unknown parameter of shapley 'tables'"),
    ],
)
def test_bad_parameters__are_clear_errors(mix: str, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        parse_mix(mix)


def test_credits__need_no_more_than_the_rewards_name() -> None:
    assert isinstance(parse_mix("shapley_credit").terms[0][2], ShapleyCredit)
    env = gym.make("MedConsult-v0", reward="accuracy", **SMALL).unwrapped
    assert isinstance(env, ConsultEnv) and env.engine.ledger is None


def test_one_more__an_answer_that_says_nothing_new_is_credited_half_of_what_it_repeats() -> None:
    (first, second) = one_more({"knowledge": strict_base(), "noise": 0.0}, (1, 2), 50)
    half = float(np.log(2)) / 2  # a tells the two conditions apart, and so does b, asked after it
    assert (first["more"], first["consultations"], first["gain"], first["gain_over_cost"], first["credit_over_cost"]) == (1, 50, 0, 0, 1)
    assert (first["credit"], first["lost"], first["credit_error"]) == pytest.approx((half, half, 0.0), abs=1e-3)
    assert (second["gain"], second["credit"]) == pytest.approx((0.0, 0.0), abs=1e-3), "c tells nothing at all"
    with pytest.raises(RunError, match="no consultation has room for 9 further questions"):
        one_more({"knowledge": strict_base(), "noise": 0.0}, (9,), 5)


def test_one_more__diagnoses_after_the_last_question_whatever_it_said() -> None:
    """Gain and credit are of one answer: of a single answer the credit is the gain, also where it raised a doubt."""
    links = [("one", "hello", 1.0), ("two", "hello", 1.0), ("one", "a", 0.3), ("two", "a", 0.6), ("one", "b", 0.3), ("two", "b", 0.58)]
    base = KnowledgeBase(
        name="doubt",
        version=1,
        conditions=(Condition("one", "One", {"primary": 0.6}, age=(1.0,)), Condition("two", "Two", {"primary": 0.4}, age=(1.0,))),
        findings=(Finding("hello", "hello", complaint=1.0), Finding("a", "a"), Finding("b", "b")),
        links=tuple(Link(c, f, {"yes": p}) for c, f, p in links),
    )
    (row,) = one_more({"knowledge": base, "noise": 0.0}, (1,), 300, confidence=0.59)  # .6 is enough; a yes to a leaves .57
    assert row["consultations"] == 300 and row["gain"] > 0.01
    assert (row["credit"], row["lost"]) == pytest.approx((row["gain"], 0.0), abs=2e-4)
