"""Doctors: valid and the same in any batch, against brute force; the oracle; doctors by name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import tiny_base

from medenv.agents.baselines import Checklist, Prevalence
from medenv.agents.doctor import BUILT_IN, agent_names, make_doctor, one
from medenv.agents.greedy import Greedy
from medenv.agents.oracle import oracle_beliefs
from medenv.cases.case import Case
from medenv.cases.loaded import LoadedCases
from medenv.cases.sampled import SampledCases
from medenv.envs.consult import ConsultEnv
from medenv.envs.vector import ConsultVectorEnv
from medenv.errors import MedenvError, UnknownName
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.testing import check_doctor

BASES = ("synthetic:2x8", "synthetic:12x50", "builtin")


def consult(tables: Compiled, num: int, turns: int = 30, **arguments) -> ConsultVectorEnv:  # type: ignore[no-untyped-def]
    return ConsultVectorEnv(
        num, "Disabled", knowledge=tables.base, noise=tables.noise, difficulty=tables.difficulty, max_turns=turns, split="all", **arguments
    )


def play(doctor, env: ConsultVectorEnv, seed: int = 0) -> tuple[list[list[int]], np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
    """Each consultation's actions, its reward, and whether it ended with a diagnosis."""
    seen, _ = env.reset(seed=seed)
    done, paid = np.zeros(env.num_envs, bool), np.zeros(env.num_envs)
    actions: list[list[int]] = [[] for _ in done]
    while not done.all():
        action = doctor.act(seen)[0]
        seen, reward, ended, _, _ = env.step(action)
        for i in np.flatnonzero(~done):
            actions[i].append(int(action[i]))
            paid[i] += reward[i]
        done |= ended
        if ended.any():
            seen, _ = env.reset(options={"reset_mask": ended})
    Q = env.num_questions
    return actions, paid, np.array([Q <= a[-1] < Q + env.num_conditions for a in actions])


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_every_doctor__conforms(name: str, base: str, noise: float) -> None:
    tables = compiled(knowledge_base(base), noise)
    check_doctor(make_doctor(name, tables, seed=4), tables, num=12)


@pytest.mark.parametrize("name", BUILT_IN)
def test_decision__is_the_same_for_the_scalar_environment(name: str) -> None:
    tables = compiled(knowledge_base("synthetic:12x30"), 0.05)
    doctor = make_doctor(name, tables)
    actions = play(doctor, consult(tables, 6, 10), seed=40)[0]
    for i in range(6):
        env = ConsultEnv(knowledge=tables.base, noise=0.05, max_turns=10, split="all")
        seen, _ = env.reset(seed=40 + i)
        for action in actions[i]:
            assert int(doctor.act(one(seen))[0][0]) == action
            seen, _, done, *_ = env.step(action)
        assert done


def test_random__follows_its_seed() -> None:
    tables = compiled(knowledge_base("synthetic:12x30"))
    seen, _ = consult(tables, 200).reset(seed=0)
    first, again, other = (make_doctor("random", tables, seed=s).act(seen)[0] for s in (1, 1, 2))
    assert (first == again).all() and (first != other).mean() > 0.5
    assert np.unique(first).size > 15


def test_prevalence__diagnoses_the_commonest_at_once() -> None:
    tables = compiled(tiny_base())
    actions, _, _ = play(Prevalence(tables), consult(tables, 20))
    assert actions == [[tables.num_questions + 0]] * 20, "flu has half of the consultations"


def test_checklist__asks_in_a_fixed_order_whatever_the_answers() -> None:
    tables = compiled(knowledge_base("synthetic:12x30"), 0.05)
    doctor = Checklist(tables, length=7)
    assert doctor.order.size == 7 and all(tables.base.findings[q].parent is None for q in doctor.order)
    env = consult(tables, 40)
    seen, _ = env.reset(seed=0)
    open_ = seen["action_mask"].copy()
    for i, actions in enumerate(play(doctor, env)[0]):
        assert actions[:-1] == [q for q in doctor.order.tolist() if open_[i, q]]
        assert tables.num_questions <= actions[-1] < tables.num_questions + 12


def test_checklist__order_is_the_gain_over_the_population() -> None:
    tables = compiled(tiny_base(), 0.05)
    weight, worth = tables.cell_weight, []
    for q, finding in enumerate(tables.base.findings):
        gain = 0.0
        for cell in range(4):
            rows = tables.probability[tables.row_of[cell, q] : tables.row_of[cell, q] + tables.num_values[q]]
            joint = rows * weight[cell]
            independent = joint.sum(1, keepdims=True) * joint.sum(0) / joint.sum()
            gain += float((joint * np.log(np.maximum(joint, 1e-300) / np.maximum(independent, 1e-300))).sum())
        worth.append(gain / finding.cost if finding.parent is None else -1.0)
    assert Checklist(tables, length=5).order.tolist() == np.argsort(-np.array(worth), kind="stable")[:5].tolist()


def test_greedy__first_question_is_the_argmax_of_brute_force() -> None:
    """Mutual information of condition and answer from the joint table, per cost, over all open questions."""
    tables = compiled(knowledge_base("synthetic:12x50"), 0.05)
    env = consult(tables, 60)
    seen, _ = env.reset(seed=0)
    belief = env.engine.belief.astype(np.float64)
    action, given = Greedy(tables, confidence=1.0, min_gain=0.0).act(seen)
    assert given == pytest.approx(belief, abs=1e-5)
    for i in range(60):
        worth = np.full(tables.num_questions, -1.0)
        for q in np.flatnonzero(seen["action_mask"][i, : tables.num_questions]):
            first = tables.row_of[env.engine.cell[i], q]
            joint = tables.probability[first : first + tables.num_values[q]] * given[i]
            independent = joint.sum(1, keepdims=True) * joint.sum(0)
            worth[q] = (joint * np.log(np.maximum(joint, 1e-300) / np.maximum(independent, 1e-300))).sum() / max(float(tables.cost[q]), 0.1)
        assert worth[action[i]] == pytest.approx(worth.max(), abs=2e-6)


def test_greedy__stops_when_it_is_sure_or_nothing_is_worth_asking() -> None:
    tables = compiled(knowledge_base("synthetic:12x30"), 0.05)
    Q = tables.num_questions
    assert all(a[0] >= Q for a in play(Greedy(tables, confidence=1e-6), consult(tables, 20))[0])
    assert all(a[0] >= Q for a in play(Greedy(tables, min_gain=1e6), consult(tables, 20))[0])
    patient = play(Greedy(tables, confidence=1.0, min_gain=0.0), consult(tables, 20, 6))[0]
    assert all(len(a) == 6 and a[-1] >= Q for a in patient), "it asks until only diagnosing is open"


def test_ranking__oracle_greedy_checklist_prevalence() -> None:
    tables = compiled(knowledge_base("synthetic:12x30"), 0.02)
    right = [
        play(make_doctor(n, tables), consult(tables, 1500, reward="accuracy"))[1].mean() for n in ("greedy", "checklist", "prevalence")
    ]
    source = SampledCases(tables, "all")
    handles = source.next(np.full(1500, 5, np.uint64), np.arange(1500, dtype=np.uint64))
    ceiling = (oracle_beliefs(source, handles).argmax(1) == source.open(handles).truth).mean()
    assert ceiling > right[0] > right[1] - 0.02 and right[1] > right[2] + 0.2


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_oracle__equals_brute_force(noise: float) -> None:
    """Bayes' rule over every answer of the case, in plain loops over the tables' probabilities."""
    tables = compiled(tiny_base(), noise)
    source = SampledCases(tables, "all")
    handles = source.next(np.full(150, 1, np.uint64), np.arange(150, dtype=np.uint64))
    beliefs, opened = oracle_beliefs(source, handles), source.open(handles)
    for i in range(150):
        cell, truth, opening = int(opened.cell[i]), int(opened.truth[i]), int(opened.opening[i])
        c = np.array([tables.base.complaints[d.id].get(tables.base.findings[opening].id, 0.0) for d in tables.base.conditions])
        p, answers = tables.cell_weight[cell] * c, {opening: 1}
        for q, finding in enumerate(tables.base.findings):
            if q == opening or not tables.allowed[cell, q]:
                continue
            if finding.parent and answers[tables.base.finding_index[finding.parent]] != 1:
                continue
            row = source.row(int(handles[i]), truth, cell, q)
            answers[q] = int(tables.row_value[row])
            p = p * tables.probability[row]
        assert beliefs[i] == pytest.approx(p / p.sum(), abs=1e-5)


def test_oracle__reads_loaded_sets_and_unknowns() -> None:
    tables = compiled(tiny_base())
    case = Case(30, "female", "primary", "flu", {"fever": ("yes",), "spots": ("face", "back")}, "fever")
    belief = oracle_beliefs(LoadedCases(tables, [case], "all"), np.zeros(1, np.uint64))[0]
    cell, spots = tables.cell(30, "female", "primary"), tables.base.finding_index["spots"]
    rows = tables.probability[tables.row_of[cell, spots] + np.array([1, 2])]
    p = tables.cell_weight[cell] * np.array([0.7, 0.04, 0.5]) * np.exp(np.log(rows).mean(0))
    assert belief == pytest.approx(p / p.sum(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gredy", "did you mean 'greedy'"),
        ("", "unknown agent ''"),
        ("random:3", "unknown agent"),
        ("oracle", "evaluator"),
        ("ppo", "unknown agent"),
    ],
)
def test_unknown_doctor__proposes_the_closest(name: str, words: str) -> None:
    with pytest.raises(UnknownName, match=words):
        make_doctor(name, compiled(tiny_base()))


def test_learnt_doctor_without_a_run__is_refused_in_words(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("torch", reason="learnt doctors need torch")
    with pytest.raises(MedenvError, match=str(tmp_path)):
        make_doctor(f"ppo:{tmp_path}", compiled(tiny_base()))


def test_names__are_different_and_known() -> None:
    names = agent_names()
    assert set(BUILT_IN) < set(names) and "oracle" in names and len(set(names)) == len(names)
    tables = compiled(tiny_base())
    for a, b in itertools.pairwise([make_doctor(n, tables).name for n in BUILT_IN]):
        assert a != b
