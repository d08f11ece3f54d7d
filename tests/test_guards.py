"""Every guard fails when the thing it guards is broken: one mutation at a time, and the check that must notice it."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import tiny_base

import medenv  # noqa: F401  registers the environments
from medenv.agents.baselines import Random
from medenv.cases.loaded import LoadedCases
from medenv.cases.sampled import SampledCases
from medenv.cases.source import Opened
from medenv.envs import copies, setup
from medenv.envs import engine as engines
from medenv.envs.consult import ConsultEnv
from medenv.envs.engine import Engine
from medenv.envs.vector import ConsultVectorEnv
from medenv.hashing import draw_array
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.rewards.base import Transition
from medenv.rewards.information_gain import InformationGain
from medenv.rewards.mix import RewardMix
from medenv.testing import (
    check_batch,
    check_calibration,
    check_cases,
    check_doctor,
    check_environment,
    check_episode,
    check_equal_histories,
    check_gymnasium,
    check_opening,
    check_pickling,
    check_reward,
    check_seeds,
    check_snapshot,
    check_split_batch,
    check_tables,
    difference,
)

ID = "MedConsult-v0"
SMALL: dict[str, Any] = {"knowledge": "synthetic:5x24", "max_turns": 6}
Patch = pytest.MonkeyPatch


def fails(words: str):  # type: ignore[no-untyped-def]
    return pytest.raises(AssertionError, match=words)


def tables(base: str = "synthetic:12x30", noise: float = 0.05) -> Compiled:
    return compiled(knowledge_base(base), noise)


# The belief


def test_p_in_place_of_p_prime__is_noticed() -> None:
    """A belief that takes a finding's whole probability for what is left of it after the opening was chosen."""
    good = compiled(tiny_base())
    p = good.probability.copy()
    for d, condition in enumerate(good.base.conditions):
        for name, c in good.base.complaints[condition.id].items():
            for row in np.flatnonzero((good.row_finding[:-1] == good.base.finding_index[name]) & (good.row_value[:-1] == 1)):
                p[row, d] = c + (1 - c) * p[row, d]
                p[row - 1, d] = 1 - p[row, d]
    broken = dataclasses.replace(good, log_likelihood=np.log(np.maximum(np.vstack([p, np.ones(3)]), 1e-6)).astype(np.float32))
    check_calibration(SampledCases(good, "all"))
    with fails("accuracy|ECE"):
        check_calibration(SampledCases(broken, "all"))


def test_noise_that_the_belief_does_not_know__is_noticed() -> None:
    class Noisy(SampledCases):
        def rows(self, handle, truth, cell, question):  # type: ignore[no-untyped-def]
            flip = draw_array(handle ^ np.uint64(1), question) >> np.uint64(60) == 0
            return np.where(flip, self.tables.row_of[cell, question], super().rows(handle, truth, cell, question))

    with fails("accuracy|ECE"):
        check_calibration(Noisy(tables(), "all"))


def test_belief_that_is_too_sure__is_noticed() -> None:
    good = tables()
    with fails("accuracy|ECE"):
        check_calibration(SampledCases(dataclasses.replace(good, log_likelihood=good.log_likelihood * np.float32(1.2)), "all"))


class LeakyOpening(SampledCases):
    """Among the findings that open, the choice follows the truth."""

    def open(self, handle):  # type: ignore[no-untyped-def]
        opened = super().open(handle)
        both = np.isin(opened.opening, (0, 1))
        return Opened(opened.cell, opened.truth, np.where(both, opened.truth % 2, opened.opening), opened.age)


def test_truth_that_leaks_through_the_opening__is_noticed() -> None:
    check_opening(SampledCases(compiled(tiny_base()), "all"))
    with fails("no classifier on the opening"):
        check_opening(LeakyOpening(compiled(tiny_base()), "all"))


def test_opening_that_is_slightly_off__is_noticed() -> None:
    class Slightly(SampledCases):
        def open(self, handle):  # type: ignore[no-untyped-def]
            opened = super().open(handle)
            some = (draw_array(handle, 99) >> np.uint64(60) < 6) & (opened.truth == 2)
            return Opened(opened.cell, opened.truth, np.where(some, 0, opened.opening), opened.age)

    with fails("no classifier"):
        check_opening(Slightly(compiled(tiny_base()), "all"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {"probability": t.probability * 1.01}, "in \\[0, 1\\]|sum to 1"),
        (lambda t: {"probability": t.probability - 0.01}, "opening is commoner|sum to 1"),
        (lambda t: {"row_of": np.roll(t.row_of, 1, axis=1)}, "rows of this finding"),
        (lambda t: {"cell_weight": t.cell_weight * np.array([0.0, *[1.0] * 11])}, "every condition to occur"),
        (lambda t: {"cell_weight": t.cell_weight * 1.5}, "sum to 1"),
        (lambda t: {"joint_threshold": t.joint_threshold // np.uint64(2)}, "openings to sum"),
    ],
)
def test_broken_tables__are_noticed(change, words: str) -> None:  # type: ignore[no-untyped-def]
    with fails(words):
        check_tables(dataclasses.replace(tables(), **change(tables())))


# Cases


class Counting(SampledCases):
    """Answers hang on how often somebody asked."""

    asked = itertools.count()

    def rows(self, handle, truth, cell, question):  # type: ignore[no-untyped-def]
        return super().rows(handle + np.uint64(next(self.asked) % 2), truth, cell, question)


class Neighbourly(SampledCases):
    """Answers hang on the place in the batch."""

    def rows(self, handle, truth, cell, question):  # type: ignore[no-untyped-def]
        return super().rows(handle + np.arange(handle.size, dtype=np.uint64) % np.uint64(3), truth, cell, question)


class Forgetful(SampledCases):
    """Rows of another finding."""

    def rows(self, handle, truth, cell, question):  # type: ignore[no-untyped-def]
        return super().rows(handle, truth, cell, (question + 1) % self.tables.num_questions)

    def row(self, key, truth, cell, question):  # type: ignore[no-untyped-def]
        return super().row(key, truth, cell, (question + 1) % self.tables.num_questions)


class Overlapping(SampledCases):
    """Keys that belong to no split."""

    def next(self, stream, episode):  # type: ignore[no-untyped-def]
        return draw_array(stream, episode) & ~np.uint64(3)


class Global(SampledCases):
    """Cases from the global random state."""

    def next(self, stream, episode):  # type: ignore[no-untyped-def]
        return np.random.randint(0, 1 << 60, stream.size).astype(np.uint64) & ~np.uint64(3)


class Slow(SampledCases):
    """A fast path that answers otherwise."""

    def row(self, key, truth, cell, question):  # type: ignore[no-untyped-def]
        return super().row(key ^ 4, truth, cell, question)


class Lossy(SampledCases):
    """Tokens that say half of the key."""

    def handle(self, token):  # type: ignore[no-untyped-def]
        return super().handle(token) & 0xFFFFFFFC


class Ageless(SampledCases):
    """Ages outside their band."""

    def open(self, handle):  # type: ignore[no-untyped-def]
        return super().open(handle)._replace(age=np.full(handle.size, 17.0, np.float32))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Counting, "pure function|same answer"),
        (Neighbourly, "pure function|same answer"),
        (Forgetful, "rows of the finding"),
        (Slow, "same answer in a batch, alone and from `row`"),
        (Overlapping, "share no case"),
        (Global, "same handles"),
        (Lossy, "lead back to itself"),
        (Ageless, "ages inside"),
    ],
)
def test_broken_source__is_noticed(broken: type[SampledCases], words: str) -> None:
    t = tables()
    check_cases(SampledCases(t, "train"), [SampledCases(t, "test")])
    with fails(words):
        check_cases(broken(t, "train"), [broken(t, "test")])


def test_loaded_splits_that_overlap__are_noticed() -> None:
    source = SampledCases(tables(), "all")
    cases = [dataclasses.replace(source.case(4 * i), split="") for i in range(30)]
    with fails("share no case"):
        check_cases(LoadedCases(tables(), cases, "all"), [LoadedCases(tables(), cases, "all")])


# Rewards


class Broken:
    """A reward to break: 1 for an answer."""

    name, when, bounds, needs_truth = "broken", "answered", (0.0, 1.0), False

    def __call__(self, t: Transition) -> Any:
        return t.answered.astype(np.float64)


class PaysRepeats(Broken):
    def __call__(self, t: Transition) -> Any:
        return (t.answered | t.invalid).astype(np.float64)


class PaysResets(InformationGain):
    def __call__(self, t: Transition) -> Any:
        return np.subtract(t.entropy_before, t.entropy_after, dtype=np.float64)


class Moody(Broken):
    calls = itertools.count()

    def __call__(self, t: Transition) -> Any:
        return t.answered * (next(self.calls) % 2) * 1.0


class Relative(Broken):
    bounds = (-1.0, 1.0)

    def __call__(self, t: Transition) -> Any:
        return (t.entropy_after - t.entropy_after.mean()).astype(np.float64).clip(-1, 1) * t.answered


class Narrow(Broken):
    def __call__(self, t: Transition) -> Any:
        return t.answered.astype(np.float32)


class Scalar(Broken):
    def __call__(self, t: Transition) -> Any:
        return np.float64(0.0)


class TooHigh(Broken):
    def __call__(self, t: Transition) -> Any:
        return t.answered * 2.0


class Meddling(Broken):
    def __call__(self, t: Transition) -> Any:
        t.belief_after[:] = 0.5
        return t.answered * 1.0


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (PaysRepeats, "repeated or refused question pays nothing"),
        (PaysResets, "expected 0 where 'answered' is off"),
        (Moody, "same numbers for the same transition"),
        (Relative, "batch in two parts"),
        (Narrow, "float64"),
        (Scalar, "float64"),
        (TooHigh, "values in \\[0, 1\\]"),
        (Meddling, "transition to be left"),
    ],
)
def test_broken_reward__is_noticed(broken: type, words: str) -> None:
    check_reward(Broken())
    with fails(words):
        check_reward(broken())


def test_mix_whose_parts_do_not_add_up__is_noticed(monkeypatch: Patch) -> None:
    good = RewardMix.score
    monkeypatch.setattr(RewardMix, "score", lambda self, t: (good(self, t)[0] * 1.5, good(self, t)[1]))
    with fails("components to sum"):
        check_reward("accuracy - question_cost")


# Environments


def _opens_mask_of_truth(monkeypatch: Patch) -> None:
    good = Engine.begin_one

    def broken(self: Engine, handle: int | None = None) -> None:
        good(self, handle)
        if self.truth[0] % 2:
            self.buffer[0, self.mask_at] = 0

    monkeypatch.setattr(Engine, "begin_one", broken)


def test_mask_that_depends_on_the_truth__is_noticed(monkeypatch: Patch) -> None:
    _opens_mask_of_truth(monkeypatch)
    with fails("equal histories to look equal.*(mask|observation)"):
        check_equal_histories(ID, patients=12, **SMALL)


def test_info_that_tells_the_truth__is_noticed(monkeypatch: Patch) -> None:
    good = ConsultEnv.step

    def broken(self: ConsultEnv, action: Any) -> Any:
        *rest, info = good(self, action)
        return *rest, info | {"progress": int(self.engine.truth[0])}

    monkeypatch.setattr(ConsultEnv, "step", broken)
    with fails("info.progress"):
        check_equal_histories(ID, **SMALL)


def test_rendering_that_tells_the_case__is_noticed(monkeypatch: Patch) -> None:
    good = ConsultEnv.render
    monkeypatch.setattr(ConsultEnv, "render", lambda self: f"{good(self)} {self.case.truth}")
    with fails("rendering"):
        check_equal_histories(ID, **SMALL)


def test_clairvoyant_search__is_noticed(monkeypatch: Patch) -> None:
    """Imagined patients that keep the true one."""
    good = setup.imagined

    def broken(engine: Engine, *args: Any) -> Engine:
        out = good(engine, *args)
        out.truth[:] = engine.truth[args[0]]
        return out

    monkeypatch.setattr(setup, "imagined", broken)
    with fails("imagined"):
        check_equal_histories(ID, patients=12, **SMALL | {"noise": 0.0})


def test_hidden_component_that_is_shown__is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(RewardMix, "hidden", frozenset())
    with fails("info.components"):
        check_equal_histories(ID, patients=8, reward="information_gain(value=log_probability)", **SMALL)


def test_truth_before_the_end__is_noticed(monkeypatch: Patch) -> None:
    good = ConsultEnv.step

    def broken(self: ConsultEnv, action: Any) -> Any:
        *rest, info = good(self, action)
        return *rest, {"truth": "flu"} | info

    monkeypatch.setattr(ConsultEnv, "step", broken)
    with fails("at the end only"):
        check_episode(ID, **SMALL)


def test_component_that_does_not_sum__is_noticed(monkeypatch: Patch) -> None:
    good = RewardMix.score_one
    monkeypatch.setattr(RewardMix, "score_one", lambda self, t, flags: (good(self, t, flags)[0] + 0.25, good(self, t, flags)[1]))
    with fails("components to sum"):
        check_episode(ID, **SMALL)


def test_questions_on_the_last_turn__are_noticed(monkeypatch: Patch) -> None:
    good = ConsultEnv.step

    def broken(self: ConsultEnv, action: Any) -> Any:
        seen, *rest = good(self, action)
        seen["action_mask"][0] = self.engine.buffer[0, self.engine.mask_at] = 1
        seen["asked"][0] = 0
        return seen, *rest

    monkeypatch.setattr(ConsultEnv, "step", broken)
    with fails("last turn"):
        check_episode(ID, **SMALL)


def test_question_that_stays_open__is_noticed(monkeypatch: Patch) -> None:
    good = Engine._disclose_one

    def broken(self: Engine, question: int, row: int) -> None:
        good(self, question, row)
        self.buffer[0, self.mask_at + question] = 1

    monkeypatch.setattr(Engine, "_disclose_one", broken)
    with fails("asked to be masked"):
        check_episode(ID, **SMALL)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_fast_path_of_other_bits__is_noticed(mode: str, monkeypatch: Patch) -> None:
    good = engines.posterior_one

    def broken(scores: Any, shift: Any) -> Any:
        belief, entropy, total = good(scores, shift)
        return belief, np.nextafter(entropy, np.float32(9)), total

    monkeypatch.setattr(engines, "posterior_one", broken)
    with fails("bit for bit"):
        check_batch(ID, mode, **SMALL)


def test_reset_that_skips_a_patient__is_noticed(monkeypatch: Patch) -> None:
    good = ConsultEnv.reset

    def broken(self: ConsultEnv, *, seed: Any = None, options: Any = None) -> Any:
        if seed is None:
            good(self)
        return good(self, seed=seed, options=options)

    monkeypatch.setattr(ConsultEnv, "reset", broken)
    for mode in ("NextStep", "SameStep", "Disabled"):
        with fails("bit for bit"):
            check_batch(ID, mode, **SMALL)


def test_batch_that_mixes_its_patients__is_noticed(monkeypatch: Patch) -> None:
    good = Engine._refresh

    def broken(self: Engine, who: Any = None) -> None:
        good(self, who)
        self.entropy = self.entropy + self.entropy.mean()

    monkeypatch.setattr(Engine, "_refresh", broken)
    with fails("two parts"):
        check_split_batch(ID, **SMALL)


def test_seed_that_is_ignored__is_noticed(monkeypatch: Patch) -> None:
    good = ConsultEnv.reset
    monkeypatch.setattr(
        ConsultEnv, "reset", lambda self, *, seed=None, options=None: good(self, seed=None if seed is None else 0, options=options)
    )
    with fails("seed is ignored"):
        check_seeds(ID, **SMALL)


def test_clock_in_place_of_a_seed__is_noticed(monkeypatch: Patch) -> None:
    tick, good = itertools.count(), ConsultEnv.reset
    monkeypatch.setattr(ConsultEnv, "reset", lambda self, *, seed=None, options=None: good(self, seed=next(tick), options=options))
    with fails("one seed to be equal"):
        check_seeds(ID, **SMALL)


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_global_random_state__is_noticed(draw, monkeypatch: Patch) -> None:  # type: ignore[no-untyped-def]
    good = SampledCases.next_one

    def broken(self: SampledCases, stream: int, episode: int) -> int:
        draw()
        return good(self, stream, episode)

    monkeypatch.setattr(SampledCases, "next_one", broken)
    with fails("global random states"):
        check_seeds(ID, **SMALL)


@pytest.mark.parametrize("missing", ["handle", "truth", "scores", "stream", "episode", "normaliser", "belief", "turns_left"])
def test_snapshot_that_forgets__is_noticed(missing: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(copies, "_STATE", tuple(k for k in copies._STATE if k != missing))
    with fails("snapshot|go on exactly"):
        check_snapshot(ID, reward="information_gain(value=probability)", observe_belief=True, **SMALL)


def test_warning_of_gymnasium__is_an_error(monkeypatch: Patch) -> None:
    good = ConsultEnv._observation
    monkeypatch.setattr(ConsultEnv, "_observation", lambda self: good(self) | {"turns_left": np.array([99], np.float32)})
    with fails("check_env"):
        check_gymnasium(ID, **SMALL)


def test_argument_that_pickling_loses__is_noticed(monkeypatch: Patch) -> None:
    good = gym.make
    monkeypatch.setattr(
        gym, "make", lambda spec, **kw: good(ID, **SMALL | {"max_turns": 3}) if not isinstance(spec, str) else good(spec, **kw)
    )
    with fails("pickled spec"):
        check_pickling(ID, **SMALL)


def test_check_environment__runs_them_all(monkeypatch: Patch) -> None:
    """Each mutation is noticed by the one call that a user makes, too."""
    check_environment(ID, **SMALL)
    with monkeypatch.context() as patch, fails("snapshot|go on exactly"):
        patch.setattr(copies, "_STATE", tuple(k for k in copies._STATE if k != "handle"))
        check_environment(ID, **SMALL)
    good = ConsultVectorEnv.step
    with monkeypatch.context() as patch, fails("bit for bit"):
        patch.setattr(ConsultVectorEnv, "step", lambda self, a: (lambda s, r, *rest: (s, r + 1e-12, *rest))(*good(self, a)))
        check_environment(ID, **SMALL)


# Doctors


class Masked(Random):
    def act(self, observation):  # type: ignore[no-untyped-def]
        return np.asarray(observation["complaint"]).reshape(-1).astype(np.int64), None


class Crowded(Random):
    def act(self, observation):  # type: ignore[no-untyped-def]
        action, _ = super().act(observation)
        first = np.argmax(observation["action_mask"], axis=1)
        return np.where(np.arange(action.size) % 2 == 0, action, first), None


class Remembering(Random):
    calls = itertools.count()

    def act(self, observation):  # type: ignore[no-untyped-def]
        action, _ = super().act(observation)
        return np.where(next(self.calls) % 2 == 0, action, np.argmax(observation["action_mask"], axis=1)), None


class Unnormalised(Random):
    def act(self, observation):  # type: ignore[no-untyped-def]
        return super().act(observation)[0], np.ones((len(observation["evidence"]), 12))


class Scribbling(Random):
    def act(self, observation):  # type: ignore[no-untyped-def]
        action, _ = super().act(observation)
        observation["evidence"][:] = 0
        return action, None


class Floating(Random):
    def act(self, observation):  # type: ignore[no-untyped-def]
        return super().act(observation)[0].astype(float), None


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Masked, "valid actions"),
        (Crowded, "in another order|one by one"),
        (Remembering, "in another order|one by one"),
        (Unnormalised, "sum to 1"),
        (Scribbling, "observation to be left"),
        (Floating, "integers"),
    ],
)
def test_broken_doctor__is_noticed(broken: type, words: str) -> None:
    check_doctor(Random(tables()), tables())
    with fails(words):
        check_doctor(broken(tables()), tables())


# The comparison that the checks rest on


@pytest.mark.parametrize(
    ("a", "b", "where"),
    [
        ({"x": 1}, {"y": 1}, "keys"),
        ({"x": {"y": 1.0}}, {"x": {"y": 2.0}}, ".x.y: 1.0 against 2.0"),
        ([1, 2], [1, 2, 3], "2 entries against 3"),
        (np.zeros(2), np.array([0.0, 1e-300]), "1 of 2 entries"),
        (np.zeros(2, np.float32), np.zeros(2), "float32"),
        (np.zeros((1, 2)), np.zeros(2), "[1, 2] against float64 [2]"),
        (np.nan, 0.0, "nan against 0.0"),
        (None, 0.0, "None against 0.0"),
        ("a", "b", "'a' against 'b'"),
    ],
)
def test_difference__is_found(a: Any, b: Any, where: str) -> None:
    assert where in difference(a, b)
    assert not difference(a, a) and not difference(b, b)
