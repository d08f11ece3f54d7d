"""The promises that hold across the parts: pinned episodes, seeds, splits, equal histories, imagined patients, pay.

The belief's calibration is in `test_belief`, the engine's rules in `test_engine`, what every environment keeps in `test_environments`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random

import gymnasium as gym
import numpy as np
import pytest
from conftest import strict_base, tiny_base

import medenv  # noqa: F401  registers the environments
from medenv.agents.doctor import make_doctor
from medenv.cases.case import SPLITS, Case
from medenv.envs.copies import snapshot
from medenv.envs.vector import ConsultVectorEnv
from medenv.errors import MedenvError
from medenv.knowledge.named import knowledge_base
from medenv.testing import check_equal_histories, difference, scripted_actions

ID = "MedConsult-v0"
GOLDEN = "d417394caab9f3c960953489c8a327a6"
KEYS = np.arange(4, dtype=np.uint64) + np.uint64(1)


def make(**arguments):  # type: ignore[no-untyped-def]
    return gym.make(ID, **{"knowledge": "synthetic:12x30", "max_turns": 8} | arguments).unwrapped


def test_golden_episode__is_bit_equal_on_any_machine() -> None:
    """Actions, evidence, masks, ends, truths and cases of 400 steps of 4 consultations. Integers only: a change here changes every
    published result, so `GOLDEN` may only move with a new version of the environment."""
    batch = ConsultVectorEnv(4, "NextStep", knowledge="synthetic:12x30", noise=0.1, max_turns=9, split="test")
    seen, _ = batch.reset(seed=2024)
    digest = hashlib.sha256()
    for turn in range(400):
        actions = scripted_actions(seen["action_mask"], batch.num_questions, KEYS, turn)
        seen, _, ended, _, info = batch.step(actions)
        for part in (
            actions,
            seen["evidence"],
            seen["asked"],
            seen["action_mask"],
            seen["complaint"],
            batch.engine.truth,
            batch.engine.handle,
        ):
            digest.update(np.ascontiguousarray(part, dtype="<i8" if part.dtype != np.uint64 else "<u8").tobytes())
        digest.update(
            seen["demographics"].astype("<i8").tobytes() + ended.astype("<i8").tobytes() + info["invalid"].astype("<i8").tobytes()
        )
    assert digest.hexdigest()[:32] == GOLDEN


def test_no_global_random_state__is_read_or_moved() -> None:
    def play() -> list:
        batch = ConsultVectorEnv(3, "SameStep", knowledge="synthetic:5x24", noise=0.2)
        seen, out = batch.reset(seed=1)[0], []
        doctors = [make_doctor(name, batch.setup.tables, 3) for name in ("random", "greedy", "checklist", "prevalence")]
        for turn in range(12):
            seen, *rest = batch.step(doctors[turn % 4].act(seen)[0])
            out.append((seen, rest[0], batch.imagine(2, turn).action_masks()))
        return out

    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()
    first = play()
    assert random.getstate() == states[0] and not difference(np.random.get_state(), states[1])
    random.seed(2)
    np.random.seed(2)
    assert not difference(first, play())


def test_splits__share_no_case() -> None:
    met = {split: set() for split in SPLITS}
    for split in SPLITS:
        batch = ConsultVectorEnv(50, knowledge="synthetic:5x24", split=split)
        for seed in range(20):
            batch.reset(seed=1000 * seed)
            met[split] |= set(batch.case_ids())
    assert all(len(m) == 1000 for m in met.values())
    assert not met["train"] & met["test"] and not met["train"] & met["validation"] and not met["validation"] & met["test"]


def test_sampled_case__loaded_again_gives_the_same_episode() -> None:
    """Bit for bit, floats and words included. Sampled without noise: a loaded case's answers are misreported by its own hash."""
    env = make(noise=0.0, split="all", reward="accuracy + information_gain - question_cost - 0.1*invalid_action", observe_belief=True)
    met = []
    for seed in range(12):
        env.reset(seed=seed)
        met.append((env.case_id, env.case))
    again = make(noise=0.0, split="all", reward=env.setup.rewards, observe_belief=True, cases=[c for _, c in met])
    for token, case in met:
        runs = []
        for one, name in ((env, token), (again, case.id)):
            out = [one.reset(seed=0, options={"case": name})]
            for turn in range(8):
                action = int(scripted_actions(out[-1][0]["action_mask"][None], one.num_questions, KEYS[:1], turn)[0])
                out.append(one.step(action))
                out[-1][-1].pop("case_id", None)
                if out[-1][2]:
                    break
            runs.append(out)
        assert not difference(runs[0], runs[1])


@pytest.mark.parametrize("knowledge", [tiny_base(), knowledge_base("synthetic:12x50")])
def test_equal_histories__look_equal(knowledge) -> None:  # type: ignore[no-untyped-def]
    check_equal_histories(ID, patients=12, knowledge=knowledge, max_turns=9, reward="accuracy + information_gain(value=log_probability)")
    check_equal_histories(ID, patients=6, knowledge=knowledge, max_turns=9, observe_belief=True)


def test_imagine__keeps_what_was_observed_and_redraws_the_rest() -> None:
    env = make(noise=0.05, observe_belief=True)
    seen, _ = env.reset(seed=6)
    for turn in range(3):
        seen, *_ = env.step(int(scripted_actions(seen["action_mask"][None], env.num_questions, KEYS[:1], turn, closing=False)[0]))
    before = env.snapshot()
    dreams = env.imagine(6000, 1)
    shown = dreams.engine.views() | {"belief": dreams.engine.belief}
    for name, part in seen.items():
        assert (np.asarray(shown[name]) == part).all(), name
    expected = env.engine.belief[0].astype(float) * 6000
    met = np.bincount(dreams.engine.truth, minlength=12)
    large = expected >= 5
    assert _chi_square(met[large], expected[large]) < 3.0 and met[~large].sum() < 40
    q = int(np.flatnonzero(seen["action_mask"])[0])
    rows = env.tables.row_of[env.engine.cell[0], q] + np.arange(env.tables.num_values[q])
    step = dreams.engine.step(np.full(6000, q))
    answered = np.bincount(step.row - rows[0], minlength=rows.size)
    assert _chi_square(answered, env.tables.probability[rows] @ env.engine.belief[0].astype(float) * 6000) < 3.5
    assert not difference(before, env.snapshot()), "imagining changes nothing"


def _chi_square(met: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square in standard deviations above its mean."""
    free = met.size - 1
    return float((((met - expected) ** 2 / expected).sum() - free) / np.sqrt(2 * free))


def test_imagine__hangs_on_the_seed_and_not_on_how_many() -> None:
    env = make()
    env.reset(seed=2)
    one, two, three = env.imagine(5, 7), env.imagine(9, 7), env.imagine(5, 8)
    actions = np.full(9, int(np.flatnonzero(env.action_masks())[0]))
    for field in ("truth", "handle"):
        a, b, c = (getattr(d.engine, field) for d in (one, two, three))
        assert (a == b[:5]).all() and (a != c).any()
    assert not difference(one.step(actions[:5])[0]["evidence"], two.step(actions)[0]["evidence"][:5])
    batch = ConsultVectorEnv(3, knowledge="synthetic:12x30", max_turns=8)
    batch.reset(seed=0)
    assert not difference(snapshot(batch.imagine(5, 7, index=2).engine), snapshot(env.imagine(5, 7).engine)), (
        "environment 2 of seed 0 is seed 2"
    )


def test_imagine__needs_a_condition_that_fits() -> None:
    case = Case(30, "female", "primary", "one", {"hello": ("yes",), "a": ("yes",), "b": ("yes",)}, "hello")
    env = make(knowledge=strict_base(), cases=[case], split="all", noise=0.0)
    env.reset(seed=0)
    env.step(1)
    env.imagine(2, 0)
    assert env.step(2)[4]["no_condition_fits"]
    with pytest.raises(MedenvError, match="no condition fits"):
        env.imagine(2, 0)


def test_search__over_imagined_patients_is_not_clairvoyant() -> None:
    """The hidden truth is met among the imagined as often as the belief says, not always."""
    hits, expected = 0, 0.0
    env = make(split="all")
    for seed in range(300):
        env.reset(seed=seed)
        hits += int((env.imagine(4, seed).engine.truth == env.engine.truth[0]).sum())
        expected += 4 * float(env.engine.belief[0, env.engine.truth[0]])
    assert abs(hits - expected) < 4 * np.sqrt(expected)


def test_snapshot_of_a_batch__is_exact() -> None:
    batch = ConsultVectorEnv(4, "NextStep", knowledge="synthetic:5x24", max_turns=5)
    other = ConsultVectorEnv(4, "NextStep", knowledge="synthetic:5x24", max_turns=5)
    seen = batch.reset(seed=3)[0]
    for turn in range(7):
        seen = batch.step(scripted_actions(seen["action_mask"], batch.num_questions, KEYS, turn))[0]
    state, runs = batch.snapshot(), []
    for one in (batch, batch, other):
        out = [one.restore(state), one.replies()]
        for turn in range(20):
            out.append(one.step(scripted_actions(out[0]["action_mask"], one.num_questions, KEYS, turn)))
        out.append(one.reset())
        runs.append(out)
    assert not difference(runs[0], runs[1]) and not difference(runs[0], runs[2])


def test_snapshot_of_another_environment__is_refused() -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(MedenvError, match="this snapshot is of"):
        make(knowledge="synthetic:5x24").restore(env.snapshot())


def test_loaded_splits__keep_duplicates_together() -> None:
    env = make(noise=0.0)
    cases = []
    for seed in range(60):
        env.reset(seed=seed)
        cases += [dataclasses.replace(env.case, split="")] * 2
    met = {s: set(make(cases=cases, split=s).setup.source.members.tolist()) for s in SPLITS}
    ids = {s: {cases[int(i)].id for i in m} for s, m in met.items()}
    assert sum(map(len, met.values())) == 120 and sum(map(len, ids.values())) == 60
